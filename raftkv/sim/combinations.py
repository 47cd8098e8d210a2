"""Faults that are aimed: several harms to several machines, in an order in which they meet.

What chance alone seldom brings together: a leader that hangs with calls of another node under way,
while that node dies and begins another life.
"""

from functools import partial
from random import Random

from raftkv.sim.machine import Machine
from raftkv.sim.stage import Fault, Stage, Undo, nothing


class _ForwarderRestart:
    """One :func:`forwarder_restart` under way."""

    def __init__(self, stage: Stage, random: Random, leader: Machine, forwarder: Machine) -> None:
        self._stage = stage
        self._random = random
        self._leader = leader
        self._forwarder = forwarder
        self._undos: list[Undo] = []

    def begin(self) -> None:
        """Give the forwarder a young life first: then what it counts is as low as in the next."""
        self._forwarder.kill()
        self._stage.soon(0.05 * self._random.random(), self._start_forwarder)
        self._stage.soon(self._random.uniform(0.3, 1.2), self._hang)

    def undo(self) -> None:
        """Let everybody go on."""
        while self._undos:
            self._undos.pop()()

    def _start_forwarder(self) -> None:
        self._stage.start_again(self._forwarder)

    def _hang(self) -> None:
        """Let nobody answer the leader, often not even itself, and have it asked a lot."""
        stage, random, leader = self._stage, self._random, self._leader
        if not leader.leads:
            return
        for other in stage.others(leader, self._forwarder):
            other.freeze()
            self._undos.append(other.thaw)
        if random.random() < 0.5:  # noqa: PLR2004 -- either way
            leader.freeze()
            self._undos.append(leader.thaw)
        stage.crowd(self._forwarder, random.randint(3, 8))
        stage.soon(random.uniform(0.01, 0.3), self._die)

    def _die(self) -> None:
        """Let the forwarder die, the leader read its calls and often hang again."""
        stage, random, engine = self._stage, self._random, self._forwarder.serving
        stage.seen_if(engine is not None and engine.in_flight and self._leader.running)
        self._forwarder.kill()
        stage.crowd(self._forwarder, random.randint(2, 6))
        again_s = random.choice((0.01, 0.1, 1.0)) * random.random()
        stage.soon(again_s, self._start_forwarder)
        reads_s = random.uniform(0, 0.1)
        stage.soon(reads_s, self._leader.thaw)
        if random.random() < 0.7:  # noqa: PLR2004 -- share of leaders that hang again
            hangs_s = reads_s + random.uniform(0.002, 0.05)
            stage.soon(hangs_s, self._leader.freeze)
            stage.soon(hangs_s + again_s + random.uniform(0.02, 0.5), self._leader.thaw)
        stage.soon(again_s + random.uniform(0.3, 1.5), self.undo)


def forwarder_restart(stage: Stage, random: Random) -> Undo:
    """Kill a node that has calls under way at a leader, and start it again within a second.

    The leader cannot commit meanwhile, as its other followers hang, and it hangs itself for a part
    of the time, or all of it: before it has read the calls, or after it has put them into its log.
    When it goes on, the forwarder is in its next life and has forwarded calls again. Seen if calls
    were under way when the forwarder died.
    """
    leader = stage.machine(random)
    others = stage.others(leader)
    if not leader.leads or not others:
        return nothing
    restart = _ForwarderRestart(stage, random, leader, random.choice(others))
    restart.begin()
    return restart.undo


def full_sockets(stage: Stage, random: Random) -> Undo:
    """A leader hangs while many clients ask other nodes for it: sockets to it fill up.

    Seen if something was due at it when it goes on, or a sender was paused.
    """
    leader = stage.machine(random)
    undo = stage.freeze(leader)
    others = stage.others(leader)
    for other in others:
        stage.crowd(other, random.randint(2, 4))
    paths = [stage.world.fabric.path(other.name, leader.name) for other in others]
    return stage.watch(lambda: sum(path.full for path in paths), undo)


def dying_successor(stage: Stage, random: Random) -> Undo:
    """Stop a leader cleanly while those that it may hand over to hang or die.

    Seen if one of them is hit before the leader has stopped.
    """
    leader = stage.machine(random)
    others = stage.others(leader)
    undos: list[Undo] = []

    def hit(machine: Machine) -> None:
        stage.seen_if(leader.running and machine.running)
        if random.random() < 0.5:  # noqa: PLR2004 -- either way
            machine.freeze()
            undos.append(machine.thaw)
        else:
            undos.append(stage.keep_down(machine))
            machine.kill()

    if others:
        chosen = random.sample(others, random.randint(1, len(others)))
        hit(chosen[0])
        for other in chosen[1:]:
            stage.soon(random.uniform(0, 0.05), partial(hit, other))
    leader.stop()
    return partial(_undo_what_there_is, undos)


def _undo_what_there_is(undos: list[Undo]) -> None:
    while undos:
        undos.pop()()


COMBINATIONS: tuple[Fault, ...] = (forwarder_restart, full_sockets, dying_successor)
