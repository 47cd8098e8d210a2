"""The moves that a search has not placed yet, in the order in which operations began and ended.

A doubly linked list of begins and ends, from which an operation is lifted and into which it is put
back in constant time (Lowe, "Testing for Linearizability", section 4). Moves of unknown outcome
have no end and need not be placed; they are kept beside the list.
"""

import math
from collections.abc import Hashable, Sequence
from typing import Any

from raftkv.check.model import Move, Rank


class Entry:
    """The begin or the end of a required move."""

    __slots__ = (
        "after",
        "apply",
        "before",
        "bit",
        "deadline",
        "end",
        "move",
        "pure",
        "rank",
        "value",
    )

    def __init__(self, move: Move | None) -> None:
        self.move = move
        self.apply: Any = move and move.action.apply
        self.pure = move is not None and move.action.pure
        self.before = self.after = self
        self.end: Entry | None = None
        """Of a begin; None marks an end."""
        self.deadline = math.inf
        """The place of the end among all begins and ends; of both."""
        self.bit = 0
        """Which of the begins of required moves it is."""
        self.rank: int | None = None
        self.value: int | None = None


class Option:
    """A move of unknown outcome."""

    __slots__ = ("apply", "bit", "move", "place", "twins", "value")

    def __init__(self, move: Move, place: int, bit: int, twins: "Twins") -> None:
        self.move = move
        self.place = place
        self.apply: Any = move.action.apply
        self.bit = bit
        self.twins = twins
        self.value: int | None = None


class Twins:
    """Moves of unknown outcome that can stand for each other, by begin; the first are used."""

    __slots__ = ("options", "used")

    def __init__(self) -> None:
        self.options: list[Option] = []
        self.used = 0

    def first(self, deadline: float, skip: int = 0) -> Option | None:
        """Return the first unused one that began before ``deadline``, after skipping some."""
        number = self.used + skip
        if number >= len(self.options) or self.options[number].place > deadline:
            return None
        return self.options[number]


class Worklist:
    """The list, and the moves of unknown outcome."""

    def __init__(self, moves: Sequence[Move]) -> None:
        self.head = Entry(None)
        """Before the first entry; the list is a ring, so that every entry has two neighbours."""
        self.twins: list[Twins] = []
        """By the begin of the first of each."""
        self.ranks: list[int] = []
        """Of all required moves, rising."""
        self.required = 0
        """How many must be placed."""
        self.unseen: list[int] = []
        """For each ``Move.value``, as a number: how many moves that saw it are to be placed."""
        self._values: dict[Hashable, int] = {}
        self._build(moves)

    def lift(self, entry: Entry) -> None:
        """Take the begin and the end of a move off the list."""
        _unlink(entry)
        if entry.end is not None:
            _unlink(entry.end)

    def put_back(self, entry: Entry) -> None:
        """Undo the last ``lift`` that is not undone, which was of this entry."""
        if entry.end is not None:
            _relink(entry.end)
        _relink(entry)

    def _build(self, moves: Sequence[Move]) -> None:
        ranks = sorted({move.rank for move in moves if move.rank is not None})
        numbers = {rank: number for number, rank in enumerate(ranks)}
        begins: dict[int, Entry] = {}
        twins_of: dict[Hashable, Twins] = {}
        options = 0
        for place, (move, is_end) in enumerate(_in_time(moves)):
            if is_end:
                self._append_end(begins[move.operation.index], place)
            elif move.required:
                begins[move.operation.index] = self._append_begin(move, numbers)
            else:
                self._add_option(move, place, options, twins_of)
                options += 1
        self.ranks.sort()

    def _append_begin(self, move: Move, numbers: dict[Rank, int]) -> Entry:
        entry = Entry(move)
        entry.bit = self.required
        self.required += 1
        if move.rank is not None:
            entry.rank = numbers[move.rank]
            self.ranks.append(entry.rank)
        entry.value = self._number(move.value)
        if entry.value is not None:
            self.unseen[entry.value] += entry.pure
        self._append(entry)
        return entry

    def _append_end(self, begin: Entry, place: int) -> None:
        begin.end = end = Entry(begin.move)
        begin.deadline = end.deadline = place
        self._append(end)

    def _append(self, entry: Entry) -> None:
        entry.before, entry.after = self.head.before, self.head
        _relink(entry)

    def _add_option(
        self, move: Move, place: int, bit: int, twins_of: dict[Hashable, Twins]
    ) -> None:
        kind: Hashable = move.action if move.twin is None else move.twin
        twins = twins_of.get(kind)
        if twins is None:
            twins = twins_of[kind] = Twins()
            self.twins.append(twins)
        option = Option(move, place, bit, twins)
        option.value = self._number(move.value)
        twins.options.append(option)

    def _number(self, value: Hashable | None) -> int | None:
        if value is None:
            return None
        number = self._values.setdefault(value, len(self._values))
        if number == len(self.unseen):
            self.unseen.append(0)
        return number


def _unlink(entry: Entry) -> None:
    entry.before.after = entry.after
    entry.after.before = entry.before


def _relink(entry: Entry) -> None:
    entry.before.after = entry
    entry.after.before = entry


def _in_time(moves: Sequence[Move]) -> list[tuple[Move, bool]]:
    """Return begins (False) and ends (True) in their order.

    Where nothing tells the order of two events, begins are first, which makes their operations
    overlap: that permits more, so no violation comes of it. A move that must have happened, though
    its operation never ended, ends after everything else.
    """
    moments: list[tuple[float, int, bool, int]] = []
    for number, move in enumerate(moves):
        operation = move.operation
        moments.append((operation.invoked_ns, operation.invoked_at, False, number))
        if move.required:
            ended = math.inf if operation.completed_ns is None else operation.completed_ns
            moments.append((ended, operation.completed_at, True, number))
    return [(moves[number], is_end) for _, _, is_end, number in sorted(moments)]
