"""One run: a cluster lives through its faults, is healed, and everything it said is judged.

A safety phase with all faults, in which nothing wrong may be said or done; then a liveness phase,
in which faults have ended for a majority and every operation must succeed; then all are healed and
must agree.
"""

import asyncio
import gc
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from random import Random
from typing import Any

from raftkv.check.checker import check
from raftkv.check.event import Event, HistoryError
from raftkv.check.history import pair
from raftkv.check.models import MODELS
from raftkv.check.verdict import Verdict
from raftkv.rpc.messages import Call, Reply
from raftkv.sim.client import Client, ClientNetwork
from raftkv.sim.clock import MachineClock
from raftkv.sim.invariants import Invariants
from raftkv.sim.ledger import Ledger
from raftkv.sim.loop import SimLoop
from raftkv.sim.machine import Machine
from raftkv.sim.operator import BegunFault, Operator
from raftkv.sim.options import Options
from raftkv.sim.plan import plan
from raftkv.sim.play import play, read_all
from raftkv.sim.recorder import Recorder
from raftkv.sim.scheduler import SECOND_US, Livelock
from raftkv.sim.stage import Stage
from raftkv.sim.staleness import Staleness
from raftkv.sim.violation import Violation
from raftkv.sim.world import World
from raftkv.storage.disk import DiskError
from raftkv.workloads import WORKLOADS
from raftkv.workloads.keys import KeysByTime
from raftkv.workloads.steps import Context

ERA_S = 40.0
"""Clients go on to new keys this often."""

COPIES_WITHIN = 2.5
"""A copy of a request arrives within this many lifetimes of outcomes."""

GREEDY = 0
"""This client begins a session for every write, where there is a greedy one."""

RESTLESS = 0.15
"""Clients begin another session before this share of their writes, and leave the old one unused."""

LIVENESS_S = 20.0
"""How long a majority without faults is given work."""

FINAL_S = 15.0
"""How long a healed cluster is given work before all replicas must agree."""

BURST = 10
BURST_SHARE = 0.03
"""Clients do this many operations without a pause after this share of their pauses."""

CHECK_BUDGET_S = 60.0

_FIRST_PASSER_BY = 1000
"""Clients from this number on do one operation, at one machine."""

LOG_SLACK_S = 120.0
LOG_SLACK_ENTRIES = 200
"""A log may be longer than its snapshot policy says by what clients and elections bring while no
snapshot can be written: a fault of half a minute, and then about as long again until the next try,
as a snapshot that fails is tried after ever longer waits."""


@dataclass(frozen=True, slots=True)
class Record:
    """What was asked and told, by the model that judges it, and what was done to the cluster."""

    events: Mapping[str, Sequence[Event]]
    faults: Sequence[BegunFault]


@dataclass(slots=True)
class Report:
    """How a run went; ``violation`` is None if nothing was wrong."""

    options: Options
    violation: str | None = None
    simulated_s: float = 0.0
    cpu_s: float = 0.0
    """Seconds of one core, for the run and its judgement."""
    operations: int = 0
    outcomes: dict[str, int] = field(default_factory=dict)
    faults: dict[str, int] = field(default_factory=dict)
    """How many of each kind were seen to take effect."""
    without_effect: dict[str, int] = field(default_factory=dict)
    """How many of each kind were done to somebody and met nothing."""
    refused: dict[str, int] = field(default_factory=dict)
    elections: int = 0
    events: int = 0
    digest: str = ""
    record: Record | None = None
    """Only if it was asked for."""


def run(
    options: Options, write: Callable[[str], None] | None = None, *, keep_record: bool = False
) -> Report:
    """Run a seed; the report says what was wrong, if anything.

    Args:
        options: what to run.
        write: gets the trace, line by line.
        keep_record: whether the report has the histories and faults, too.
    """
    began = time.process_time()
    simulation = Run(options, write)
    report = simulation.report
    with _quiet(simulation.fail):
        try:
            simulation.play()
        except Violation as violation:
            report.violation = str(violation)
        simulation.fill_in()
        if keep_record:
            report.record = simulation.record()
        simulation.end()
    report.cpu_s = time.process_time() - began
    return report


def log_entries_max(options: Options) -> int:
    """How long a log may be that is cut in time; far less than a whole run writes."""
    slack = int(LOG_SLACK_S * options.operations_per_s) + LOG_SLACK_ENTRIES
    return 2 * options.snapshot_after_entries + slack


class Run:
    """The phases of one run."""

    def __init__(self, options: Options, write: Callable[[str], None] | None = None) -> None:
        self.report = Report(options)
        self._options = options
        self._problem: Violation | None = None
        self._ledger = Ledger(complete=False)  # whoever drives a run by hand may ask engines
        self._invariants = Invariants(log_entries_max=log_entries_max(options), ledger=self._ledger)
        self.world = World(options, after_turn=self._look, broke=self._broke, write=write)
        scheduler = self.world.scheduler
        clock = MachineClock(scheduler, booted_s=0.0, rate=1.0, wall_offset_us=0)
        random = Random(f"clients {options.seed}")
        self._loop = SimLoop(scheduler, clock, Random(random.random()), failed=self.fail)
        self._client_network = ClientNetwork(
            scheduler,
            self._loop,
            Random(random.random()),
            witness=self,
            cut_share=options.cut_share,
            copies=options.copies,
            copies_within_s=COPIES_WITHIN * options.name_lifetime_s,
            wrong=self.fail,
        )
        self._reachable = list(self.world.machines.values())
        self._clients = [self._client(number, random) for number in range(options.clients)]
        self._recorder = Recorder(lambda: scheduler.now_us, self.world.trace.note)
        self._context = Context(
            self._recorder,
            KeysByTime(era=lambda: int(scheduler.now_s / ERA_S)),
            Staleness(lambda: scheduler.now_us),
            batches=True,
            ranges=True,
            value_bytes=options.value_bytes,
            shards=options.shards,
        )
        stage = Stage(
            self.world,
            self._client(len(self._clients), random),
            later=self._loop.call_later,
            start=self._start,
            damaged=self._invariants.damaged,
            crowd=self._crowd,
        )
        self.operator = Operator(stage, plan(options), self._invariants, self._loop)
        self._stage = stage
        self._reader = self._client(len(self._clients) + 1, random)
        self._working = True
        self._busy = 0
        self._passers_by = 0
        self._random = random

    def _client(
        self, number: int, random: Random, machines: Sequence[Machine] | None = None
    ) -> Client:
        return Client(
            number,
            self._client_network,
            lambda: self._reachable if machines is None else machines,
            Random(random.random()),
            idempotent=number % 3 != 2,  # noqa: PLR2004 -- two of three
            free_keys=self._options.free_keys == 1 and number % 3 == 1,
            call_ms=self._options.call_ms,
            now_s=lambda: self.world.scheduler.now_s,
            memory_s=self._options.name_lifetime_s,
            restless=1.0 if self._options.greedy and number == GREEDY else RESTLESS,
        )

    # --- phases -------------------------------------------------------------------------------

    def play(self) -> None:
        """Go through all phases.

        Raises:
            Violation: whatever was found first.
        """
        self._ledger.complete = True
        for machine in self.world.machines.values():
            machine.boot()
        self._start(self.operator.keep_running())
        faults = self._start(self.operator.carry_out())
        for client in self._clients:
            self._start(self._work(client))
        self._go_on(self._options.minutes * 60)
        self._go_on_until(faults.done, 10 * 60.0, "the plan of faults came to no end")
        self._live_on()
        self._agree()
        self._judge()

    def _live_on(self) -> None:
        """Heal a majority, and see every operation that begins then succeed."""
        random = Random(f"minority {self._options.seed}")
        self._client_network.cut_share = 0.0
        for machine in self.world.machines.values():
            machine.front.calm = True
        minority = self._minority(random)
        self.operator.heal(keep=[machine.name for machine in minority])
        for machine in minority:
            self._spoil(machine, random)
        spoiled = frozenset(machine.name for machine in minority)
        left = [m for m in self.world.machines.values() if m.name not in spoiled]
        self._reachable = [m for m in left if m.name not in self._stage.lost]
        self._go_on(self._notice_s)
        self._settle(spoiled)
        live_from_s = self.world.scheduler.now_s
        self._go_on(LIVENESS_S)
        self._expect_answers(live_from_s)

    def _expect_answers(self, since_s: float) -> None:
        """Nobody may have given up what began when a majority had no faults."""
        for client in (*self._clients, self._reader):
            for began_s, why in client.given_up:
                if began_s >= since_s:
                    raise Violation(
                        f"an operation of {began_s:.3f} s was given up although a majority had "
                        f"no faults: {why}"
                    )

    @property
    def _notice_s(self) -> float:
        """How long nodes may take to notice that one is gone, and to elect another leader."""
        return (4 * self._options.ping_ms + 6 * self._options.election_ms) / 1000

    def _minority(self, random: Random) -> list[Machine]:
        """Machines that stay bad: no shard loses more than a minority of its replicas."""
        if random.random() < 0.5 or self._options.replicas < 3:  # noqa: PLR2004
            return []
        spare = (self._options.replicas - 1) // 2 - len(self._stage.lost)
        names = [name for name in self.world.names if name not in self._stage.lost]
        return [self.world.machines[name] for name in random.sample(names, max(0, spare))]

    def _spoil(self, machine: Machine, random: Random) -> None:
        """Leave a machine dead, frozen or unreachable."""
        how = random.choice(("dead", "frozen", "unreachable"))
        self.world.trace.note("spoil", machine.name, how)
        if how == "dead":
            self._stage.keep_down(machine)
            machine.kill()
        elif how == "frozen":
            machine.freeze()
        else:
            others = [name for name in self.world.names if name != machine.name]
            self._stage.silence(self._stage.pairs([machine.name], others))
            self._stage.silence(self._stage.pairs(others, [machine.name]))

    def _agree(self) -> None:
        """Heal all, write a little more, stop the clients, and compare every replica."""
        self.operator.heal()
        self._reachable = [
            m for m in self.world.machines.values() if m.name not in self._stage.lost
        ]
        self._settle(frozenset())
        live_from_s = self.world.scheduler.now_s
        self._go_on(FINAL_S)
        self._working = False
        self._go_on_until(lambda: not self._busy, 60.0, "clients were not answered")
        self._client_network.close()
        reads = self._start(read_all(self._reader, self._context))
        self._go_on_until(reads.done, 60.0, "not everything could be read in the end")
        self._expect_answers(live_from_s)
        self._go_on_until(self._is_idle, 60.0, "a healed cluster without clients finds no rest")
        self._ledger.settle()
        for machine in self._reachable:
            self._compare(machine)

    def _is_idle(self) -> bool:
        """Whether nothing is in flight and everybody has applied everything."""
        engines = [machine.serving for machine in self._reachable]
        quiet = all(engine is not None and not engine.in_flight for engine in engines)
        return quiet and self.operator.is_settled()

    def _compare(self, machine: Machine) -> None:
        engine = machine.serving
        if engine is None:
            raise Violation(
                f"{machine.name} is down in the end: {machine.refused or machine.ended}"
            )
        for group in engine.replicas.groups():
            if group.state.digest != group.state.recomputed_digest():
                raise Violation(
                    f"{machine.name}: the digest of group {group.id} is not its state's"
                )

    def _judge(self) -> None:
        """Let the checker look at every history."""
        for model, events in self._recorder.events.items():
            try:
                result = check(pair(events), MODELS[model], budget_s=CHECK_BUDGET_S)
            except HistoryError as error:  # such as of a bank that opened though it was refused
                raise Violation(f"{model}: {error}") from error
            for part in result.parts:
                if part.verdict is not Verdict.VALID:
                    raise Violation(f"{model} {part.key}: {part.verdict}: {part.reason}")

    # --- time ---------------------------------------------------------------------------------

    def _go_on(self, seconds: float) -> None:
        end_us = self.world.scheduler.now_us + int(seconds * SECOND_US)
        try:
            self.world.scheduler.run(end_us)
        except Livelock as livelock:
            raise Violation(str(livelock)) from livelock
        if self._problem is not None:
            raise self._problem

    def _go_on_until(self, condition: Callable[[], bool], seconds: float, otherwise: str) -> None:
        deadline_s = self.world.scheduler.now_s + seconds
        while not condition():
            if self.world.scheduler.now_s > deadline_s:
                raise Violation(otherwise)
            self._go_on(0.25)

    def _settle(self, but: frozenset[str]) -> None:
        goal = self.operator.goal()
        self._go_on_until(
            lambda: self.operator.has_reached(goal, but),
            60.0,
            "a majority without faults did not come to rest within 60 s",
        )
        self._ledger.settle()

    # --- clients ------------------------------------------------------------------------------

    async def _work(self, client: Client) -> None:
        """Operations one after the other, with pauses, or now and then without."""
        pause_s = len(self._clients) / self._options.operations_per_s
        hurry = 0
        while self._working:
            if hurry:
                hurry -= 1
            else:
                await asyncio.sleep(client.random.expovariate(1 / pause_s))
                hurry = BURST if client.random.random() < BURST_SHARE else 0
            workload = WORKLOADS[client.random.choice(self._options.workloads)]
            self._busy += 1
            await play(client, workload(client, self._context))
            self._busy -= 1

    # --- what is said -------------------------------------------------------------------------

    def asked(self, call: Call) -> None:
        """Let the ledger hear of a request."""
        self._ledger.asked(call)

    def answered(self, call: Call, reply: Reply) -> None:
        """Let the ledger hear of an answer; a lie ends the run, not the node that told it."""
        try:
            self._ledger.answered(call, reply)
        except Violation as violation:
            self.fail(violation)

    def _crowd(self, machine: Machine, count: int) -> None:
        """Let so many clients more come to one machine, each with one operation."""
        for _ in range(count):
            self._passers_by += 1
            number = _FIRST_PASSER_BY + self._passers_by
            client = self._client(number, self._random, [machine])
            workload = WORKLOADS[client.random.choice(self._options.workloads)]
            self._start(self._pass_by(play(client, workload(client, self._context))))

    async def _pass_by(self, operation: Awaitable[None]) -> None:
        self._busy += 1
        await operation
        self._busy -= 1

    # --- what goes wrong ----------------------------------------------------------------------

    def _start(self, work: Coroutine[Any, Any, Any]) -> "asyncio.Task[Any]":
        task = self._loop.create_task(work)
        task.add_done_callback(self._finished)
        return task

    def _finished(self, task: "asyncio.Task[Any]") -> None:
        error = task.exception()
        if error is not None:
            self.fail(error)

    def _look(self, machine: Machine) -> None:
        try:
            self._invariants.look(machine)
        except Violation as violation:
            self.fail(violation)

    def _broke(self, machine: Machine, error: BaseException) -> None:
        self.fail(Violation(f"{machine.name} failed: {type(error).__name__}: {error}"))

    def fail(self, error: BaseException) -> None:
        """End the run with a violation; whatever else goes wrong is a bug of the harness."""
        if isinstance(error, Violation):
            self._problem = self._problem or error
            self.world.scheduler.stop()
        else:
            raise error

    def end(self) -> None:
        """Let nothing more happen; what has not begun is thrown away in order."""
        for machine in self.world.machines.values():
            machine.halt()
        self._loop.end()

    # --- the report ---------------------------------------------------------------------------

    def fill_in(self) -> None:
        """Write down what there is to say in the end."""
        report, scheduler = self.report, self.world.scheduler
        report.simulated_s = scheduler.now_s
        report.events = scheduler.events
        report.operations = self._recorder.operations
        report.outcomes = dict(self._recorder.counts)
        report.faults = dict(self.operator.effective)
        report.without_effect = dict(self.operator.without_effect)
        if self._client_network.copies:
            report.faults["late_copy"] = self._client_network.copies
        report.refused = dict(self.operator.refused)
        report.elections = self._invariants.elections
        report.digest = self.world.trace.digest

    def record(self) -> Record:
        """What has been asked, told and done so far."""
        return Record(self._recorder.events, self.operator.begun)


class _LogWatch(logging.Handler):
    """Sees bugs that nodes survive, by a line in a log that nobody would read here."""

    def __init__(self, broke: Callable[[Violation], None]) -> None:
        super().__init__(logging.ERROR)
        self._broke = broke

    def emit(self, record: logging.LogRecord) -> None:
        """End the run if an exception was logged that no fault of a disk or a network explains."""
        error = record.exc_info[1] if record.exc_info else None
        if error is not None and not isinstance(error, DiskError | OSError):
            told = f"{record.getMessage()}: {type(error).__name__}: {error}"
            self._broke(Violation(f"{record.name} has logged an exception: {told}"))


def _raise(violation: Violation) -> None:
    raise violation


@contextmanager
def _quiet(broke: Callable[[Violation], None] = _raise) -> Iterator[None]:
    """Let nodes log exceptions only, and keep the collector from walking what has no cycles.

    ``broke`` hears of what they log as an error, as a correct node has none to report.
    """
    root = logging.root
    before, handlers = root.manager.disable, root.handlers
    logging.disable(logging.WARNING)
    root.handlers = [_LogWatch(broke)]
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.collect()
        root.handlers = handlers
        logging.disable(before)
