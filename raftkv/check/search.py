"""The search for an order of operations that explains what clients saw.

Wing and Gong, "Testing and Verifying Concurrent Objects" (JPDC 1993): take any operation that began
before the first end of one not yet taken; if the object could have answered so, take it off the
list and go on with the rest; where nothing fits, put the last one back and try another. Lowe,
"Testing for Linearizability" (CCPE 2017): remember every configuration (set of operations taken,
state), and never search from one twice.

Added to that, without losing an explanation or inventing one:

- An answer that changes no object and fits now is taken, and nothing else is tried: it can be
  brought to the front of any explanation of the rest. (A write that happens to leave the state as
  it is cannot: it may be needed later, where it changes it.)
- The one that ends first is tried first, as it must be taken before anything that is not in reach
  yet; if it does not fit, then those after which it does.
- Moves of unknown outcome are tried last, and only if they let another move do what it could not
  do without them. In an explanation with the fewest of them each is followed by one that needs it.
- Of moves of unknown outcome with the same action only the one that began first is tried: they have
  no end, so in any explanation they can change places.
- A configuration is not searched from if it was seen with fewer moves of unknown outcome used up:
  what explains the rest now would have explained it then.
- Only moves of the lowest rank left are tried, and a value that only one move makes is not replaced
  until all who saw it are placed; see ``Move``.
"""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from raftkv.check.model import Move, Problem, State
from raftkv.check.verdict import Verdict
from raftkv.check.worklist import Entry, Option, Worklist

_STEPS_PER_LOOK_AT_THE_CLOCK = 64


class OutOfRoomError(Exception):
    """The search remembers as many configurations as it may."""


@dataclass(frozen=True, slots=True)
class Partial:
    """How far into the history a search has come."""

    linearization: tuple[int, ...]
    """``Operation.index`` in the order in which they took effect."""
    state: State
    blocked: Move | None
    """Of the moves that are not placed, the one that ended first. Those that ended before are."""


class _Configuration(NamedTuple):
    """Which moves are placed, and what state they lead to.

    Of the required moves, numbered by their begin, all below ``base`` are placed, and those of
    ``window``, whose lowest bit is number ``base``. The window is about as wide as there are
    clients; a set of all moves would take the more memory the longer the history is.
    """

    base: int
    window: int
    state: State
    options: int
    """The moves of unknown outcome that are used up, as bits."""
    value: int | None
    """What the last move that was not pure made, if nothing else makes it."""

    def after_required(self, entry: Entry, state: State) -> "_Configuration":
        window = self.window | 1 << (entry.bit - self.base)
        ones = (~window & (window + 1)).bit_length() - 1
        value = self.value if entry.pure else entry.value
        return _Configuration(self.base + ones, window >> ones, state, self.options, value)

    def after_option(self, option: Option, state: State) -> "_Configuration":
        options = self.options | 1 << option.bit
        return _Configuration(self.base, self.window, state, options, option.value)


_Choice = tuple[Entry | Option, State]


class Search:
    """A search that can be interrupted and goes on where it was."""

    def __init__(self, problem: Problem) -> None:
        self._distance = problem.distance
        self._list = Worklist(problem.moves)
        self._now = _Configuration(0, 0, problem.initial, 0, None)
        self._placed: list[tuple[Entry | Option, _Configuration]] = []
        """Each with the configuration before it."""
        self._placed_required = 0
        self._placed_ranked = 0
        self._seen: dict[tuple[int, int, State], tuple[int, ...]] = {}
        self._choices = [self._candidates()]
        """What is left to try, at the start and after each of those placed."""
        self._best_deadline = -1.0
        self._best = Partial((), problem.initial, None)

    @property
    def configurations(self) -> int:
        """How many configurations it remembers."""
        return len(self._seen)

    def best(self) -> Partial:
        """Return the furthest partial linearization so far; all of it after ``VALID``."""
        self._note_best()
        return self._best

    def run(self, deadline_s: float, room: int) -> Verdict | None:
        """Search until ``time.monotonic()`` is ``deadline_s``; None if that is too soon to tell.

        Raises:
            OutOfRoomError: it came to remember more than ``room`` configurations.
        """
        steps = 0
        while self._placed_required < self._list.required:
            choice = next(self._choices[-1], None)
            if choice is not None:
                self._place(*choice)
            elif self._placed:
                self._step_back()
            else:
                return Verdict.VIOLATION
            steps += 1
            if steps % _STEPS_PER_LOOK_AT_THE_CLOCK == 0:
                if len(self._seen) > room:
                    raise OutOfRoomError
                if time.monotonic() > deadline_s:
                    return None
        return Verdict.VALID

    # --- taking and putting back

    def _place(self, move: Entry | Option, state: State) -> None:
        before = self._now
        if isinstance(move, Entry):
            now = before.after_required(move, state)
            if self._is_known(now):
                return
            self._list.lift(move)
            self._count(move, 1)
        else:
            now = before.after_option(move, state)
            if self._is_known(now):
                return
            move.twins.used += 1
        self._now = now
        self._placed.append((move, before))
        self._choices.append(self._candidates())

    def _step_back(self) -> None:
        self._note_best()
        self._choices.pop()
        move, self._now = self._placed.pop()
        if isinstance(move, Entry):
            self._list.put_back(move)
            self._count(move, -1)
        else:
            move.twins.used -= 1

    def _count(self, entry: Entry, placed: int) -> None:
        self._placed_required += placed
        if entry.rank is not None:
            self._placed_ranked += placed
        if entry.pure and entry.value is not None:
            self._list.unseen[entry.value] -= placed

    def _is_known(self, configuration: _Configuration) -> bool:
        """Whether it was seen with no other moves of unknown outcome used up; now it is."""
        key, options = configuration[:3], configuration.options
        seen = self._seen.get(key)
        if seen is None:
            self._seen[key] = (options,)
            return False
        if any(used & ~options == 0 for used in seen):
            return True
        self._seen[key] = (*(used for used in seen if options & ~used), options)
        return False

    def _note_best(self) -> None:
        end = self._first_end()
        deadline = math.inf if end.move is None else end.deadline
        if deadline <= self._best_deadline:
            return
        self._best_deadline = deadline
        order = tuple(entry.move.operation.index for entry, _ in self._placed if entry.move)
        self._best = Partial(order, self._now.state, end.move)

    def _first_end(self) -> Entry:
        """Return the first end in the list, or its head if it is empty."""
        entry = self._list.head.after
        while entry.end is not None:
            entry = entry.after
        return entry

    # --- what to try

    def _candidates(self) -> Iterator[_Choice]:
        """Yield the moves that can be next, each with the state after it, best first.

        A generator, as most often the first one is right. It is asked again only when the search
        is back at this configuration.
        """
        state = self._now.state
        pending = self._pending()
        enabled: list[tuple[Entry, State]] = []
        for entry in pending:
            after = entry.apply(state)
            if after is None:
                continue
            if entry.pure and after == state:
                yield entry, after
                return
            enabled.append((entry, after))
        yield from self._by_distance(enabled, pending)

    def _pending(self) -> list[Entry]:
        """Return the begins before the first end, of moves that nothing forbids."""
        entry = self._list.head.after
        found = []
        while entry.end is not None:
            found.append(entry)
            entry = entry.after
        if self._placed_ranked < len(self._list.ranks):
            lowest = self._list.ranks[self._placed_ranked]
            found = [entry for entry in found if entry.rank is None or entry.rank == lowest]
        if self._must_stay():
            found = [entry for entry in found if entry.pure]
        return found

    def _must_stay(self) -> bool:
        """Whether the value that is there now will be seen, and will not come again."""
        value = self._now.value
        return value is not None and self._list.unseen[value] > 0

    def _by_distance(
        self, enabled: list[tuple[Entry, State]], pending: list[Entry]
    ) -> Iterator[_Choice]:
        """Yield first what brings the state closest to what the first end needs."""
        end = self._first_end()
        if end.move is None:
            return
        goal = end.move.action
        near: list[_Weighed] = []
        far: list[_Weighed] = []
        for entry, after in enabled:
            if entry.end is end:
                yield entry, after
                continue
            distance = self._distance(after, goal)
            (far if distance else near).append((distance, 0, entry.deadline, (entry, after)))
        yield from _in_order(near)
        for option, after in self._options(pending):
            far.append((self._distance(after, goal), 1, option.place, (option, after)))
        yield from _in_order(far)

    def _options(self, pending: list[Entry]) -> Iterator[tuple[Option, State]]:
        """Yield the moves of unknown outcome that help another move."""
        if self._must_stay():
            return
        state, deadline = self._now.state, self._first_end().deadline
        tried = [(entry.apply, entry.apply(state)) for entry in pending]
        options = self._first_options(deadline)
        tried += [(option.apply, option.apply(state)) for option in options]
        for option, own in zip(options, tried[len(pending) :], strict=True):
            _, after = own
            if after is None or after == state:
                continue
            if self._helps_twin(option, after, deadline) or any(
                apply(after) not in (None, without)
                for apply, without in tried
                if apply is not own[0]
            ):
                yield option, after

    def _helps_twin(self, option: Option, after: State, deadline: float) -> bool:
        twin = option.twins.first(deadline, skip=1)
        return twin is not None and twin.apply(after) not in (None, twin.apply(self._now.state))

    def _first_options(self, deadline: float) -> list[Option]:
        """Return of each kind of option the first unused one."""
        found = []
        for twins in self._list.twins:
            if twins.options[0].place > deadline:
                break
            option = twins.first(deadline)
            if option is not None:
                found.append(option)
        return found


_Weighed = tuple[int, int, float, _Choice]
"""Distance, 1 for an option, deadline."""


def _in_order(weighed: list[_Weighed]) -> Iterator[_Choice]:
    weighed.sort(key=lambda choice: choice[:3])
    return (choice[3] for choice in weighed)
