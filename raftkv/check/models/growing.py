"""A set that only grows, and a list that is only appended to.

As they only grow, the answers give most of the order away: of two reads the one that returned less
was first, and an element came before the first read that has it and after all that have not.
"""

import math
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from raftkv.check.event import OK
from raftkv.check.history import Operation
from raftkv.check.model import (
    Action,
    Frozen,
    Model,
    Move,
    Never,
    Problem,
    freeze,
    malformed,
    shown,
    unheard_of,
    unjudged,
)

_SHOWN_MAX = 5
"""So many elements of a state are shown."""


@dataclass(frozen=True, slots=True)
class _Read:
    state: int
    pure: ClassVar[bool] = True

    def apply(self, state: int) -> int | None:
        return state if state == self.state else None


@dataclass(frozen=True, slots=True)
class _Add:
    element: int
    """One bit."""
    pure: ClassVar[bool] = False

    def apply(self, state: int) -> int:
        return state | self.element


class _Sets:
    """Sets as integers: a bit for each element."""

    def __init__(self) -> None:
        self._bits: dict[Frozen, int] = {}

    def add(self, element: Frozen) -> Action:
        return _Add(self._bit(element))

    def read(self, elements: list[Frozen]) -> Action:
        # No set holds anything twice.
        if len(set(elements)) < len(elements):
            return Never()
        return _Read(sum(map(self._bit, elements)))

    def show(self, state: int) -> str:
        return _held([element for element, bit in self._bits.items() if state & bit])

    def _bit(self, element: Frozen) -> int:
        return self._bits.setdefault(element, 1 << len(self._bits))


@dataclass(frozen=True, slots=True)
class _Append:
    element: Frozen
    append: Callable[[int, Frozen], int | None] = field(compare=False)
    pure: ClassVar[bool] = False

    def apply(self, state: int) -> int | None:
        return self.append(state, self.element)


class _Lists:
    """Lists as numbers: the same number for the same list, 0 for the empty one.

    Nothing is appended but what leads to the longest list that was read, until that is reached.
    """

    def __init__(self, longest: list[Frozen]) -> None:
        self._numbers: dict[tuple[int, Frozen], int] = {}
        self._ends: list[tuple[int, Frozen]] = [(0, None)]
        """Of each list: what it is without its last element, and that element."""
        self._next: dict[int, Frozen] = {}
        """What must come next, of those that are shorter than the longest."""
        number = 0
        for element in longest:
            self._next[number] = element
            number = self._longer(number, element)

    def add(self, element: Frozen) -> Action:
        return _Append(element, self._append)

    def read(self, elements: list[Frozen]) -> Action:
        number = 0
        for element in elements:
            number = self._longer(number, element)
        return _Read(number)

    def show(self, state: int) -> str:
        elements = []
        while state:
            state, element = self._ends[state]
            elements.append(element)
        return _held(elements[::-1])

    def _append(self, number: int, element: Frozen) -> int | None:
        if self._next.get(number, element) != element:
            return None
        return self._longer(number, element)

    def _longer(self, number: int, element: Frozen) -> int:
        end = (number, element)
        found = self._numbers.get(end)
        if found is None:
            found = self._numbers[end] = len(self._ends)
            self._ends.append(end)
        return found


def _held(elements: list[Frozen]) -> str:
    if not elements:
        return "is empty"
    last = ", ".join(map(shown, elements[-_SHOWN_MAX:]))
    return f"holds {len(elements)} elements, at last {last}"


class _Growing(Model):
    """What both have in common."""

    adding: ClassVar[str]
    """The operation that adds an element."""

    @abstractmethod
    def _collections(self, reads: list[list[Frozen]]) -> _Sets | _Lists: ...

    @abstractmethod
    def _first_sizes(self, reads: list[list[Frozen]]) -> dict[Frozen, int]:
        """Return at which size of the collection each element must have been there."""

    def problem(self, operations: Sequence[Operation]) -> Problem:
        """Rank by size. Leave unknown elements out that nobody read: they only stand in the way."""
        judged = [op for op in operations if not unjudged(op, harmless=("read",))]
        for operation in judged:
            if operation.f not in ("read", self.adding):
                raise unheard_of(operation, self, ("read", self.adding))
        reads = [(op, _elements(op)) for op in judged if op.f == "read"]
        adds = [(op, freeze(op.value)) for op in judged if op.f == self.adding]
        found = [elements for _, elements in reads]
        known = self._collections(found)
        added = {element for _, element in adds}
        moves = [
            Move(op, known.read(seen) if added.issuperset(seen) else Never(), rank=(len(seen), 1))
            for op, seen in reads
        ]
        moves += _additions(adds, known, self._first_sizes(found))
        return Problem(0, moves, known.show)


def _additions(
    adds: list[tuple[Operation, Frozen]], known: _Sets | _Lists, first_sizes: dict[Frozen, int]
) -> list[Move]:
    times = Counter(element for _, element in adds)
    moves = []
    for operation, element in adds:
        certain, seen, single = operation.status == OK, element in first_sizes, times[element] == 1
        if certain or seen:
            # Of several that added the same, nobody knows which one was seen first.
            rank = (first_sizes.get(element, math.inf), 0) if single else None
            moves.append(Move(operation, known.add(element), certain or single, rank))
    return moves


class Set(_Growing):
    """add and read; elements may be any JSON."""

    name = "set"
    adding = "add"

    def _collections(self, _reads: list[list[Frozen]]) -> _Sets:
        return _Sets()

    def _first_sizes(self, reads: list[list[Frozen]]) -> dict[Frozen, int]:
        sizes: dict[Frozen, int] = {}
        for elements in sorted(reads, key=len):
            for element in elements:
                sizes.setdefault(element, len(elements))
        return sizes


class Append(_Growing):
    """append and read; elements may be any JSON."""

    name = "append"
    adding = "append"

    def _collections(self, reads: list[list[Frozen]]) -> _Lists:
        return _Lists(_longest(reads))

    def _first_sizes(self, reads: list[list[Frozen]]) -> dict[Frozen, int]:
        sizes: dict[Frozen, int] = {}
        for size, element in enumerate(_longest(reads), start=1):
            sizes.setdefault(element, size)
        return sizes


def _longest(reads: list[list[Frozen]]) -> list[Frozen]:
    return sorted(reads, key=len)[-1] if reads else []  # noqa: FURB192 -- mypy cannot type max


def _elements(operation: Operation) -> list[Frozen]:
    found = operation.result
    if found is None:
        return []
    if not isinstance(found, list):
        raise malformed(operation, f"it must have read a list or null, not {shown(found)}")
    return [freeze(element) for element in found]
