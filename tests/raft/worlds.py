"""A small cluster in one process on simulated time and network, stock or ours.

Hazard scenarios (``scenarios.py``) speak to this interface only, so that exactly the same story is
told to stock PySyncObj, where it must end badly, and to raftkv, where it must not.

Writes are named: the write ``"x3"`` stores that name, and :meth:`World.values` gives the names
that a replica has applied, in order; a name twice if it was applied twice.
"""

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Literal

from raftkv.sim.clock import SimClock
from raftkv.sim.network import SimNetwork

Answer = Literal["ok", "no", "unknown"]
"""What a writer is told: applied, definitely not applied, or that nobody knows."""

STEP_S = 0.01
"""Resolution of simulated time."""

DELIVERIES_MAX = 2000
"""Messages delivered within one step of time at most."""

ELECTION_S = 1.0
"""Longer than any election time-out of the worlds."""


class World(ABC):
    """Replicas by name, and everything that can happen to them."""

    def __init__(self, names: str) -> None:
        self.clock = SimClock()
        self.network: SimNetwork[Any] = SimNetwork()
        self.names = tuple(names)
        self.live: set[str] = set()
        self.answers: dict[str, list[Answer]] = {}
        self.errors: list[BaseException] = []
        self.leaders: dict[int, set[str]] = {}
        """Term to everyone who was seen leading in it."""

    # --- to be provided ----------------------------------------------------------------------

    @abstractmethod
    def start(self, name: str) -> None:
        """Start the replica on whatever its disk holds; links stay down."""

    @abstractmethod
    def crash(self, name: str) -> None:
        """Kill -9: memory and messages are gone, what the kernel was given stays."""

    @abstractmethod
    def turn(self, name: str) -> None:
        """One turn of the replica's event loop: timers, disk, proposals, applying."""

    @abstractmethod
    def submit(self, name: str, value: str, done: Callable[[Answer], None], size: int) -> None:
        """Hand a write of about ``size`` bytes to the replica; ``done`` gets its outcome."""

    @abstractmethod
    def values(self, name: str) -> list[str]:
        """The writes that the replica's state holds, in order of application."""

    @abstractmethod
    def leads(self, name: str) -> bool:
        """Whether the replica believes that it leads."""

    @abstractmethod
    def term(self, name: str) -> int:
        """The replica's current term."""

    @abstractmethod
    def expire(self, name: str) -> None:
        """Let this replica's election time-out come before all others'."""

    @abstractmethod
    def read(self, name: str) -> "Read":
        """Ask the replica for its state, as a client that wants a linearizable answer."""

    @abstractmethod
    def compact(self, name: str, *, finish: bool = True) -> None:
        """Write a snapshot and trim the log; unless ``finish``, stop before the log is trimmed."""

    @abstractmethod
    def damage_snapshot(self, name: str) -> None:
        """Let the middle of the replica's snapshot file become unreadable."""

    @abstractmethod
    def write_back(self, name: str, *, log: bool = True) -> None:
        """The kernel writes dirty pages back, of its own choosing: all, or all but the log's."""

    @abstractmethod
    def lose_power(self, name: str) -> None:
        """Crash, and forget everything that was neither synced nor written back."""

    @abstractmethod
    def fill_disk(self, name: str) -> None:
        """Let the replica's log writes fail for want of space, from now on."""

    @abstractmethod
    def free_disk(self, name: str) -> None:
        """Make space on the replica's disk again."""

    @abstractmethod
    def stall_disk(self, name: str) -> None:
        """Let nothing more become durable on the replica's disk, without telling it why."""

    @abstractmethod
    def wipe(self, name: str) -> None:
        """Crash, and put an empty disk in place of the replica's."""

    # --- time, messages, elections -----------------------------------------------------------

    def start_all(self) -> None:
        """Start and connect everyone."""
        for name in self.names:
            self.start(name)
        self.network.connect_all()

    def run(self, seconds: float, until: Callable[[], bool] | None = None) -> bool:
        """Let time pass with everything that can be delivered being delivered.

        Replicas take a turn at every time step and after every message, as a busy process would.
        Stops as soon as ``until`` holds, in the middle of whatever goes on; returns whether.
        """
        for _ in range(round(seconds / STEP_S)):
            self.clock.advance(STEP_S)
            for name in sorted(self.live):
                self._turn(name)
                if until is not None and until():
                    return True
            if self.deliver(until=until):
                return True
        return until is None

    def deliver(self, until: Callable[[], bool] | None = None) -> bool:
        """Deliver what is in flight, one message and one turn of its receiver at a time."""
        for _ in range(DELIVERIES_MAX):
            link = self.network.deliver_oldest()
            if link is None:
                return False
            self._turn(link.target)
            if until is not None and until():
                return True
        return False  # a busy network is cut off here, so that time goes on

    def deliver_link(self, source: str, target: str, count: int = 1) -> int:
        """Deliver messages of one direction, held or not, with turns of the receiver."""
        delivered = 0
        while delivered < count and self.network.deliver_link(source, target):
            self._turn(target)
            delivered += 1
        return delivered

    def elect(self, name: str) -> None:
        """Let ``name`` win an election among those it is connected to; nobody else stands."""
        for _ in range(20):
            if self.campaign(name):
                return
        raise AssertionError(f"{name} cannot be elected; terms {[self.term(n) for n in self.live]}")

    def campaign(self, name: str) -> bool:
        """Let ``name`` stand for election once; returns whether it leads."""
        self.clock.advance(ELECTION_S)  # leaders that others have heard of are old news by now
        self.expire(name)
        for _ in range(10):
            self._turn(name)
            self.deliver(until=lambda: self.leads(name))
            if self.leads(name):
                return True
        return False

    # --- writes ------------------------------------------------------------------------------

    def propose(self, name: str, *values: str, size: int = 0) -> None:
        """Hand writes to a replica and remember every outcome that it reports."""
        for value in values:
            outcomes = self.answers.setdefault(value, [])
            self.submit(name, value, outcomes.append, size)

    def write(self, name: str, *values: str) -> None:
        """Propose one by one and wait until each is acknowledged."""
        for value in values:
            self.propose(name, value)
            if not self.run(5.0, until=partial(self.is_acknowledged, value)):
                raise AssertionError(f"{value} is not acknowledged: {self.answers[value]}")

    def is_acknowledged(self, value: str) -> bool:
        """Whether the writer of ``value`` was told of success."""
        return "ok" in self.answers[value]

    @property
    def acknowledged(self) -> set[str]:
        """The writes whose writers were told of success."""
        return {value for value in self.answers if self.is_acknowledged(value)}

    # --- inside ------------------------------------------------------------------------------

    def _turn(self, name: str) -> None:
        if name not in self.live:
            return
        with self.catching():
            self.turn(name)
        if self.leads(name):
            self.leaders.setdefault(self.term(name), set()).add(name)

    @contextlib.contextmanager
    def catching(self) -> Iterator[None]:
        """Go on after an exception, as PySyncObj's own thread and transports do; keep it."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 -- whatever it is, the scenario may look at it
            self.errors.append(error)


class Read:
    """A read on its way: ``values`` is None until, and unless, it is answered."""

    def __init__(self) -> None:
        self.values: list[str] | None = None


MakeWorld = Callable[..., World]
"""Builds a started world: ``make("abc")``; keywords as the kind of world needs them."""


# --- harm: what must never be ---------------------------------------------------------------


def lost(world: World, prefix: str = "") -> set[str]:
    """Acknowledged writes that a live leader does not hold."""
    harm: set[str] = set()
    newest = max((world.term(name) for name in world.live if world.leads(name)), default=0)
    for name in world.live:
        if world.leads(name) and world.term(name) == newest:
            harm |= world.acknowledged - set(world.values(name))
    return {value for value in harm if value.startswith(prefix)}


def applied_twice(world: World) -> set[str]:
    """Writes that some live replica applied more than once."""
    harm: set[str] = set()
    for name in world.live:
        values = world.values(name)
        harm |= {value for value in values if values.count(value) > 1}
    return harm


def two_leaders(world: World) -> dict[int, set[str]]:
    """Terms in which more than one replica led (Raft paper, figure 3: election safety)."""
    return {term: names for term, names in world.leaders.items() if len(names) > 1}


def unanswered(world: World) -> set[str]:
    """Writes whose writers were never told anything."""
    return {value for value, outcomes in world.answers.items() if not outcomes}


def belied(world: World) -> set[str]:
    """Writes reported as definitely not applied that some live replica applied."""
    applied = {value for name in world.live for value in world.values(name)}
    return {value for value, outcomes in world.answers.items() if "no" in outcomes} & applied
