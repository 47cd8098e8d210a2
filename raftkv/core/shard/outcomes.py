"""What a shard remembers of writes, so that a retry after a lost answer is applied once.

The scheme of Ongaro's Raft dissertation, section 6.3, for two kinds of names. A *session* numbers
its requests and says below which number it has all answers; its memory stays a few outcomes small.
A *free-form key* names one request and is kept until it is forgotten. Either is bound to a
fingerprint of the request, so that reusing a name for something else is refused, not answered with
another request's outcome. A full table refuses new names; it never forgets early, for that could
apply a retry twice.

**Shares.** Nobody may fill the table for all others. A name that is new comes with its *owner*, a
number that stands for who asks, and the table keeps what each owner has in it. It takes a new name
of one who has none, or who then has at most ``SHARE_OF_NEW`` times what is left free: Choudhury and
Hahne, "Dynamic queue length thresholds for shared-memory packet switches" (IEEE/ACM Transactions on
Networking 6(2), 1998), with an alpha of 4. So one owner alone stops at 80 %, ten greedy ones at
97.6 % together, and something is always left for the next. That holds for free-form keys, for
sessions and for bytes. A known session goes on, whatever its owner has: its outcomes count by bytes
only, with ``SHARE_OF_KNOWN``, a larger alpha for what matters more (Hahne and Choudhury, "Dynamic
queue length thresholds for multiple loss priorities", same journal 10(3), 2002), up to 94 % alone.
The owner 0 is nobody: names of earlier formats have no owner and no share.

**Births.** A copy of a write may arrive after its session was forgotten: a proxy or a node was
frozen, a client was suspended. Made anew, the session would apply it a second time; the
dissertation has unknown sessions refused. So a session carries a number, its *birth*, and
the shard keeps one number more, the greatest birth of any session that it has forgotten. An
unknown session is let in only if it was born after that.

*Safe*: name and birth together are the session. When it is forgotten, the shard's number becomes
at least its birth, and never falls (snapshots and successors have it too), so it is never let in
again: none of its writes is applied twice, whatever births clients choose, and no clock is asked.
A session that is known is never refused for its birth.

*Live*: a refusal tells the shard's number, and a session born after that is let in. No client need
be refused often: births are drawn from clients' clocks (microseconds, as revisions are), and what
is forgotten was born a lifetime ago, so that a fresh birth is later, unless clocks differ by more
than that. Births are compared with births only, so shards whose revisions differ by years take
the same ones, and one wrong clock moves the births of those that meet its sessions, as a Lamport
clock would. A birth may be ``BIRTHS_AHEAD`` above :data:`BIRTH_MAX`, or above the shard's number
where that is greater: even a wild one leaves room for those to come.

Logs of format 1 have sessions without a birth, which count as born at 0. There they are made as
they were then; in later formats 0 is never after what was forgotten.

**Forgetting** is measured by the leader's monotonic clock but decided in the log, and between the
leader's look and the command's place in the log a name may be used again. So the memory counts
*epochs*: each :class:`~raftkv.core.operations.Forget` begins a new one, every use of a name is
stamped with the epoch of its place in the log, and a ``Forget`` spares names used since the one
before. :class:`raftkv.core.shard.expiry.ExpiryClock` is the leader's half of this.

Each outcome is kept as one encoded record, which is also what snapshots hold and the digest
hashes: small, unknown to the garbage collector, and decoded only when a retry really comes.
"""

from collections.abc import Callable, Iterator
from itertools import takewhile

import msgspec
from mmh3 import mmh3_x64_128_digest, mmh3_x64_128_uintdigest

from raftkv.core.errors import DECODE_FAILURES, CorruptSnapshot
from raftkv.core.operations import (
    Forget,
    Idempotency,
    LoggedOperation,
    Outcome,
    Refused,
    SessionKey,
)
from raftkv.core.shard.sections import KeyValuePiece, RecordPart, RecordPiece, record_pieces

BIRTH_MAX = 2**52
"""Greatest birth from a clock: the year 2112 in microseconds, as for revisions."""

BIRTHS_AHEAD = 2**30
"""How far births may be above the greater of ``BIRTH_MAX`` and what was forgotten. Whoever wants to
use up all births below 2^53 needs four million lifetimes for it."""


SHARE_OF_NEW = 4
"""An owner gets a new name only if he then has at most so many times what is left free."""

SHARE_OF_KNOWN = 16
"""Likewise for the bytes of another outcome in a session that is known."""

RECORD_BYTES = 64
"""What an outcome takes in the table that has read nothing, about."""

FORGET_CHARACTERS_MAX = 512 * 1024
"""How long the keys of one ``Forget`` may be together, and its sessions likewise."""


class MemoryLimits(msgspec.Struct, frozen=True):
    """How much a shard remembers. All replicas must use the same, as refusing is an outcome too.

    The defaults let a shard take 2,000 free-form keys a second that live 120 s.
    """

    free_keys_max: int = 250_000
    sessions_max: int = 50_000
    session_outcomes_max: int = 1_024
    outcome_bytes_max: int = 64 * 2**20


class _Record(
    msgspec.Struct, array_like=True, frozen=True, gc=False, forbid_unknown_fields=True
): ...


class FreeRecord(_Record, tag=1, frozen=True):
    """The outcome of a request under a free-form key, applied in ``epoch``."""

    key: str
    epoch: int
    fingerprint: bytes
    outcome: Outcome


class SessionRecord(_Record, tag=2, frozen=True):
    """The outcome of one request of a session."""

    session: str
    sequence: int
    fingerprint: bytes
    outcome: Outcome


class UnbornHead(_Record, tag=3, frozen=True):
    """A session of a log of format 1: its low watermark and the epoch in which it was last used."""

    session: str
    low: int
    epoch: int


class SessionHead(_Record, tag=4, frozen=True):
    """A session: its low watermark, the epoch in which it was last used, and its birth."""

    session: str
    low: int
    epoch: int
    born: int


class OwnedRecord(_Record, tag=5, frozen=True):
    """A :class:`FreeRecord` whose key has an owner."""

    key: str
    epoch: int
    owner: int
    fingerprint: bytes
    outcome: Outcome


class OwnedHead(_Record, tag=6, frozen=True):
    """A :class:`SessionHead` of a session that has an owner."""

    session: str
    low: int
    epoch: int
    born: int
    owner: int


class _FreeEpoch(msgspec.Struct, array_like=True, frozen=True, tag=1):
    """The first fields of a :class:`FreeRecord`; decoding it skips the outcome."""

    key: str
    epoch: int

    @property
    def owner(self) -> int:
        return 0


class _OwnedEpoch(msgspec.Struct, array_like=True, frozen=True, tag=5):
    """The first fields of an :class:`OwnedRecord`."""

    key: str
    epoch: int
    owner: int


class Holding(msgspec.Struct, gc=False):
    """What an owner has in the table; it exists only while that is something."""

    owner: int
    keys: int = 0
    sessions: int = 0
    bytes: int = 0


class _Session(msgspec.Struct, gc=False):
    # gc=False: all that a session leads to are integers and bytes, so there can be no cycle.
    low: int
    epoch: int
    born: int
    outcomes: dict[int, bytes]
    holding: Holding | None


_encode = msgspec.msgpack.Encoder().encode
_AnyRecord = FreeRecord | SessionRecord | UnbornHead | SessionHead | OwnedRecord | OwnedHead
_record_decoder: msgspec.msgpack.Decoder[_AnyRecord] = msgspec.msgpack.Decoder(_AnyRecord)
_decode_record = _record_decoder.decode
_epoch_decoder: msgspec.msgpack.Decoder[_FreeEpoch | _OwnedEpoch] = msgspec.msgpack.Decoder(
    _FreeEpoch | _OwnedEpoch
)
_decode_epoch = _epoch_decoder.decode

_TABLE_FULL = Refused("table_full")
_SHARE_FULL = Refused("share_full")
_KEY_REUSED = Refused("key_reused")
_BELOW_LOW = Refused("forgotten")


def fingerprint_of(operation: LoggedOperation) -> bytes:
    """Return 128 bits that tell this request from any other under the same name."""
    return mmh3_x64_128_digest(_encode(operation))


class OutcomeMemory:
    """The outcomes a shard remembers. Deterministic: all changes come from the log."""

    __slots__ = (
        *("_free", "_holdings", "_limits", "_outcomes_of_sessions", "_sessions"),
        *("bytes", "epoch", "forgotten_birth", "hash"),
    )

    name = "outcomes"

    def __init__(self, limits: MemoryLimits, epoch: int = 0) -> None:
        self._limits = limits
        # Both in order of their epochs: used in a later one means moved to the end.
        self._free: dict[str, bytes] = {}
        self._sessions: dict[str, _Session] = {}
        self._outcomes_of_sessions = 0
        self._holdings: dict[int, Holding] = {}  # by owner
        self.bytes = 0
        """Bytes of all outcome records."""
        self.epoch = epoch
        """How many ``Forget`` commands have been applied."""
        self.forgotten_birth = 0
        """The greatest birth of any session that was forgotten."""
        self.hash = 0
        """Exclusive or of the hashes of all records and session heads."""

    def __len__(self) -> int:
        """Return the number of outcomes."""
        return len(self._free) + self._outcomes_of_sessions

    @property
    def free_key_count(self) -> int:
        """How many free-form keys are known."""
        return len(self._free)

    @property
    def session_count(self) -> int:
        """How many sessions are known."""
        return len(self._sessions)

    @property
    def owner_count(self) -> int:
        """How many owners have something in the table."""
        return len(self._holdings)

    def holdings(self) -> Iterator[Holding]:
        """Yield what each owner has, in no order."""
        return iter(self._holdings.values())

    def largest_share(self) -> float:
        """Return the part of the table that the owner who has most of it has, from 0 to 1.

        That is of its keys, its sessions or its bytes. It looks at every owner.
        """
        shares = (self._share(one.keys, one.sessions, one.bytes) for one in self.holdings())
        return max(shares, default=0.0)

    def used(self) -> float:
        """Return which part of the table is used, from 0 to 1: of its keys, sessions or bytes."""
        return self._share(len(self._free), len(self._sessions), self.bytes)

    def _share(self, keys: int, sessions: int, size: int) -> float:
        limits = self._limits
        return max(
            keys / max(1, limits.free_keys_max),
            sessions / max(1, limits.sessions_max),
            size / max(1, limits.outcome_bytes_max),
        )

    # --- the life of an outcome ---

    def recall(
        self,
        name: Idempotency,
        fingerprint: bytes,
        *,
        unborn: bool = False,
        record_bytes: int = RECORD_BYTES,
    ) -> Outcome | None:
        """Return how a request must be answered without applying it; None to apply it.

        After None the caller applies the request and calls :meth:`remember`. ``unborn``: the
        request comes from a log whose sessions have no births, and are made when first met.
        ``record_bytes``: what its outcome may take in the table, about.
        """
        if isinstance(name, SessionKey):
            return self._recall_in_session(name, fingerprint, record_bytes, unborn=unborn)
        record = self._free.get(name.key)
        if record is not None:
            return _answer(record, fingerprint)
        if len(self._free) >= self._limits.free_keys_max or self._is_out_of_bytes():
            return _TABLE_FULL
        return self._refused_for_share(name, record_bytes)

    def remember(self, name: Idempotency, fingerprint: bytes, outcome: Outcome) -> None:
        """Keep the outcome of a request for which :meth:`recall` has just returned None."""
        if isinstance(name, SessionKey):
            record = _encode(SessionRecord(name.session, name.sequence, fingerprint, outcome))
            session = self._sessions[name.session]
            session.outcomes[name.sequence] = record
            self._outcomes_of_sessions += 1
            self._count_in(record, session.holding)
        elif name.owner:
            record = _encode(OwnedRecord(name.key, self.epoch, name.owner, fingerprint, outcome))
            self._keep_key(name.key, name.owner, record)
        else:
            record = _encode(FreeRecord(name.key, self.epoch, fingerprint, outcome))
            self._keep_key(name.key, 0, record)

    def forget(self, forget: Forget) -> None:
        """Drop the named keys and sessions, except those used in this epoch; begin the next.

        One that was decided in an earlier epoch does nothing: names may have been used since,
        and the epoch that says so is not the present one any more.
        """
        if forget.epoch is not None and forget.epoch != self.epoch:
            return
        for key in forget.keys:
            record = self._free.get(key)
            if record is not None:
                stamp = _decode_epoch(record)
                if stamp.epoch < self.epoch:
                    self._drop_key(key, stamp.owner, record)
        for name in forget.sessions:
            session = self._sessions.get(name)
            if session is not None and session.epoch < self.epoch:
                self._raise_low(session, None)
                self._toggle_head(name, session)
                del self._sessions[name]
                if session.holding is not None:
                    session.holding.sessions -= 1
                    self._let_go(session.holding)
                self.forgotten_birth = max(self.forgotten_birth, session.born)
        self.epoch += 1

    def unused_since(self, epoch: int, limit: int) -> Forget | None:
        """Return up to ``limit`` keys and as many sessions last used before ``epoch``, if any.

        Of each no more than :data:`FORGET_CHARACTERS_MAX` together, and one at least.
        """
        keys = takewhile(lambda key: _decode_epoch(self._free[key]).epoch < epoch, self._free)
        names = takewhile(lambda name: self._sessions[name].epoch < epoch, self._sessions)
        forget = Forget(_first(limit, keys), _first(limit, names), self.epoch)
        return forget if forget.keys or forget.sessions else None

    def next_epoch(self) -> Forget:
        """Return what ends the present epoch, and forgets nothing."""
        return Forget((), (), self.epoch)

    def newest_epoch(self) -> int | None:
        """Return the epoch in which a name was last used, None if no name is known."""
        epochs = []
        if self._free:
            epochs.append(_decode_epoch(self._free[next(reversed(self._free))]).epoch)
        if self._sessions:
            epochs.append(self._sessions[next(reversed(self._sessions))].epoch)
        return max(epochs, default=None)

    # --- as a section ---

    @property
    def counts(self) -> tuple[int, ...]:
        """How many outcomes, sessions and owners are known."""
        return (len(self), self.session_count, self.owner_count)

    @property
    def numbers(self) -> tuple[int, ...]:
        """The epoch, and the greatest birth that was forgotten, if any."""
        # 0 is left out, as it was in snapshots of format 1: digests must stay what they were.
        return (self.epoch, self.forgotten_birth) if self.forgotten_birth else (self.epoch,)

    def restore_numbers(self, numbers: tuple[int, ...]) -> None:
        """Take over :attr:`numbers`; raise :class:`CorruptSnapshot` if they are none."""
        if len(numbers) not in {1, 2}:
            raise CorruptSnapshot("not the numbers of an idempotency memory")
        self.epoch, self.forgotten_birth = (*numbers, 0)[:2]

    def recomputed_hash(self) -> int:
        """Return the hash computed from the records, in time proportional to them."""
        again = OutcomeMemory(MemoryLimits())
        for record in self.records():
            again.restore_record(record)
        return again.hash

    def pieces(self) -> Iterator[RecordPiece | RecordPart]:
        """Yield all records in pieces."""
        return record_pieces(self.records())

    def restore(self, piece: KeyValuePiece | RecordPiece) -> None:
        """Add records of a snapshot; raise :class:`CorruptSnapshot` for anything else."""
        if not isinstance(piece, RecordPiece):
            raise CorruptSnapshot("not a piece of an idempotency memory")
        try:
            for record in piece.records:
                self.restore_record(record)
        except (*DECODE_FAILURES, KeyError) as error:
            raise CorruptSnapshot(f"not a record of the idempotency memory: {error}") from error

    def succeed(self, owns: Callable[[bytes], bool]) -> None:
        """Keep everything: a retry may come to any of the successors."""

    def records(self) -> Iterator[bytes]:
        """Yield everything as encoded records; :meth:`restore_record` takes them in this order."""
        yield from self._free.values()
        for name, session in self._sessions.items():
            yield _encode_head(name, session)
            yield from session.outcomes.values()

    def restore_record(self, data: bytes) -> None:
        """Add one record of :meth:`records`.

        Raises:
            msgspec.DecodeError: It is not a record (or another of ``DECODE_FAILURES``).
            KeyError: An outcome of a session that was not restored before.
        """
        record = _decode_record(data)
        if isinstance(record, FreeRecord):
            self._keep_key(record.key, 0, data)
        elif isinstance(record, OwnedRecord):
            self._keep_key(record.key, record.owner, data)
        elif isinstance(record, SessionRecord):
            session = self._sessions[record.session]
            session.outcomes[record.sequence] = data
            self._outcomes_of_sessions += 1
            self._count_in(data, session.holding)
        else:
            born = 0 if isinstance(record, UnbornHead) else record.born
            owner = record.owner if isinstance(record, OwnedHead) else 0
            self._make_session(record.session, record.low, record.epoch, born, owner)

    # --- inside ---

    def _recall_in_session(
        self, name: SessionKey, fingerprint: bytes, record_bytes: int, *, unborn: bool
    ) -> Outcome | None:
        session = self._sessions.get(name.session)
        if session is not None and name.born != session.born:
            return _KEY_REUSED
        if name.sequence < (name.low if session is None else max(name.low, session.low)):
            return _BELOW_LOW
        if session is None:
            refused = self._refused_as_new(name, record_bytes, unborn=unborn)
            if refused is not None:
                return refused
            session = self._make_session(name.session, name.low, self.epoch, name.born, name.owner)
        else:
            self._use(name, session)
        record = session.outcomes.get(name.sequence)
        if record is not None:
            return _answer(record, fingerprint)
        return self._refused_as_known(session, record_bytes)

    def _refused_as_new(
        self, name: SessionKey, record_bytes: int, *, unborn: bool
    ) -> Refused | None:
        """Let in an unknown session, if there is room for it."""
        refused = None if unborn else self._refused_for_birth(name.born)
        if refused is not None:
            return refused
        if len(self._sessions) >= self._limits.sessions_max or self._is_out_of_bytes():
            return _TABLE_FULL
        return self._refused_for_share(name, record_bytes)

    def _refused_as_known(self, session: _Session, record_bytes: int) -> Refused | None:
        """Let in another request of a known session, if there is room for its outcome."""
        limits = self._limits
        free_bytes = limits.outcome_bytes_max - self.bytes
        if len(session.outcomes) >= limits.session_outcomes_max or free_bytes <= 0:
            return _TABLE_FULL
        held_max = SHARE_OF_KNOWN * (free_bytes - record_bytes)
        # Nobody has more than there is, so that nearly always the first look is enough.
        if self.bytes + record_bytes <= held_max or session.holding is None:
            return None
        return None if session.holding.bytes + record_bytes <= held_max else _SHARE_FULL

    def _refused_for_share(self, name: Idempotency, record_bytes: int) -> Refused | None:
        """Let in a new name if its owner has little beside what is left free."""
        if not name.owner:
            return None
        limits = self._limits
        held = self._holdings.get(name.owner) or Holding(name.owner)
        if isinstance(name, SessionKey):
            names, names_left = held.sessions, limits.sessions_max - len(self._sessions)
        else:
            names, names_left = held.keys, limits.free_keys_max - len(self._free)
        bytes_left = limits.outcome_bytes_max - self.bytes - record_bytes
        # Who has no name yet gets one while there is any room.
        fits = (
            not names or names + 1 <= SHARE_OF_NEW * (names_left - 1)
        ) and held.bytes + record_bytes <= SHARE_OF_NEW * bytes_left
        return None if fits else _SHARE_FULL

    def _refused_for_birth(self, born: int) -> Refused | None:
        """Let in an unknown session that was never forgotten and leaves room for others."""
        forgotten = self.forgotten_birth
        if forgotten < born <= max(forgotten, BIRTH_MAX) + BIRTHS_AHEAD:
            return None
        return Refused("forgotten", forgotten)

    def _use(self, name: SessionKey, session: _Session) -> None:
        """Stamp a session with this epoch and drop what its client has been answered."""
        is_stale = session.epoch != self.epoch
        if not is_stale and name.low <= session.low:
            return
        self._toggle_head(name.session, session)
        if is_stale:
            session.epoch = self.epoch
            self._sessions[name.session] = self._sessions.pop(name.session)
        if name.low > session.low:
            self._raise_low(session, name.low)
            session.low = name.low
        self._toggle_head(name.session, session)

    def _raise_low(self, session: _Session, low: int | None) -> None:
        """Drop the outcomes below ``low``, all of them for None."""
        outcomes = session.outcomes
        if low is None:
            answered = list(outcomes)
        elif low - session.low <= len(outcomes):
            # Usually the watermark moves by one or two while many requests are in flight.
            answered = [sequence for sequence in range(session.low, low) if sequence in outcomes]
        else:
            answered = [sequence for sequence in outcomes if sequence < low]
        for sequence in answered:
            self._count_out(outcomes.pop(sequence), session.holding)
        self._outcomes_of_sessions -= len(answered)

    def _is_out_of_bytes(self) -> bool:
        return self.bytes >= self._limits.outcome_bytes_max

    def _keep_key(self, key: str, owner: int, record: bytes) -> None:
        holding = self._hold(owner)
        self._free[key] = record
        if holding is not None:
            holding.keys += 1
        self._count_in(record, holding)

    def _drop_key(self, key: str, owner: int, record: bytes) -> None:
        holding = self._holdings.get(owner)
        del self._free[key]
        self._count_out(record, holding)
        if holding is not None:
            holding.keys -= 1
            self._let_go(holding)

    def _make_session(self, name: str, low: int, epoch: int, born: int, owner: int) -> _Session:
        holding = self._hold(owner)
        if holding is not None:
            holding.sessions += 1
        session = self._sessions[name] = _Session(low, epoch, born, {}, holding)
        self._toggle_head(name, session)
        return session

    def _hold(self, owner: int) -> Holding | None:
        """Return where it is kept what an owner has; None for nobody."""
        if not owner:
            return None
        holding = self._holdings.get(owner)
        if holding is None:
            holding = self._holdings[owner] = Holding(owner)
        return holding

    def _let_go(self, holding: Holding) -> None:
        if not (holding.keys or holding.sessions):
            del self._holdings[holding.owner]

    def _count_in(self, record: bytes, holding: Holding | None) -> None:
        size = len(record)
        self.bytes += size
        self.hash ^= mmh3_x64_128_uintdigest(record)
        if holding is not None:
            holding.bytes += size

    def _count_out(self, record: bytes, holding: Holding | None) -> None:
        size = len(record)
        self.bytes -= size
        self.hash ^= mmh3_x64_128_uintdigest(record)
        if holding is not None:
            holding.bytes -= size

    def _toggle_head(self, name: str, session: _Session) -> None:
        """Take a session's head into the hash, or out of it: exclusive or undoes itself."""
        self.hash ^= mmh3_x64_128_uintdigest(_encode_head(name, session))


def _encode_head(name: str, session: _Session) -> bytes:
    # What has no owner, or no birth, is written as it was before there were any: a replica that
    # applies an old log must come to the bytes of one that has read an old snapshot.
    if session.holding is not None:
        return _encode(
            OwnedHead(name, session.low, session.epoch, session.born, session.holding.owner)
        )
    if session.born:
        return _encode(SessionHead(name, session.low, session.epoch, session.born))
    return _encode(UnbornHead(name, session.low, session.epoch))


def _answer(data: bytes, fingerprint: bytes) -> Outcome:
    record = _decode_record(data)
    if (
        isinstance(record, UnbornHead | SessionHead | OwnedHead)
        or record.fingerprint != fingerprint
    ):
        return _KEY_REUSED
    return record.outcome


def _first(limit: int, names: Iterator[str]) -> tuple[str, ...]:
    taken: list[str] = []
    characters_left = FORGET_CHARACTERS_MAX
    for name in names:
        characters_left -= len(name)
        if len(taken) >= limit or (taken and characters_left < 0):
            break
        taken.append(name)
    return tuple(taken)
