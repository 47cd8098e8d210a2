"""What a shard remembers of writes, so that a retry after a lost answer is applied once.

The scheme of Ongaro's Raft dissertation, section 6.3, for two kinds of names. A *session* numbers
its requests and says below which number it has all answers; its memory stays a few outcomes small.
A *free-form key* names one request and is kept until it is forgotten. Either is bound to a
fingerprint of the request, so that reusing a name for something else is refused, not answered with
another request's outcome. A full table refuses new names; it never forgets early, for that could
apply a retry twice.

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
from raftkv.core.shard.sections import EntryPiece, RecordPart, RecordPiece, record_pieces

BIRTH_MAX = 2**52
"""Greatest birth from a clock: the year 2112 in microseconds, as for revisions."""

BIRTHS_AHEAD = 2**30
"""How far births may be above the greater of ``BIRTH_MAX`` and what was forgotten. Whoever wants to
use up all births below 2^53 needs four million lifetimes for it."""


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


class _FreeEpoch(msgspec.Struct, array_like=True, frozen=True, tag=1):
    """The first fields of a :class:`FreeRecord`; decoding it skips the outcome."""

    key: str
    epoch: int


class _Session(msgspec.Struct, gc=False):
    # gc=False: a session holds only integers and bytes, so it cannot be part of a cycle.
    low: int
    epoch: int
    born: int
    outcomes: dict[int, bytes]


_encode = msgspec.msgpack.Encoder().encode
_record_decoder: msgspec.msgpack.Decoder[FreeRecord | SessionRecord | UnbornHead | SessionHead] = (
    msgspec.msgpack.Decoder(FreeRecord | SessionRecord | UnbornHead | SessionHead)
)
_decode_record = _record_decoder.decode
_decode_epoch = msgspec.msgpack.Decoder(_FreeEpoch).decode

_TABLE_FULL = Refused("table_full")
_KEY_REUSED = Refused("key_reused")
_BELOW_LOW = Refused("forgotten")


def fingerprint_of(operation: LoggedOperation) -> bytes:
    """Return 128 bits that tell this request from any other under the same name."""
    return mmh3_x64_128_digest(_encode(operation))


class OutcomeMemory:
    """The outcomes a shard remembers. Deterministic: all changes come from the log."""

    __slots__ = (
        *("_free", "_limits", "_outcomes_of_sessions", "_sessions"),
        *("bytes", "epoch", "forgotten_birth", "hash"),
    )

    name = "outcomes"

    def __init__(self, limits: MemoryLimits, epoch: int = 0) -> None:
        self._limits = limits
        # Both in order of their epochs: used in a later one means moved to the end.
        self._free: dict[str, bytes] = {}
        self._sessions: dict[str, _Session] = {}
        self._outcomes_of_sessions = 0
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

    # --- the life of an outcome ---

    def recall(
        self, name: Idempotency, fingerprint: bytes, *, unborn: bool = False
    ) -> Outcome | None:
        """Return how a request must be answered without applying it; None to apply it.

        After None the caller applies the request and calls :meth:`remember`. ``unborn``: the
        request comes from a log whose sessions have no births, and are made when first met.
        """
        if isinstance(name, SessionKey):
            return self._recall_in_session(name, fingerprint, unborn=unborn)
        record = self._free.get(name.key)
        if record is not None:
            return _answer(record, fingerprint)
        if len(self._free) >= self._limits.free_keys_max or self._is_out_of_bytes():
            return _TABLE_FULL
        return None

    def remember(self, name: Idempotency, fingerprint: bytes, outcome: Outcome) -> None:
        """Keep the outcome of a request for which :meth:`recall` has just returned None."""
        if isinstance(name, SessionKey):
            record = _encode(SessionRecord(name.session, name.sequence, fingerprint, outcome))
            self._sessions[name.session].outcomes[name.sequence] = record
            self._outcomes_of_sessions += 1
        else:
            record = _encode(FreeRecord(name.key, self.epoch, fingerprint, outcome))
            self._free[name.key] = record
        self._count_in(record)

    def forget(self, forget: Forget) -> None:
        """Drop the named keys and sessions, except those used in this epoch; begin the next.

        One that was decided in an earlier epoch does nothing: names may have been used since,
        and the epoch that says so is not the present one any more.
        """
        if forget.epoch is not None and forget.epoch != self.epoch:
            return
        for key in forget.keys:
            record = self._free.get(key)
            if record is not None and _decode_epoch(record).epoch < self.epoch:
                del self._free[key]
                self._count_out(record)
        for name in forget.sessions:
            session = self._sessions.get(name)
            if session is not None and session.epoch < self.epoch:
                self._raise_low(session, None)
                self._toggle_head(name, session)
                del self._sessions[name]
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
        """How many outcomes and how many sessions are known."""
        return (len(self), self.session_count)

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

    def restore(self, piece: EntryPiece | RecordPiece) -> None:
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
            self._free[record.key] = data
            self._count_in(data)
        elif isinstance(record, SessionRecord):
            self._sessions[record.session].outcomes[record.sequence] = data
            self._outcomes_of_sessions += 1
            self._count_in(data)
        else:
            born = record.born if isinstance(record, SessionHead) else 0
            session = _Session(record.low, record.epoch, born, {})
            self._sessions[record.session] = session
            self._toggle_head(record.session, session)

    # --- inside ---

    def _recall_in_session(
        self, name: SessionKey, fingerprint: bytes, *, unborn: bool
    ) -> Outcome | None:
        session = self._sessions.get(name.session)
        if session is not None and name.born != session.born:
            return _KEY_REUSED
        if name.sequence < (name.low if session is None else max(name.low, session.low)):
            return _BELOW_LOW
        if session is None:
            refused = None if unborn else self._refused_for_birth(name.born)
            if refused is None and (
                len(self._sessions) >= self._limits.sessions_max or self._is_out_of_bytes()
            ):
                refused = _TABLE_FULL
            if refused is not None:
                return refused
            session = _Session(name.low, self.epoch, name.born, {})
            self._sessions[name.session] = session
            self._toggle_head(name.session, session)
        else:
            self._use(name, session)
        record = session.outcomes.get(name.sequence)
        if record is not None:
            return _answer(record, fingerprint)
        if len(session.outcomes) >= self._limits.session_outcomes_max or self._is_out_of_bytes():
            return _TABLE_FULL
        return None

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
            self._count_out(outcomes.pop(sequence))
        self._outcomes_of_sessions -= len(answered)

    def _is_out_of_bytes(self) -> bool:
        return self.bytes >= self._limits.outcome_bytes_max

    def _count_in(self, record: bytes) -> None:
        self.bytes += len(record)
        self.hash ^= mmh3_x64_128_uintdigest(record)

    def _count_out(self, record: bytes) -> None:
        self.bytes -= len(record)
        self.hash ^= mmh3_x64_128_uintdigest(record)

    def _toggle_head(self, name: str, session: _Session) -> None:
        """Take a session's head into the hash, or out of it: exclusive or undoes itself."""
        self.hash ^= mmh3_x64_128_uintdigest(_encode_head(name, session))


def _encode_head(name: str, session: _Session) -> bytes:
    if session.born:
        return _encode(SessionHead(name, session.low, session.epoch, session.born))
    return _encode(UnbornHead(name, session.low, session.epoch))


def _answer(data: bytes, fingerprint: bytes) -> Outcome:
    record = _decode_record(data)
    if isinstance(record, UnbornHead | SessionHead) or record.fingerprint != fingerprint:
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
