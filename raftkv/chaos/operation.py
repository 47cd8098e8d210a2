"""One operation of a workload, and what the history may claim of it.

The rule: an error that is definite means ``fail``, a success means ``ok``, and everything else
(a lost answer, a time-out, an error that nobody expected) means ``info``: it may have taken effect
or may still do so.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from raftkv.chaos.store import Store
from raftkv.client import DefiniteError, PreconditionFailedError, RaftkvError

ERROR_CHARS_MAX = 200

Status = Literal["ok", "fail", "info"]

ENDS = ("ok", "condition not met", "refused", "unknown")
"""How operations end, as it is counted: a refusal and an unknown outcome are errors."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How an operation ended: the value of its completion, and more members of that event."""

    status: Status
    value: Any = None
    fields: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_error(self) -> bool:
        """Whether it ended otherwise than the state of the store explains."""
        return "error" in self.fields

    @property
    def end(self) -> str:
        """Which of :data:`ENDS` it is."""
        if self.status == "fail":
            return "refused" if self.is_error else "condition not met"
        return "ok" if self.status == "ok" else "unknown"


@dataclass(frozen=True, slots=True)
class Operation:
    """What to do and how the history names it.

    ``run`` does it; it may raise any :class:`~raftkv.client.RaftkvError`. ``reads`` says that it
    changes nothing, so that its failure is always definite. ``done`` hears the outcome.
    """

    model: str
    f: str
    key: str
    value: Any
    run: Callable[[Store], Outcome]
    reads: bool = False
    fields: Mapping[str, Any] = field(default_factory=dict)
    done: Callable[[Outcome], None] | None = None


def ok(value: Any = None, **fields: Any) -> Outcome:
    """It took effect."""
    return Outcome("ok", value, fields)


def refused(reason: str, **fields: Any) -> Outcome:
    """It did not take effect, as the state of the store was against it; nothing is wrong."""
    return Outcome("fail", None, {"reason": reason, **fields})


def perform(operation: Operation, store: Store) -> Outcome:
    """Run an operation to its outcome; never raises what a store may raise."""
    try:
        outcome = operation.run(store)
    except RaftkvError as error:
        outcome = outcome_of(error, reads=operation.reads)
    if operation.done is not None:
        operation.done(outcome)
    return outcome


def outcome_of(error: RaftkvError, *, reads: bool) -> Outcome:
    """What an error allows to be said of the operation that it ended."""
    if isinstance(error, PreconditionFailedError):
        return refused("the condition does not hold", observed_revision=error.current_revision)
    definite = reads or isinstance(error, DefiniteError)
    told = f"{type(error).__name__}: {error}"[:ERROR_CHARS_MAX]
    return Outcome("fail" if definite else "info", None, {"error": told})
