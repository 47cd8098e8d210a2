"""A register with revisions, compare-and-set and delete: what one key of raftkv is.

The revisions of a key strictly increase. They are compared by order only: between two of them there
may be any number of writes whose revision nobody told.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, NamedTuple

from raftkv.check.event import FAIL, INFO, OK
from raftkv.check.history import Operation
from raftkv.check.model import (
    Action,
    Frozen,
    Model,
    Move,
    Never,
    Problem,
    Rank,
    freeze,
    malformed,
    shown,
    unheard_of,
    unjudged,
)

_UNTOLD: Literal["untold"] = "untold"

ReportedRevision = int | Literal["untold"] | None
"""What an answer says of a revision: the revision, nothing, or (None) that there is no entry."""


class _State(NamedTuple):
    value: Frozen
    """None if there is no entry."""
    revision: int
    """If it is known, the entry's; otherwise the last that was known, which it exceeds."""
    presence: Literal["known", "unknown", "absent"]
    """Whether there is an entry, and whether its revision is known."""


def _seen(state: _State, told: ReportedRevision) -> _State | None:
    """Return the state that is left after an answer told the revision of the entry."""
    if told == _UNTOLD:
        return state
    if told is None:
        return state if state.presence == "absent" else None
    if state.presence == "known":
        return state if state.revision == told else None
    if state.presence == "unknown" and told > state.revision:
        return _State(state.value, told, "known")
    return None


def _written(state: _State, value: Frozen, told: ReportedRevision) -> _State | None:
    if not isinstance(told, int):
        return _State(value, state.revision, "unknown")
    return _State(value, told, "known") if told > state.revision else None


@dataclass(frozen=True, slots=True)
class _Read:
    value: Frozen
    revision: ReportedRevision
    pure: ClassVar[bool] = True

    def apply(self, state: _State) -> _State | None:
        return _seen(state, self.revision) if state.value == self.value else None


@dataclass(frozen=True, slots=True)
class _Write:
    value: Frozen
    revision: ReportedRevision
    pure: ClassVar[bool] = False

    def apply(self, state: _State) -> _State | None:
        return _written(state, self.value, self.revision)


@dataclass(frozen=True, slots=True)
class _Cas:
    expected: ReportedRevision
    value: Frozen
    revision: ReportedRevision
    pure: ClassVar[bool] = False

    def apply(self, state: _State) -> _State | None:
        seen = _seen(state, self.expected)
        return seen and _written(seen, self.value, self.revision)


@dataclass(frozen=True, slots=True)
class _Delete:
    """A delete that removed an entry, or, where nobody told, perhaps none."""

    expected: ReportedRevision
    revision: ReportedRevision
    removed: bool
    pure: ClassVar[bool] = False

    def apply(self, state: _State) -> _State | None:
        if self.removed and state.presence == "absent":
            return None
        seen = _seen(state, self.expected)
        if seen is None:
            return None
        if not isinstance(self.revision, int):
            return _State(None, seen.revision, "absent")
        return _State(None, self.revision, "absent") if self.revision > seen.revision else None


@dataclass(frozen=True, slots=True)
class _Refused:
    """A condition that did not hold: the revision expected, and the one that there was."""

    expected: ReportedRevision
    revision: ReportedRevision
    pure: ClassVar[bool] = True

    def apply(self, state: _State) -> _State | None:
        return None if self.revision == self.expected else _seen(state, self.revision)


@dataclass(frozen=True, slots=True)
class _Nothing:
    """A delete that found no entry."""

    revision: ReportedRevision = None
    pure: ClassVar[bool] = True

    def apply(self, state: _State) -> _State | None:
        return state if state.presence == "absent" else None


class Register(Model):
    """read, write, cas, delete; see docs/histories.md for their members."""

    name = "register"

    def problem(self, operations: Sequence[Operation]) -> Problem:
        """Rank by revision; settle which unknown writes must have happened, or do not matter."""
        moves = [
            _move(operation, action)
            for operation in operations
            if (action := self._action(operation)) is not None
        ]
        settled = _without_the_unseen(_informed(moves))
        return Problem(_State(None, -1, "absent"), settled, _show)

    def _action(self, operation: Operation) -> Action | None:
        if _tells_why_it_was_refused(operation):
            return _Refused(_expected(operation), _told(operation, "observed_revision"))
        if unjudged(operation, harmless=("read",)):
            return None
        revision = _told(operation, "revision") if operation.status == OK else _UNTOLD
        match operation.f:
            case "read":
                return _read(operation, revision)
            case "write":
                return _Write(freeze(operation.value), revision or _UNTOLD)
            case "cas":
                return _Cas(_expected(operation), _new_value(operation), revision or _UNTOLD)
            case "delete":
                return _delete(operation, revision or _UNTOLD)
        raise unheard_of(operation, self, ("read", "write", "cas", "delete"))


def _show(state: _State) -> str:
    if state.presence == "absent":
        return "does not exist"
    if state.presence == "known":
        return f"holds {shown(state.value)} at revision {state.revision}"
    return f"holds {shown(state.value)} at an unknown revision"


def _tells_why_it_was_refused(operation: Operation) -> bool:
    return (
        operation.f in ("cas", "delete")
        and operation.status == FAIL
        and "observed_revision" in operation.fields
    )


def _read(operation: Operation, revision: ReportedRevision) -> _Read:
    if revision is None and operation.result is not None:
        raise malformed(operation, "a value was read whose revision is null")
    return _Read(freeze(operation.result), revision)


def _delete(operation: Operation, revision: ReportedRevision) -> _Delete | _Nothing:
    if operation.status == INFO:
        return _Delete(_expected(operation), revision, removed=True)
    deleted = operation.fields.get("deleted")
    if deleted is False:
        return _Nothing()
    return _Delete(_expected(operation), revision, removed=deleted is True)


def _expected(operation: Operation) -> ReportedRevision:
    value = operation.value
    if operation.f == "delete" and value is None:
        return _UNTOLD
    if not isinstance(value, dict) or "expected_revision" not in value:
        raise malformed(operation, 'its value must be an object with "expected_revision"')
    return _checked(operation, "expected_revision", value["expected_revision"])


def _new_value(operation: Operation) -> Frozen:
    if "value" not in operation.value:
        raise malformed(operation, 'its value must be an object with "value"')
    return freeze(operation.value["value"])


def _told(operation: Operation, member: str) -> ReportedRevision:
    if member not in operation.fields:
        return _UNTOLD
    return _checked(operation, member, operation.fields[member])


def _checked(operation: Operation, member: str, told: object) -> int | None:
    if told is None or (type(told) is int and told >= 0):
        return told
    raise malformed(operation, f'"{member}" must be null or an integer from 0, not {shown(told)}')


def _move(operation: Operation, action: Action) -> Move:
    return Move(operation, action, operation.status != INFO, _rank(action))


def _rank(action: Action) -> Rank | None:
    """Return the place by revision: what makes one, what sees it, what ends it."""
    match action:
        case _Read(revision=int(revision)) | _Refused(revision=int(revision)):
            return revision, 1
        case _Write(revision=int(revision)) | _Cas(revision=int(revision)):
            return revision, 0
        case _Delete(revision=int(revision)):
            return revision, 0
        case _Cas(expected=int(expected)) | _Delete(expected=int(expected)):
            return expected, 2
    return None


class _Values:
    """Who wrote and who read each value."""

    def __init__(self, moves: Sequence[Move]) -> None:
        self._writers = Counter(
            m.action.value for m in moves if isinstance(m.action, _Write | _Cas)
        )
        self._revisions: dict[Frozen, set[ReportedRevision]] = defaultdict(set)
        for move in moves:
            if isinstance(move.action, _Read):
                self._revisions[move.action.value].add(move.action.revision)

    def is_read(self, value: Frozen) -> bool:
        return value in self._revisions

    def is_written(self, value: Frozen) -> bool:
        return self._writers[value] > 0

    def is_single(self, value: Frozen) -> bool:
        """Whether a value comes from one write. Null is also read where there is no entry."""
        return value is not None and self._writers[value] == 1

    def revision(self, value: Frozen) -> ReportedRevision:
        """Return the revision at which a value was read, if the reads agree."""
        told = {revision for revision in self._revisions[value] if isinstance(revision, int)}
        return told.pop() if len(told) == 1 else _UNTOLD


def _informed(moves: Sequence[Move]) -> list[Move]:
    """Add to each move what the others tell about it."""
    values = _Values(moves)
    return [_informed_move(move, values) for move in moves]


def _informed_move(move: Move, values: _Values) -> Move:
    action = move.action
    if not isinstance(action, _Read | _Write | _Cas):
        return move
    if isinstance(action, _Read):
        if action.value is not None and not values.is_written(action.value):
            return replace(move, action=Never())
    elif not move.required:
        if not values.is_read(action.value):
            # Who cannot be told apart by what was read can stand for each other.
            return replace(move, twin=(type(action), getattr(action, "expected", None)))
        if values.is_single(action.value):
            # It must have happened.
            action = replace(action, revision=values.revision(action.value))
            move = replace(move, action=action, required=True, rank=_rank(action))
    return replace(move, value=action.value) if values.is_single(action.value) else move


def _without_the_unseen(moves: list[Move]) -> list[Move]:
    """Leave out unknown writes of values that nobody read, if nothing else can tell them.

    An explanation that has such a write W has one without it. Take what follows W next. It is no
    read, as that would have returned W's value. A write fits whatever was there before it. That
    leaves answers that name a revision without a value, or say that something was deleted: if each
    of those revisions is known to belong to another value, and no delete says only that there was
    something, none of them fits after W.
    """
    known = {
        move.action.revision
        for move in moves
        if isinstance(move.action, _Read | _Write | _Cas) and move.required
    }
    if any(_may_see_any_write(move, known) for move in moves):
        return moves
    return [move for move in moves if move.twin is None]


def _may_see_any_write(move: Move, known: set[ReportedRevision]) -> bool:
    match move.action:
        case _Delete(expected="untold", removed=True):
            # One of unknown outcome can be left out together with the write, or fits without it.
            return move.required
        case _Refused(revision=int(revision)):
            return revision not in known
        case _Cas(expected=int(expected)) | _Delete(expected=int(expected)):
            return expected not in known
    return False
