"""What tests of the simulation build again and again: a timeline, a machine's loop, a world."""

from collections.abc import Callable
from random import Random
from typing import Any

from raftkv.rpc.messages import Call, Reply, Request, Response
from raftkv.sim.clock import MachineClock
from raftkv.sim.loop import SimLoop
from raftkv.sim.machine import Machine
from raftkv.sim.options import Options
from raftkv.sim.scheduler import SECOND_US, Scheduler
from raftkv.sim.world import World


class Bench:
    """One timeline and one loop on it, with everything that its callbacks raise.

    Args:
        scheduler: the timeline, if there is one already.
        rate: how fast the machine's clock runs.
    """

    def __init__(
        self, seed: int = 1, *, rate: float = 1.0, scheduler: Scheduler | None = None
    ) -> None:
        self.scheduler = scheduler or Scheduler(Random(f"order {seed}"))
        self.clock = MachineClock(self.scheduler, booted_s=50.0, rate=rate, wall_offset_us=0)
        self.failures: list[BaseException] = []
        self.turns = 0
        self.loop = self.new_loop(seed)

    def new_loop(self, seed: int = 2) -> SimLoop:
        """Another process on the same timeline."""
        return SimLoop(
            self.scheduler,
            self.clock,
            Random(f"turns {seed}"),
            failed=self.failures.append,
            after_turn=self._count,
        )

    def _count(self) -> None:
        self.turns += 1

    def run_s(self, seconds: float) -> None:
        """Let so much time of the world pass."""
        self.scheduler.run(self.scheduler.now_us + round(seconds * SECOND_US))


def small_options(seed: int = 1, **changes: Any) -> Options:
    """A quiet cluster of one node and one shard, unless something else is asked for."""
    usual = {
        "nodes": 1, "replicas": 1, "shards": 1, "faults": (), "heartbeat_ms": 250,
        "election_ms": 1000, "ping_ms": 500, "snapshot_after_entries": 40,
        "segment_bytes": 64 * 1024, "delay_us": 50, "sync_us": 200, "call_ms": 2000,
        "value_bytes": 6000,
        "entry_commands": 64, "queue_commands": 1024, "reads_waiting": 8192,
        "batch_operations": 512, "append_bytes": 2**19, "append_window": 8, "chunk_bytes": 2**18,
        "chunk_window": 8, "bulk_chunks": 2, "link_windows": 32, "apply_operations": 4096,
        "restore_records": 4, "free_keys": 1, "free_keys_max": 250_000, "sessions_max": 50_000,
        "name_lifetime_s": 120.0, "in_flight_max": 8192, "worker_life_s": 0.0, "cut_share": 0.0,
    }  # fmt: skip
    return Options.of(seed, 0.1, **(usual | changes))


class Cluster:
    """A small world that is up, and what of it broke or ended.

    Attributes:
        broken: (machine, exception that no fault explains).
        endings: names of machines whose process has ended, in order.
    """

    def __init__(self, options: Options, *, boot: bool = True) -> None:
        self.broken: list[tuple[str, BaseException]] = []
        self.endings: list[str] = []
        self.world = World(
            options,
            broke=lambda machine, error: self.broken.append((machine.name, error)),
            ended=lambda machine: self.endings.append(machine.name),
        )
        self.machines = list(self.world.machines.values())
        if boot:
            for machine in self.machines:
                machine.boot()
            self.run_s(10.0)

    @property
    def machine(self) -> Machine:
        """The first one."""
        return self.machines[0]

    def run_s(self, seconds: float) -> None:
        """Let so much time of the world pass."""
        scheduler = self.world.scheduler
        scheduler.run(scheduler.now_us + round(seconds * SECOND_US))

    def begin(self, request: Request, machine: Machine | None = None) -> list[Response]:
        """Ask a node in its next turn; what it answers appears in the list."""
        machine = machine or self.machine
        answers: list[Response] = []

        def reply(reply: Reply) -> None:
            answers.append(reply.response)

        engine = machine.serving
        assert engine is not None, machine.ended
        machine.loop.call_soon(engine.handle, Call(1, 2000, request), reply)
        return answers

    def ask(self, request: Request, machine: Machine | None = None) -> Response:
        """Ask a node and wait for its answer."""
        answers = self.begin(request, machine)
        self.run_s(3.0)
        (answer,) = answers
        return answer


def recording() -> tuple[list[Any], Callable[..., None]]:
    """A list, and a callback that appends its arguments to it (one alone without a tuple)."""
    seen: list[Any] = []

    def record(*facts: Any) -> None:
        seen.append(facts[0] if len(facts) == 1 else facts)

    return seen, record
