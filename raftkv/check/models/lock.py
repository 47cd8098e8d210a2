"""A lock: one holder at a time."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from raftkv.check.event import INFO
from raftkv.check.history import Operation
from raftkv.check.model import (
    Action,
    Frozen,
    Model,
    Move,
    Problem,
    freeze,
    shown,
    unheard_of,
    unjudged,
)

_State = tuple[Frozen, ...]
"""The holder, if there is one."""


@dataclass(frozen=True, slots=True)
class _Acquire:
    owner: Frozen
    pure: ClassVar[bool] = False

    def apply(self, state: _State) -> _State | None:
        return None if state else (self.owner,)


@dataclass(frozen=True, slots=True)
class _Release:
    owner: Frozen
    pure: ClassVar[bool] = False

    def apply(self, state: _State) -> _State | None:
        return () if state == (self.owner,) else None


class Lock(Model):
    """acquire and release, by the process or by the ``owner`` that the operation names.

    Nobody gets a lock twice, not even its holder. A refusal is not judged.
    """

    name = "lock"

    def problem(self, operations: Sequence[Operation]) -> Problem:
        """Say nothing of an order: the holders take turns."""
        judged = [op for op in operations if not unjudged(op, harmless=())]
        moves = [Move(op, self._action(op), op.status != INFO) for op in judged]
        return Problem((), moves, _show)

    def _action(self, operation: Operation) -> Action:
        owner = freeze(operation.fields.get("owner", operation.process))
        match operation.f:
            case "acquire":
                return _Acquire(owner)
            case "release":
                return _Release(owner)
        raise unheard_of(operation, self, ("acquire", "release"))


def _show(state: _State) -> str:
    return f"is held by {shown(state[0])}" if state else "is free"
