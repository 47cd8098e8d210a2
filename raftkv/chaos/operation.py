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

Status = Literal["ok", "fail", "info"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """How an operation ended: the value of its completion, and more members of that event."""

    status: Status
    value: Any = None
    fields: Mapping[str, Any] = field(default_factory=dict)


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
    fields: dict[str, Any] = {"error": f"{type(error).__name__}: {error}"[:200]}
    if isinstance(error, PreconditionFailedError):
        return Outcome("fail", None, {**fields, "observed_revision": error.current_revision})
    definite = reads or isinstance(error, DefiniteError)
    return Outcome("fail" if definite else "info", None, fields)
