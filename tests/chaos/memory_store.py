"""A store in memory for tests of the harness: right by default, wrong on demand."""

import threading
from collections.abc import Iterator, Sequence

from raftkv.client import (
    Compare,
    Delete,
    DeleteResult,
    Get,
    KeyValue,
    PreconditionFailedError,
    Put,
    PutResult,
    TxnResult,
)
from raftkv.client.types import Bytes, OperationResult, to_bytes


class MemoryStore:
    """Linearizable because one lock guards all of it."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self.entries: dict[bytes, KeyValue] = {}
        self.revision = 0

    def close(self) -> None:
        """Nothing is open."""

    def get(self, key: Bytes) -> KeyValue | None:
        """Read one key."""
        with self._lock:
            return self.entries.get(to_bytes(key))

    def put(
        self,
        key: Bytes,
        value: Bytes,
        *,
        if_revision: int | None = None,
        if_absent: bool = False,
    ) -> PutResult:
        """Set one key."""
        with self._lock:
            self._check(key, if_revision, if_absent=if_absent)
            self.revision += 1
            return self._put(Put(key, value))

    def _put(self, put: Put) -> PutResult:
        key = to_bytes(put.key)
        old = self.entries.get(key)
        version = 1 if old is None else old.version + 1
        create = self.revision if old is None else old.create_revision
        self.entries[key] = KeyValue(key, to_bytes(put.value), self.revision, version, create)
        return PutResult(self.revision, version)

    def delete(self, key: Bytes, *, if_revision: int | None = None) -> DeleteResult:
        """Remove one key."""
        with self._lock:
            self._check(key, if_revision, if_absent=False)
            self.revision += 1
            gone = self.entries.pop(to_bytes(key), None) is not None
            return DeleteResult(gone, self.revision if gone else None)

    def _check(self, key: Bytes, if_revision: int | None, *, if_absent: bool) -> None:
        entry = self.entries.get(to_bytes(key))
        found = None if entry is None else entry.revision
        if (if_absent and found is not None) or (if_revision is not None and found != if_revision):
            raise PreconditionFailedError("it does not hold", current_revision=found)

    def txn(
        self,
        compare: Sequence[Compare] = (),
        then: Sequence[Put | Delete | Get] = (),
        otherwise: Sequence[Put | Delete | Get] = (),
    ) -> TxnResult:
        """All comparisons must be of revisions or versions with ``=``."""
        with self._lock:
            succeeded = all(self._holds(one) for one in compare)
            self.revision += 1
            chosen = then if succeeded else otherwise
            return TxnResult(succeeded, self.revision, tuple(map(self._do, chosen)))

    def _holds(self, one: Compare) -> bool:
        assert one.target in {"mod", "version"}
        assert one.operator == "="
        entry = self.entries.get(to_bytes(one.key))
        if entry is None:
            return one.operand == 0
        return one.operand == (entry.revision if one.target == "mod" else entry.version)

    def _do(self, operation: Put | Delete | Get) -> OperationResult:
        if isinstance(operation, Put):
            return self._put(operation)
        assert isinstance(operation, Get)
        return self.entries.get(to_bytes(operation.key))

    def scan(self, prefix: Bytes | None = None) -> Iterator[KeyValue]:
        """All keys with a prefix."""
        with self._lock:
            start = to_bytes(prefix or b"")
            found = [e for key, e in sorted(self.entries.items()) if key.startswith(start)]
        yield from found
