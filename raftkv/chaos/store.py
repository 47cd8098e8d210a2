"""What workloads need of a store: a part of the interface of :class:`raftkv.Client`.

That client is one; :class:`raftkv.testing.etcd_client.EtcdClient` is another. Both raise the errors
of :mod:`raftkv.client.errors`, so that one rule tells what a history may claim of an operation.
"""

from collections.abc import Iterable, Sequence
from typing import Protocol

from raftkv.client import Compare, Delete, DeleteResult, Get, KeyValue, Put, PutResult, TxnResult
from raftkv.client.types import Bytes


class Store(Protocol):
    """A client of a linearizable key-value store; used by one thread at a time."""

    def get(self, key: Bytes) -> KeyValue | None:
        """Read one key; None if it does not exist."""

    def put(
        self,
        key: Bytes,
        value: Bytes,
        *,
        if_revision: int | None = None,
        if_absent: bool = False,
    ) -> PutResult:
        """Set a key, under a condition if one is given."""

    def delete(self, key: Bytes, *, if_revision: int | None = None) -> DeleteResult:
        """Remove a key, under a condition if one is given."""

    def txn(
        self,
        compare: Sequence[Compare] = (),
        then: Sequence[Put | Delete | Get] = (),
        otherwise: Sequence[Put | Delete | Get] = (),
    ) -> TxnResult:
        """If every comparison holds do ``then``, else ``otherwise``, at once or not at all."""

    def scan(self, prefix: Bytes | None = None) -> Iterable[KeyValue]:
        """All keys with a prefix, in one moment if they are few and share a ``{tag}``."""

    def close(self) -> None:
        """Close the connections."""
