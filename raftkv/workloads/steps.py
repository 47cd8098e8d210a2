"""What workloads are made of: what they ask a store, what they are told, and what they work on.

A workload is a generator: it yields one thing to ask at a time and is sent the outcome. So the same
workload is driven by a thread that waits for a real cluster and by the loop of a simulation.
"""

from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any, Protocol

from raftkv.client.types import (
    Compare,
    Delete,
    DeleteResult,
    Get,
    KeyValue,
    Put,
    PutResult,
    RangeResult,
    TxnResult,
)

# --- to ask ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class StaleGet:
    """Read a key from any replica, as old as ``max_age_ms`` at most (None: of any age)."""

    key: str
    max_age_ms: int | None


@dataclass(frozen=True, slots=True)
class Scan:
    """All keys with a prefix, without their values."""

    prefix: str


@dataclass(frozen=True, slots=True)
class Page:
    """The first keys of ``start`` (included) to ``end``, as many as both limits allow."""

    start: bytes
    end: bytes
    limit: int
    bytes_max: int


@dataclass(frozen=True, slots=True)
class Span:
    """In a transaction: the first ``limit`` keys of ``start`` (included) to ``end``."""

    start: bytes
    end: bytes
    limit: int
    keys_only: bool = False


Part = Put | Delete | Get | Span


@dataclass(frozen=True, slots=True)
class Txn:
    """If every comparison holds do ``then``, else ``otherwise``, at once or not at all."""

    compare: tuple[Compare, ...]
    then: tuple[Part, ...]
    otherwise: tuple[Part, ...] = ()


@dataclass(frozen=True, slots=True)
class Write:
    """A write; a failure with the code ``refusal`` is an answer that was to be expected."""

    operation: Put | Delete | Txn
    refusal: str | None = None


@dataclass(frozen=True, slots=True)
class Batch:
    """Several operations in one request, each by itself; the answer is a list of outcomes."""

    operations: Sequence[Put | Delete | Get]


@dataclass(frozen=True, slots=True)
class Pause:
    """Nothing, for so many seconds: others go on."""

    seconds: float


Ask = Get | StaleGet | Scan | Page | Write | Batch | Pause

# --- to be told ------------------------------------------------------------------------------

Answer = KeyValue | PutResult | DeleteResult | TxnResult | RangeResult | Sequence["Outcome"] | None


@dataclass(frozen=True, slots=True)
class Outcome:
    """How it ended.

    ``status``: "ok" (it was done; ``answer`` is what it gave, None a missing key), "fail" (it
    certainly was not and will not be) or "info" (nobody knows). ``condition_failed``: the key was
    not as the write asked; ``observed_revision`` is what it had.
    """

    status: str
    answer: Answer = None
    detail: str = ""
    condition_failed: bool = False
    observed_revision: int | None = None

    @property
    def is_ok(self) -> bool:
        """Whether it was done."""
        return self.status == "ok"


Steps = Generator[Ask, Outcome, None]


class WrongAnswer(Exception):  # noqa: N818 -- the store's mistake, not the workload's
    """The store said what cannot be true, whatever else happened."""


# --- to work on ------------------------------------------------------------------------------


class Process(Protocol):
    """Who does it: one operation at a time."""

    number: int
    random: Random
    written: int
    """How many different values it has made."""


class Opened(Protocol):
    """An operation of the history that has begun."""

    f: str
    key: str
    value: Any

    def ok(self, value: Any = None, **fields: Any) -> None:
        """It took effect."""

    def fail(self, **fields: Any) -> None:
        """It certainly did not."""

    def refused(self, why: str) -> None:
        """It was not tried, as the state of the store was against it; nothing is wrong."""

    def not_ok(self, outcome: Outcome) -> None:
        """It did not, or nobody knows; whichever the client was told."""


class Recorder(Protocol):
    """Writes the history."""

    def begin(self, model: str, f: str, key: str, value: Any = None, **fields: Any) -> Opened:
        """An operation begins."""

    def keys(self, model: str) -> Iterable[str]:
        """The keys of a model's operations so far, each once, in their order."""


class Keys(Protocol):
    """Which keys are in use."""

    def take(self, kind: str, random: Random) -> str:
        """A key, or the name that several have in common, for one operation of a kind."""

    def beside(self, key: str) -> str:
        """Another one of the same kind."""

    def retire(self, key: str) -> None:
        """Use it no more, if that can be helped: nobody can say what became of it."""


class Staleness(Protocol):
    """Judges stale reads, and raises what it likes if one is too old."""

    def written(self, key: str, revision: int) -> None:
        """A write of ``key`` was acknowledged now."""

    def deleting(self, key: str) -> None:
        """A delete of ``key`` begins."""

    def deleted(self, key: str, revision: int | None) -> None:
        """It ended: with this revision, or (None) it certainly did nothing."""

    def oldest(self, key: str, max_age_ms: int | None) -> int:
        """The oldest revision that a read that begins now may return."""

    def check(self, key: str, oldest: int, revision: int | None, max_age_ms: int | None) -> None:
        """Compare what was read with what had to be seen."""


@dataclass(slots=True)
class Context:
    """What workloads work on; threads may share all of it but the recorder.

    Args:
        recorder: Writes the history.
        keys: Which keys are in use.
        staleness: Judges stale reads; without it there are none.
        batches: Whether the store has batches and takes large values.
        ranges: Whether it has ranges in transactions, and keys that are spread over shards.
        value_bytes: What large values have.
        shards: How many the store has.
    """

    recorder: Recorder
    keys: Keys
    staleness: Staleness | None = None
    batches: bool = False
    ranges: bool = False
    value_bytes: int = 6000
    shards: int = 1
    banks: dict[str, object] = field(default_factory=dict)
    """Those that somebody has begun to open."""

    def written(self, key: str, revision: int) -> None:
        """A write of ``key`` was acknowledged now."""
        if self.staleness is not None:
            self.staleness.written(key, revision)

    def deleting(self, key: str) -> None:
        """A delete of ``key`` begins."""
        if self.staleness is not None:
            self.staleness.deleting(key)

    def deleted(self, key: str, revision: int | None) -> None:
        """A delete of ``key`` ended: with this revision, or it certainly did nothing."""
        if self.staleness is not None:
            self.staleness.deleted(key, revision)


def value_of(process: Process) -> str:
    """A value that nobody else writes."""
    process.written += 1
    return f"{process.number}-{process.written}"


def range_in(outcome: Outcome) -> RangeResult | None:
    """The range among a transaction's results; None if there is none, or no answer."""
    if not isinstance(outcome.answer, TxnResult):
        return None
    ranges = (result for result in outcome.answer.results if isinstance(result, RangeResult))
    return next(ranges, None)
