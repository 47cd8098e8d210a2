"""What the judge needs to know of an object: its states, and what each operation does to them.

A model turns the operations of one key into moves. A move has an action, which maps a state to the
next one or refuses it: an action refuses exactly when the object in that state could not have given
the answer that the client got.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from raftkv.check.event import FAIL, INFO, HistoryError
from raftkv.check.history import Operation

State = Hashable
"""A state of an object; never None."""

Frozen = Hashable
"""A value of a history, made hashable."""

Rank = tuple[float, int]
"""Where a move stands in every order that explains the history."""

NOT_JUDGED = "stale_read"
"""Operations of this name may be in any history. They promise no linearizability."""


class Action(Hashable, Protocol):
    """What an operation did. Equal actions are interchangeable, so they hash and compare."""

    @property
    def pure(self) -> bool:
        """Whether it changes no object, in any state; it may still tell more about the state."""
        ...

    def apply(self, state: Any) -> State | None:
        """Return the state after it, or None if it cannot have happened in ``state``."""
        ...


@dataclass(frozen=True, slots=True)
class Move:
    """One operation as the search sees it."""

    operation: Operation
    action: Action
    required: bool = True
    """Whether it must have taken effect. One of unknown outcome need not."""
    rank: Rank | None = None
    """If the answers themselves give away an order: moves that have a rank took effect by rising
    ranks if the history can be explained at all, in any order among those of the same rank."""
    value: Hashable | None = None
    """If only one move of the problem makes the state have this value: of that move what it makes,
    of pure ones what they saw."""
    twin: Hashable | None = None
    """Of a move of unknown outcome: others with an equal one can stand for it; by default those
    with the same action."""


def accepts_not(state: State, action: Action) -> int:
    """Return 0 if the action fits the state, 1 otherwise: the plainest distance."""
    return int(action.apply(state) is None)


@dataclass(frozen=True, slots=True)
class Problem:
    """What a search has to solve: the operations of one key."""

    initial: State
    moves: Sequence[Move]
    """Of all operations that say something."""
    show: Callable[[Any], str]
    """Says what a state is, to follow the words "the key"."""
    distance: Callable[[Any, Any], int] = accepts_not
    """Estimates how far a state is from one that an action accepts. A guide, it decides nothing."""


class Model(ABC):
    """A sequential object."""

    name: ClassVar[str]

    @abstractmethod
    def problem(self, operations: Sequence[Operation]) -> Problem:
        """Return what it takes to explain the operations of one key.

        Raises:
            HistoryError: an operation is none of this object.
        """


@dataclass(frozen=True, slots=True)
class Never:
    """The action of an answer that no state gives."""

    pure: ClassVar[bool] = True

    def apply(self, state: State) -> None:
        """Refuse."""


def freeze(value: Any) -> Frozen:
    """Return a hashable stand-in for a JSON value: equal ones are the same JSON.

    Text, integers and null stand for themselves. The rest must not be compared as Python does, to
    whom 1, 1.0 and true are equal.
    """
    if value is None or type(value) in (str, int):
        return value  # type: ignore[no-any-return]
    return ("json", json.dumps(value, sort_keys=True))


def shown(value: Any) -> str:
    """Return a value, frozen or not, for a person: on one line and not too long."""
    text = value[1] if isinstance(value, tuple) else json.dumps(value, ensure_ascii=False)
    if not text.isprintable():
        text = json.dumps(json.loads(text))  # with escapes: it may go to a terminal
    return text if len(text) <= 80 else f"{text[:50]} ... {text[-25:]}"  # noqa: PLR2004 -- a line


def unjudged(operation: Operation, *, harmless: tuple[str, ...]) -> bool:
    """Whether an operation can be left out, whatever the object.

    ``harmless`` names the operations that change nothing: without an answer they say nothing. What
    certainly did not happen says nothing either; a model that learns from refusals asks before.
    """
    return (
        operation.f == NOT_JUDGED
        or operation.status == FAIL
        or (operation.status == INFO and operation.f in harmless)
    )


def malformed(operation: Operation, wish: str) -> HistoryError:
    """Return the error for an operation that its model cannot read."""
    where = f"operation {operation.index} (process {operation.process}, {operation.f}"
    where += f" of {shown(operation.key)}" if operation.key is not None else ""
    return HistoryError(f"{where}): {wish}")


def unheard_of(operation: Operation, model: Model, known: Sequence[str]) -> HistoryError:
    """Return the error for an operation that its model does not have."""
    return malformed(operation, f"the model {model.name} has only {', '.join(known)}")
