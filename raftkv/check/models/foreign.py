"""The objects of histories that other tools recorded: a register with compare-and-set, and text."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from raftkv.check.event import INFO
from raftkv.check.history import Operation
from raftkv.check.model import (
    Action,
    Model,
    Move,
    Problem,
    State,
    freeze,
    malformed,
    shown,
    unheard_of,
    unjudged,
)


@dataclass(frozen=True, slots=True)
class _Read:
    state: State
    pure: ClassVar[bool] = True

    def apply(self, state: State) -> State | None:
        return state if state == self.state else None


@dataclass(frozen=True, slots=True)
class _Write:
    state: State
    pure: ClassVar[bool] = False

    def apply(self, _state: State) -> State:
        return self.state


@dataclass(frozen=True, slots=True)
class _Cas:
    old: State
    new: State
    pure: ClassVar[bool] = False

    def apply(self, state: State) -> State | None:
        return self.new if state == self.old else None


@dataclass(frozen=True, slots=True)
class _Append:
    text: str
    pure: ClassVar[bool] = False

    def apply(self, state: str) -> str:
        return state + self.text


class CasRegister(Model):
    """read, write and cas ``[old, new]`` of a value without revisions, at first null."""

    name = "cas-register"

    def problem(self, operations: Sequence[Operation]) -> Problem:
        """Say nothing of an order: values may come again."""
        judged = [op for op in operations if not unjudged(op, harmless=("read",))]
        moves = [Move(op, self._action(op), op.status != INFO) for op in judged]
        return Problem(_held(None), moves, lambda state: f"holds {shown(state[0])}")

    def _action(self, operation: Operation) -> Action:
        match operation.f, operation.value:
            case "read", _:
                return _Read(_held(operation.result))
            case "write", value:
                return _Write(_held(value))
            case "cas", [old, new]:
                return _Cas(_held(old), _held(new))
            case "cas", _:
                raise malformed(operation, "its value must be a list of the old value and the new")
        raise unheard_of(operation, self, ("read", "write", "cas"))


def _held(value: Any) -> State:
    """Return the state of holding a value: in a tuple, as null is a value and None no state."""
    return (freeze(value),)


class KeyValue(Model):
    """get, put and append of text, at first empty."""

    name = "kv"

    def problem(self, operations: Sequence[Operation]) -> Problem:
        """Say nothing of an order: texts can be made in several ways."""
        judged = [op for op in operations if not unjudged(op, harmless=("get",))]
        moves = [Move(op, self._action(op), op.status != INFO) for op in judged]
        return Problem("", moves, lambda state: f"holds {shown(state)}")

    def _action(self, operation: Operation) -> Action:
        match operation.f:
            case "get":
                return _Read(_text(operation, operation.result))
            case "put":
                return _Write(_text(operation, operation.value))
            case "append":
                return _Append(_text(operation, operation.value))
        raise unheard_of(operation, self, ("get", "put", "append"))


def _text(operation: Operation, value: Any) -> str:
    if isinstance(value, str | None):
        return value or ""
    raise malformed(operation, f"its value must be text, not {shown(value)}")
