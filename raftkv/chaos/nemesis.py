"""Carries out a plan: each round brings its faults about, watches them, and takes them back.

It runs in the thread that started the nodes, as the kernel kills them when that thread ends.
"""

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from raftkv.chaos.faults import Context, Fault, make_fault
from raftkv.chaos.faults.processes import ended_by_itself
from raftkv.chaos.plan import Round, Step
from raftkv.chaos.recorder import EventLog
from raftkv.chaos.target import Nodes
from raftkv.chaos.waiting import wait_until

WATCH_S = 0.1
PATIENCE_S = 30.0
"""How much longer than planned a fault may hold until its effect is seen."""
RECOVER_S = 120.0
"""How long a healed cluster may take until every node is back and has caught up."""


@dataclass(slots=True)
class Nemesis:
    """Does rounds to a target; ``findings`` are lines about what must not happen and did."""

    target: Nodes
    leader_of: Callable[[int], str | None]
    events: EventLog
    tick: Callable[[], None] = lambda: None
    """Called every :data:`WATCH_S` or so."""
    findings: list[str] = field(default_factory=list)
    patience_s: float = PATIENCE_S
    recover_s: float = RECOVER_S

    def run(self, round_: Round) -> bool:
        """One round, then wait until the cluster is as before; False if it never was."""
        context = Context(self.target, self.leader_of, round_.hold_s, findings=self.findings)
        running: list[Fault] = []
        with contextlib.ExitStack() as stack:
            for place, step in enumerate(round_.steps):
                if place:
                    self._watch(running, round_.offset_s)
                running.append(stack.enter_context(self._fault(step, context)))
            self._watch(running, round_.hold_s)
            self._watch(running, self.patience_s, until_seen=True)
        if not self.recover():
            return False
        self._watch([], self.target.election_timeout_s)
        return True

    @contextlib.contextmanager
    def _fault(self, step: Step, context: Context) -> Iterator[Fault]:
        """A fault in force; taken back and written down whatever happens."""
        fault, began_ns = make_fault(step, context), time.monotonic_ns()
        try:
            fault.start()
            running = self.events.fault_started(fault.kind, fault.names, fault.detail, began_ns)
            try:
                yield fault
            finally:
                fault.observe()
        finally:
            fault.stop()
        self.events.fault_stopped(running, fault.detail, effective=fault.effective)

    def _watch(self, running: list[Fault], seconds: float, *, until_seen: bool = False) -> None:
        """Watch for so long, or only until the effect of everything was seen."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            for fault in running:
                fault.observe()
            if until_seen and all(fault.effective for fault in running):
                return
            self._look_for_deaths()
            self.tick()
            time.sleep(WATCH_S)

    def _look_for_deaths(self) -> None:
        """Find nodes that ended though nobody killed them, and start them again."""
        for name in self.target.names:
            process = self.target.process(name)
            if name not in self.target.down and not process.is_running:
                process.wait(0)  # lets go of its pipe
                self.findings.append(ended_by_itself(process))
                self.target.start_node(name)

    def recover(self) -> bool:
        """Wait until every node is back and has what was committed when the faults ended."""
        goal = self.target.committed()

        def is_back() -> bool:
            self._look_for_deaths()
            self.tick()
            return not self.target.late(goal)

        if wait_until(is_back, self.recover_s, WATCH_S):
            return True
        self.findings.append(
            f"not back within {self.recover_s:.0f} s after all faults ended: "
            f"{self.target.late(goal)}"
        )
        return False
