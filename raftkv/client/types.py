"""What goes into the client and what comes out: keys, entries, operations, results.

Keys and values are bytes; a ``str`` is taken as its UTF-8 bytes wherever one is given.
"""

from dataclasses import dataclass
from typing import Literal

__all__ = [
    "Compare",
    "Delete",
    "DeleteResult",
    "Get",
    "KeyValue",
    "NotModified",
    "Put",
    "PutResult",
    "Range",
    "RangeResult",
    "TxnResult",
]

Bytes = bytes | str
"""A key or value as callers may give it."""

Consistency = Literal["linearizable", "stale"]

KEY_BYTES_MAX = 1024

REVISION_MAX = 2**53 - 1
"""Largest revision: a JSON number holds it exactly."""


def to_bytes(data: Bytes) -> bytes:
    """The bytes of a key or value.

    Raises:
        TypeError: It is something else. ``bytes(5)`` would be five zeros: a wrong value, silently.
    """
    if isinstance(data, str):
        return data.encode()
    if isinstance(data, bytes | bytearray | memoryview):
        return bytes(data)
    raise TypeError(f"keys and values are bytes or str, not {type(data).__name__}")


# --- operations of a batch or transaction -----------------------------------------------------


@dataclass(frozen=True, slots=True)
class Put:
    """Set a key. The conditions are for batches; a transaction has ``compare`` for that."""

    key: Bytes
    value: Bytes
    if_revision: int | None = None
    if_absent: bool = False


@dataclass(frozen=True, slots=True)
class Delete:
    """Remove a key, if it is there."""

    key: Bytes
    if_revision: int | None = None


@dataclass(frozen=True, slots=True)
class Get:
    """Read a key."""

    key: Bytes


@dataclass(frozen=True, slots=True)
class Range:
    """Read keys in byte order, in a transaction: ``prefix``, or ``start`` (included) to ``end``.

    ``limit`` is 100 by default. Where the cluster has several shards, the prefix (or start and end
    up to the same brace) holds a whole ``{tag}``, so that all keys live in one.
    """

    prefix: Bytes | None = None
    start: Bytes | None = None
    end: Bytes | None = None
    limit: int | None = None
    keys_only: bool = False


@dataclass(frozen=True, slots=True)
class Compare:
    """One condition of a transaction, say ``Compare("stock", "value", "=", b"1")``.

    A missing key has the revisions and version 0, and no value: no comparison of it holds, not
    even ``!=``. :meth:`exists` and :meth:`absent` ask whether a key is there.
    """

    key: Bytes
    target: Literal["value", "create", "mod", "version"]
    operator: Literal["=", "!=", "<", ">"]
    operand: int | Bytes

    @classmethod
    def exists(cls, key: Bytes) -> "Compare":
        """Return the condition that the key is there, whatever its value."""
        return cls(key, "version", ">", 0)

    @classmethod
    def absent(cls, key: Bytes) -> "Compare":
        """Return the condition that the key is not there."""
        return cls(key, "version", "=", 0)


BatchOperation = Put | Delete | Get
"""What a batch is made of."""

TxnOperation = Put | Delete | Get | Range
"""What a branch of a transaction is made of."""


# --- results ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class KeyValue:
    """A key as it was read. ``value`` is empty when only keys were asked for."""

    key: bytes
    value: bytes
    revision: int
    version: int
    create_revision: int


@dataclass(frozen=True, slots=True)
class NotModified:
    """The key still has the ``revision`` that the caller knows, so its value was not sent."""

    revision: int


@dataclass(frozen=True, slots=True)
class RangeResult:
    """The entries of a :class:`Range`; ``more``: its limit left some out."""

    entries: tuple[KeyValue, ...]
    more: bool


@dataclass(frozen=True, slots=True)
class PutResult:
    """A put was applied under ``revision``; ``version`` 1 means that it created the key."""

    revision: int
    version: int

    @property
    def created(self) -> bool:
        """Whether the key did not exist before."""
        return self.version == 1


@dataclass(frozen=True, slots=True)
class DeleteResult:
    """A delete was applied; a key that was not there gives ``deleted`` False and no revision."""

    deleted: bool
    revision: int | None


OperationResult = PutResult | DeleteResult | KeyValue | None
"""What one operation gave; None is a :class:`Get` of a missing key."""


@dataclass(frozen=True, slots=True)
class TxnResult:
    """Which branch of a transaction ran and what its operations gave, in their order."""

    succeeded: bool
    revision: int | None
    results: tuple[OperationResult | RangeResult, ...]
