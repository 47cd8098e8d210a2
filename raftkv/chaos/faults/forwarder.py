"""A node that dies with calls under way at a leader that hangs, and lives again within a second."""

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from raftkv.chaos.faults.base import Fault
from raftkv.chaos.faults.processes import ended_by_itself, state_of
from raftkv.chaos.waiting import wait_until

YOUNG_S = 0.3
"""How long the forwarder serves in its first life of the fault: it counts few calls."""
FILL_S = (0.3, 1.0)
"""How long clients ask while the leader hangs: its sockets fill up."""
READ_S = (0.05, 0.4)
"""How long the leader reads what was waiting, before it hangs again."""
ASK_S = (0.3, 1.2)
"""How long clients ask the forwarder in its next life, before the leader goes on."""
AGAIN_S = 1.0
"""Within so long the forwarder must have been started again."""
_CONT_S = 5.0


def waiting_bytes(group: int) -> int:
    """Bytes that the kernel has taken for the sockets of a process group, and nobody has read."""
    sockets = {inode for pid in _members(group) for inode in _sockets(pid)}
    total = 0
    for row in Path("/proc/self/net/tcp").read_text(encoding="ascii").splitlines()[1:]:
        fields = row.split()  # proc(5): queues as sent:received in hexadecimal, then the inode
        if fields[9] in sockets:
            total += int(fields[4].partition(":")[2], 16)
    return total


def _goes_on(pid: int) -> bool:
    return state_of(pid) != "T"


def _members(group: int) -> Iterator[int]:
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with contextlib.suppress(ProcessLookupError):
                if os.getpgid(int(entry.name)) == group:
                    yield int(entry.name)


def _sockets(pid: int) -> Iterator[str]:
    with contextlib.suppress(FileNotFoundError, PermissionError, ProcessLookupError):
        for descriptor in Path("/proc", str(pid), "fd").iterdir():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                target = str(descriptor.readlink())
                if target.startswith("socket:["):
                    yield target[len("socket:[") : -1]


class ForwarderRestart(Fault):
    """The forwarder is killed, started, and killed again while the leader and all others hang.

    While it starts again the leader reads what it was sent, and cannot commit it; then it hangs
    once more, until clients have asked the forwarder in its next life.
    """

    def start(self) -> None:
        """Give the forwarder a young life."""
        leader = self.context.leader_of(self.step.shard)
        nodes = self.free_nodes()
        self._leader = leader if leader is not None else nodes[0]
        others = [name for name in nodes if name != self._leader]
        self._forwarder, *self._others = others
        self.take((self._forwarder, self._leader, *self._others))
        self._most_waiting = 0
        self._lives_s: list[float] = []
        self._stopped: set[str] = set()
        self._plan: list[tuple[float, Callable[[], None]]] = []
        self._kill()
        self._start_forwarder()
        self._when_up(YOUNG_S, self._hang)

    def observe(self) -> None:
        """Do what is due; seen when the forwarder is in its next life and the leader goes on."""
        if self._leader in self._stopped:
            pid = self.target.process(self._leader).pid
            self._most_waiting = max(self._most_waiting, waiting_bytes(pid))
        while self._plan and time.monotonic() >= self._plan[0][0]:
            self._plan.pop(0)[1]()

    def stop(self) -> None:
        """Let everybody go on, and the forwarder run."""
        self._plan.clear()
        self._go_on(*self._stopped)
        if self._forwarder in self.target.down:
            self.target.start_node(self._forwarder)
        took = f"{self._lives_s[-1]:.2f} s" if self._lives_s else "never"
        self.detail = (
            f"{self._forwarder} killed and started again ({took}) while {self._leader} hung, "
            f"{self._most_waiting} bytes in its sockets"
        )

    def _later(self, after_s: float, act: Callable[[], None]) -> None:
        self._plan.append((time.monotonic() + after_s, act))

    def _when_up(self, after_s: float, act: Callable[[], None]) -> None:
        """Act when the forwarder has answered questions for so long."""
        if self.target.leads(self._forwarder) is None:
            self._later(0.0, partial(self._when_up, after_s, act))
        else:
            self._later(after_s, act)

    def _hang(self) -> None:
        self._leader = self.context.leader_of(self.step.shard) or self._leader
        self._others = [n for n in self.step.nodes if n not in {self._forwarder, self._leader}]
        if self._leader == self._forwarder:  # it has come to lead: another asks through it
            self._forwarder = self._others.pop()
        self._hold(self._leader, *self._others)
        self._later(self.random.uniform(*FILL_S), self._die)

    def _die(self) -> None:
        self._killed_s = time.monotonic()
        self._kill()
        self._go_on(self._leader)
        self._later(self.random.uniform(*READ_S), self._hang_again)

    def _hang_again(self) -> None:
        self._hold(self._leader)
        self._start_forwarder()
        self._lives_s.append(time.monotonic() - self._killed_s)
        self._when_up(self.random.uniform(*ASK_S), self._end)

    def _end(self) -> None:
        hung = state_of(self.target.process(self._leader).pid) == "T"
        alive = self.target.process(self._forwarder).is_running
        self.effective = hung and alive and self._lives_s[-1] < AGAIN_S
        self._go_on(self._leader)
        self._later(self.random.uniform(0, 1.0), lambda: self._go_on(*self._stopped))

    def _kill(self) -> None:
        process = self.target.process(self._forwarder)
        if process.exit_code is not None:
            self.context.findings.append(ended_by_itself(process))
        self.target.down.add(self._forwarder)
        process.kill()

    def _start_forwarder(self) -> None:
        self.target.start_node(self._forwarder)

    def _hold(self, *names: str) -> None:
        for name in names:
            self.target.process(name).signal_group(signal.SIGSTOP)
            self._stopped.add(name)

    def _go_on(self, *names: str) -> None:
        for name in names:
            process = self.target.process(name)
            process.signal_group(signal.SIGCONT)
            wait_until(partial(_goes_on, process.pid), _CONT_S)
            self._stopped.discard(name)
