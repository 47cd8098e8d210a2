"""What a client can ask of a shard, and what a shard answers.

These structs are the vocabulary of the whole project: the front end parses HTTP into them, the
engine carries them, the Raft log stores them (inside a :class:`Batch`) and the state machine
applies them. They are msgspec structs, encoded as MessagePack arrays with a small tag, so that a
decoder accepts exactly these messages with exactly these fields and nothing else.

Fields may only be appended, with defaults; anything else needs a new ``BATCH_FORMAT``.
"""

from typing import Annotated, Literal

import msgspec

BATCH_FORMAT = 3
"""Version of the encoding of :class:`Batch`; a replica stops at one it does not know.

In format 2 idempotency keys have no owner. In format 1, moreover, sessions have no birth (see
:mod:`raftkv.core.shard.outcomes`), and a missing key compares as if it had the value ``b""``.
"""

BATCH_FORMATS_READ = (1, 2, BATCH_FORMAT)
"""Those that logs may hold."""

KEY_BYTES_MAX = 1024
"""Longest key, in bytes; the shortest is one byte."""

REVISION_LIMIT = 2**53
"""Revisions stay below this, so that a JSON number holds them exactly."""

Key = Annotated[bytes, msgspec.Meta(min_length=1, max_length=KEY_BYTES_MAX)]


class Operation(msgspec.Struct, array_like=True, frozen=True, gc=False, forbid_unknown_fields=True):
    """Base of everything that is encoded by this module."""


# --- writes ---------------------------------------------------------------------------------


class Put(Operation, tag=1, frozen=True):
    """Set ``key`` to ``value``.

    ``if_revision``: only if the key exists with this mod revision (HTTP ``If-Match``).
    ``if_absent``: only if the key does not exist (HTTP ``If-None-Match: *``).
    """

    key: Key
    value: bytes
    if_revision: int | None = None
    if_absent: bool = False


class Delete(Operation, tag=2, frozen=True):
    """Remove ``key``; deleting a missing key succeeds and changes nothing."""

    key: Key
    if_revision: int | None = None


class Get(Operation, tag=3, frozen=True):
    """Read one key inside a transaction or batch."""

    key: Key


class Range(Operation, tag=4, frozen=True):
    """Read ``start <= key < end`` in byte order; ``end`` None means to the end of the key space.

    ``limit`` counts entries; ``bytes_max`` bounds the keys and values together, and at least one
    entry is returned whatever its size.
    """

    start: bytes
    end: bytes | None
    limit: int
    keys_only: bool = False
    bytes_max: int = 2**20


class Compare(Operation, tag=5, frozen=True):
    """One condition of a transaction.

    ``target`` says what of the key is compared. As in etcd a missing key has create, mod and
    version 0, and no value: no comparison of it holds, not even ``!=``. ``operand`` is bytes for
    ``value`` and an integer otherwise.
    """

    key: Key
    target: Literal["value", "create", "mod", "version"]
    operator: Literal["=", "!=", "<", ">"]
    operand: int | bytes


TxnPart = Put | Delete | Get | Range
"""What a branch of a transaction is made of."""


class Txn(Operation, tag=6, frozen=True):
    """If every comparison holds do ``then``, else ``otherwise``, atomically, in one shard.

    All writes of one transaction get the same revision, as in etcd. The conditional fields of
    its puts and deletes are not allowed here: conditions belong into ``compare``.
    """

    compare: tuple[Compare, ...]
    then: tuple[TxnPart, ...]
    otherwise: tuple[TxnPart, ...]


class Forget(Operation, tag=7, frozen=True):
    """Drop idempotency memory: free-form keys and sessions by name.

    Proposed by the leader only, once its own monotonic clock says that they have had their time
    (at least 120 s); replicas never look at a clock.
    """

    keys: tuple[str, ...]
    sessions: tuple[str, ...]
    epoch: int | None = None
    """The epoch in which the names were found unused; in a later one it does nothing."""


class Seal(Operation, tag=8, frozen=True):
    """The last command of a group's generation; everything after it is refused as moved.

    Handover to a successor generation starts from the state sealed here.
    """

    successor_generation: int


KeyWrite = Put | Delete
"""What writes one key, called ``key``: that says which shard it belongs to."""

Write = KeyWrite | Txn
"""What clients ask for."""

LoggedOperation = Write | Forget | Seal


def is_read_only(txn: Txn) -> bool:
    """Return whether neither branch of a transaction can write."""
    return not any(isinstance(part, Put | Delete) for part in (*txn.then, *txn.otherwise))


# --- idempotency (Raft dissertation, section 6.3) --------------------------------------------


Owner = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
"""Who makes an entry of the idempotency table, as a number that stands for him; 0: nobody."""


class FreeKey(Operation, tag=1, frozen=True):
    """A free-form idempotency key chosen by the client, 1 to 255 characters.

    ``owner``: out of whose share of the table it comes, if it is new.
    """

    key: Annotated[str, msgspec.Meta(min_length=1, max_length=255)]
    owner: Owner = 0


class SessionKey(Operation, tag=2, frozen=True):
    """A client session's key: ``sequence`` of this request; all below ``low`` are answered.

    The shard forgets outcomes below ``low``, which keeps its table small. ``born`` is the same in
    all keys of a session, by the client's clock in microseconds; a shard that does not know the
    session refuses it unless it was born after every one that it has forgotten. 0: it has none.
    ``owner``: out of whose share of the table the session comes, if it is new.
    """

    session: Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
    sequence: Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
    low: Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
    born: Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)] = 0
    owner: Owner = 0


Idempotency = FreeKey | SessionKey


# --- the log ---------------------------------------------------------------------------------


class Command(Operation, tag=30, frozen=True):
    """One operation of the log, with the idempotency key under which its outcome is kept."""

    operation: LoggedOperation
    idempotency: Idempotency | None = None


class Batch(msgspec.Struct, array_like=True, frozen=True, gc=False, forbid_unknown_fields=True):
    """One Raft entry: everything that waited when the leader proposed (group commit).

    ``clock_us`` is the leader's wall clock in microseconds; it only feeds revisions.
    """

    format: int
    generation: int
    clock_us: int
    commands: tuple[Command, ...]


# --- results ---------------------------------------------------------------------------------


class KeyValue(Operation, tag=1, frozen=True):
    """A key with its value and its three numbers. ``value`` is empty in a keys-only range."""

    key: bytes
    value: bytes
    create_revision: int
    mod_revision: int
    version: int


class PutResult(Operation, tag=1, frozen=True):
    """The put was applied. ``version`` is 1 for a created key."""

    revision: int
    version: int


class DeleteResult(Operation, tag=2, frozen=True):
    """The delete was applied; ``revision`` is None and ``deleted`` false for a missing key."""

    deleted: bool
    revision: int | None


class GetResult(Operation, tag=3, frozen=True):
    """``entry`` is None for a missing key."""

    entry: KeyValue | None


class RangeResult(Operation, tag=4, frozen=True):
    """Entries in key order; ``more`` says that the limit or byte bound cut the range."""

    entries: tuple[KeyValue, ...]
    more: bool


PartResult = PutResult | DeleteResult | GetResult | RangeResult
"""Of a :data:`TxnPart`."""


class TxnResult(Operation, tag=5, frozen=True):
    """``succeeded`` says which branch ran; ``revision`` is None if it wrote nothing."""

    succeeded: bool
    revision: int | None
    results: tuple[PartResult, ...]


class Refused(Operation, tag=6, frozen=True):
    """The command reached the state machine and was not applied: definite.

    Reasons: ``precondition`` (a condition failed; ``current_revision`` is the key's mod revision,
    None if it does not exist), ``moved`` (the group does not own the key, or is sealed),
    ``key_reused`` (another request came under the same idempotency key), ``table_full`` (the
    idempotency table takes no new keys now), ``share_full`` (it takes none of this owner, who has
    much of it), ``forgotten`` (below the session's low watermark; or
    the session is not known and not born after all that were forgotten: ``current_revision`` is
    then the greatest birth of those, else None), ``too_large`` (the transaction would read more
    than an answer may hold).

    ``forgotten`` is definite for this copy of the request alone: one before it may have been
    applied.
    """

    reason: Literal[
        "precondition",
        "moved",
        "key_reused",
        "table_full",
        "share_full",
        "forgotten",
        "too_large",
    ]
    current_revision: int | None = None


class Done(Operation, tag=7, frozen=True):
    """A command without a result of its own (:class:`Forget`, :class:`Seal`) was applied."""


Outcome = PutResult | DeleteResult | TxnResult | Refused
"""Of a :data:`Write`; what is remembered under its idempotency key."""

WriteResult = Outcome | Done
"""Of a :data:`LoggedOperation`."""
