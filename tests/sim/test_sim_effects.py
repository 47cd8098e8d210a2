"""A fault counts when it was seen to take effect, and only then."""

import asyncio
from dataclasses import dataclass
from random import Random
from typing import Any, Self

import pytest
from sim_parts import Bench, Cluster, small_options

from raftkv.core.operations import Command, Put
from raftkv.rpc.messages import WriteRequest
from raftkv.sim.campaign import Tally
from raftkv.sim.client import Client, ClientNetwork
from raftkv.sim.faults import FAULTS
from raftkv.sim.invariants import Invariants
from raftkv.sim.machine import Machine
from raftkv.sim.operator import Operator
from raftkv.sim.options import Options
from raftkv.sim.plan import PlannedFault
from raftkv.sim.run import Report
from raftkv.sim.stage import Stage

TRIES = 8
"""With so many seeds each fault meets somebody once at least."""


@dataclass
class Theatre:
    """Three machines, an operator's loop beside them, and a client that writes all the time."""

    boot: bool = True
    busy: bool = True

    def __post_init__(self) -> None:
        options = small_options(
            nodes=3, replicas=3, snapshot_after_entries=8, segment_bytes=8192, kernel_bytes=512
        )
        self.cluster = Cluster(options, boot=self.boot)
        world = self.cluster.world
        self.bench = Bench(scheduler=world.scheduler)
        self.loop = self.bench.loop
        self.client_network = ClientNetwork(world.scheduler, self.loop, Random(1))
        self.client = Client(
            0,
            self.client_network,
            lambda: self.cluster.machines,
            Random(2),
            idempotent=False,
            now_s=lambda: world.scheduler.now_s,
        )
        self.stage = Stage(
            world,
            self.client,
            later=self.loop.call_later,
            start=self.loop.create_task,
            damaged=lambda _: None,
            crowd=self.crowd,
        )
        self.operator = Operator(self.stage, [], Invariants(log_entries_max=10**6), self.loop)
        if self.boot:
            self.loop.create_task(self.operator.keep_running())
        if self.busy:
            self.loop.create_task(self._write())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Let nothing more happen, in order."""
        for machine in self.cluster.machines:
            machine.halt()
        self.loop.end()

    def put(self) -> WriteRequest:
        """Some write."""
        return WriteRequest(Command(Put(b"key", bytes(300))))

    async def _write(self) -> None:
        while True:
            await asyncio.sleep(0.05)
            self.loop.create_task(self.client.ask_once(self.put()))

    def crowd(self, machine: Machine, count: int) -> None:
        """Send writes to one machine, if there is anybody who would."""
        for _ in range(count if self.busy else 0):
            self.loop.create_task(self.client.ask_machine(machine, self.put()))

    def try_fault(self, kind: str, seed: int) -> int:
        """Let a fault happen to whoever leads, and end; return how often it was seen."""
        leading = [machine for machine in self.cluster.machines if machine.leads]
        self.stage.aim = leading[0] if leading else None
        self.stage.seen.times = 0
        undo = FAULTS[kind](self.stage, Random(seed))
        self.cluster.run_s(6.0)
        undo()
        self.operator.heal()
        assert not self.cluster.broken
        return self.stage.seen.times


@pytest.mark.parametrize("kind", FAULTS)
def test_a_fault_that_meets_somebody_is_seen(kind: str) -> None:
    """Done to machines at work, it takes effect soon, and says so."""
    with Theatre() as theatre:
        for seed in range(TRIES):
            if theatre.try_fault(kind, seed):
                return
            theatre.cluster.run_s(5.0)
        pytest.fail(f"{kind} was never seen to take effect")


@pytest.mark.parametrize("kind", FAULTS)
def test_a_fault_that_meets_nobody_is_not_seen(kind: str) -> None:
    """Done to machines that are down and stay down, while nobody asks them, it has no effect."""
    with Theatre(boot=False, busy=False) as theatre:
        theatre.stage.lost.add("n1")  # so that no second disk may be lost
        for seed in range(3):
            for machine in theatre.cluster.machines:
                theatre.stage.keep_down(machine)
            assert theatre.try_fault(kind, seed) == 0


def test_a_bit_that_rots_counts_when_it_is_read() -> None:
    """Reading beside it is not enough."""
    disk = Theatre(boot=False, busy=False).cluster.machine.disk
    path = next(path for path in disk.files() if disk.size_of(path) > 1)
    disk.flip_bit(path, 9)
    file = disk.open(path)
    file.pread(1, 0)
    assert disk.faults.rot_read == 0
    file.pread(1, 1)
    assert disk.faults.rot_read == 1


def test_what_a_node_gives_back_makes_no_room_where_others_take_it() -> None:
    """Room shrinks with every allocation, and no deletion makes any; also in the next life."""
    with Theatre() as theatre:
        machine = theatre.cluster.machine
        machine.disk.faults.room_bytes = 20_000
        theatre.cluster.run_s(20.0)
        machine.kill()
        assert machine.disk.faults.refused
        assert machine.disk.faults.room_bytes is not None
        assert machine.disk.faults.room_bytes < 20_000


def planned(number: int, at_s: float, kind: str, **changes: Any) -> PlannedFault:
    """A fault of a plan."""
    return PlannedFault(number, at_s, kind, 1.0, f"{number}", **changes)


def test_the_operator_counts_apart_what_had_an_effect() -> None:
    """A restart of all where most are down already is none; every fault is on one side."""
    with Theatre(busy=False) as theatre:
        now_s = theatre.cluster.world.scheduler.now_s
        for machine in theatre.cluster.machines[1:]:
            theatre.stage.keep_down(machine)
            machine.kill()
        theatre.cluster.run_s(1.0)
        plan = [planned(0, now_s, "restart_all"), planned(1, now_s, "drift")]
        operator = Operator(theatre.stage, plan, Invariants(log_entries_max=10**6), theatre.loop)
        theatre.loop.create_task(operator.carry_out())
        theatre.cluster.run_s(5.0)
        operator.heal()
        assert operator.without_effect["restart_all"] == 1
        assert operator.effective["restart_all"] == 0
        assert operator.effective.total() + operator.without_effect.total() == len(plan)


def test_the_faults_of_a_burst_are_aimed_at_one_machine() -> None:
    """Whoever led when it began, though it may have died of the first."""
    with Theatre() as theatre:
        aims = set()
        operator = theatre.operator
        for number in range(3):
            aim = operator._aim_of(planned(number, 0.0, "kill", burst=0))
            assert aim is not None
            aims.add(aim.name)
            aim.kill()
        assert len(aims) == 1
        assert operator._aim_of(planned(7, 0.0, "kill")) is None


def test_a_campaign_sums_up_the_share_of_each_kind() -> None:
    """How many took effect, of how many that were done."""
    tally = Tally()
    options = Options.of(1)
    tally.add(Report(options, faults={"kill": 2}, without_effect={"kill": 1, "stop": 4}))
    tally.add(Report(options, faults={"kill": 3}))
    assert tally.shares() == {"kill": (5, 6), "stop": (0, 4)}
