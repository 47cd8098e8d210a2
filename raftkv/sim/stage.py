"""What faults act on, and how they say that they were seen to take effect.

A fault is a function that does harm now and returns what undoes it. It says ``stage.seen()`` when
its harm has met somebody: a process that ended, a segment that silence held, an allocation that
found no room. A fault that was planned and met nobody has shown nothing, and is counted apart.
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from random import Random

from raftkv.rpc.messages import Request, Response
from raftkv.sim.client import Client
from raftkv.sim.loop import Handle
from raftkv.sim.machine import Machine
from raftkv.sim.world import World

Undo = Callable[[], None]

_AT_LEADER = 0.5
"""Share of faults that are aimed at somebody who leads."""

_AT_AIM = 0.75
"""Share of the faults of a burst that are aimed at the machine that the burst is about."""


@dataclass(slots=True)
class Effect:
    """How often one fault was seen to take effect."""

    times: int = 0

    def __call__(self) -> None:
        """It was seen."""
        self.times += 1


def _no_crowd(machine: Machine, count: int) -> None:
    """Nobody comes: there are no clients."""
    del machine, count


@dataclass(slots=True)
class Stage:
    """What faults act on; a copy for each fault, which share all but ``seen`` and ``aim``."""

    world: World
    saboteur: Client
    later: Callable[[float, Callable[[], None]], Handle]
    """Call something when so many seconds have passed."""
    start: Callable[..., object]
    """Run a coroutine beside everything else."""
    damaged: Callable[[Machine], None]
    """Say that a machine's disk was tampered with."""
    crowd: Callable[[Machine, int], None] = _no_crowd
    """Send so many clients more to one machine at once, each with an operation."""
    kept_down: dict[str, int] = field(default_factory=dict)
    """How many faults want this machine to stay down."""
    lost: set[str] = field(default_factory=set)
    """Machines whose disk was replaced by an empty one; they are strangers for ever."""
    seen: Effect = field(default_factory=Effect)
    """Called when the fault is seen to take effect."""
    aim: Machine | None = None
    """Whom most faults of this burst are meant for."""
    _to_come: list[Handle] = field(default_factory=list)

    def soon(self, after_s: float, harm: Callable[[], None]) -> None:
        """Do harm when so many seconds have passed, unless all is healed before."""
        self._to_come.append(self.later(after_s, harm))

    def spare(self) -> None:
        """Forget what was still to come."""
        for handle in self._to_come:
            handle.cancel()
        self._to_come.clear()

    def seen_if(self, what: object) -> None:
        """Say that the fault took effect if that is true."""
        if what:
            self.seen()

    def watch(self, count: Callable[[], int], undo: Undo) -> Undo:
        """Return ``undo``, before which is said whether ``count`` has grown since now."""
        before = count()

        def look_and_undo() -> None:
            self.seen_if(count() > before)
            undo()

        return look_and_undo

    # --- machines -----------------------------------------------------------------------------

    def machine(self, random: Random) -> Machine:
        """The machine that the burst is about, one that leads something, or any."""
        if self.aim is not None and self.aim.running and random.random() < _AT_AIM:
            return self.aim
        machines = list(self.world.machines.values())
        leading = [machine for machine in machines if machine.leads]
        return random.choice(leading if leading and random.random() < _AT_LEADER else machines)

    def others(self, *machines: Machine) -> list[Machine]:
        """All machines but these."""
        names = {machine.name for machine in machines}
        return [machine for name, machine in self.world.machines.items() if name not in names]

    def kill(self, machine: Machine) -> None:
        """Kill -9; seen if there is a process to be killed."""
        self.seen_if(machine.running)
        machine.kill()

    def keep_down(self, machine: Machine) -> Undo:
        """Let nobody start the machine until this is undone."""
        self.kept_down[machine.name] = self.kept_down.get(machine.name, 0) + 1
        return once(partial(self._release, machine.name))

    def _release(self, name: str) -> None:
        self.kept_down[name] = max(0, self.kept_down[name] - 1)  # all may be healed already

    def start_again(self, machine: Machine) -> None:
        """Start the machine now, unless it lives or another fault wants it to stay down."""
        if not self.kept_down.get(machine.name):
            machine.boot()

    def freeze(self, machine: Machine) -> Undo:
        """Stop its process; seen if something was due before it went on, or died."""
        machine.freeze()

        def thaw() -> None:
            machine.thaw()
            self.seen_if(machine.missed > missed)

        missed = machine.missed
        return thaw

    def ask(self, machine: Machine, request: Request) -> Awaitable[Response | None]:
        """One attempt of the saboteur at one machine, whatever comes of it."""
        return self.saboteur.ask_machine(machine, request)

    # --- network ------------------------------------------------------------------------------

    def pairs(self, one: Sequence[str], other: Sequence[str]) -> list[tuple[str, str]]:
        """Every direction from a machine of ``one`` to one of ``other``."""
        return [(source, target) for source, target in product(one, other) if source != target]

    def both_ways(self, one: Sequence[str], other: Sequence[str]) -> list[tuple[str, str]]:
        """Every direction between a machine of ``one`` and one of ``other``."""
        return [*self.pairs(one, other), *self.pairs(other, one)]

    def held(self, pairs: Sequence[tuple[str, str]]) -> int:
        """How often silence has held something in these directions."""
        return sum(self.world.fabric.path(*pair).held for pair in pairs)

    def silence(self, pairs: Sequence[tuple[str, str]]) -> Undo:
        """Let nothing through in these directions; seen if something was to be sent there."""
        for source, target in pairs:
            self.world.fabric.silence(source, target)
        return self.watch(lambda: self.held(pairs), partial(self._speak, pairs))

    def _speak(self, pairs: Sequence[tuple[str, str]]) -> None:
        for source, target in pairs:
            self.world.fabric.speak(source, target)


Fault = Callable[[Stage, Random], Undo]


def once(undo: Undo) -> Undo:
    """Undo it the first time only."""
    left = [undo]

    def undo_once() -> None:
        if left:
            left.pop()()

    return undo_once


def undo_all(undos: Sequence[Undo]) -> None:
    """Undo several things, in their order."""
    for undo in undos:
        undo()


def nothing() -> None:
    """There is nothing to undo."""
