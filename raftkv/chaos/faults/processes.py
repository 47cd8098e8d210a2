"""Faults of processes: killed, killed again and again, stopped cleanly, frozen."""

import signal
import time
from pathlib import Path

from raftkv.chaos.faults.base import Fault
from raftkv.chaos.waiting import wait_until
from raftkv.testing.processes import NodeProcess

CLEAN_STOP_S = 15.0
STORM_UP_S = (0.1, 1.2)
STORM_DOWN_S = (0.05, 0.3)
STORM_KILLS_MIN = 3
_REAP_S = 5.0


def state_of(pid: int) -> str:
    """The letter of a process's state (``T`` is stopped); empty if it is gone (proc(5))."""
    try:
        stat = Path("/proc", str(pid), "stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return ""
    return stat.rpartition(")")[2].split()[0]


def ended_by_itself(process: NodeProcess) -> str:
    """The finding that a node ended though nobody had killed it, with the last that it said."""
    said = process.log_tail().splitlines()
    last = f"; it last said: {said[-1]}" if said else ""
    return f"{process.name} ended by itself with code {process.exit_code}{last}"


class Kill(Fault):
    """SIGKILL to all processes of the nodes, and a restart in the end."""

    def start(self) -> None:
        """Kill them all within an instant."""
        self.take(self.choose())
        self.target.down.update(self.victims)
        for name in self.victims:
            self.target.process(name).signal_group(signal.SIGKILL)

    def observe(self) -> None:
        """Every process was ended by that signal."""
        codes = [self.target.process(name).exit_code for name in self.victims]
        self.effective = all(code == -signal.SIGKILL for code in codes)

    def stop(self) -> None:
        """Start them again."""
        for name in self.victims:
            process = self.target.process(name)
            process.kill()
            self.target.start_node(name)


class Storm(Fault):
    """One node is killed and started again many times, often before it was ready."""

    def start(self) -> None:
        """Kill it for the first time."""
        self.take(self.choose())
        self._kills = 0
        self._next_s = 0.0
        self._kill()

    def observe(self) -> None:
        """Kill or start it when its time comes; several kills are an effect."""
        if time.monotonic() < self._next_s:
            return
        if self.victims[0] in self.target.down:
            self.target.start_node(self.victims[0])
            self._next_s = time.monotonic() + self.random.uniform(*STORM_UP_S)
        else:
            self._kill()

    def stop(self) -> None:
        """Let it run."""
        if self.victims and self.victims[0] in self.target.down:
            self.target.start_node(self.victims[0])
        self.detail = f"{self.variant}: killed {self._kills} times"

    def _kill(self) -> None:
        process = self.target.process(self.victims[0])
        if process.exit_code is not None:
            self.context.findings.append(ended_by_itself(process))
        self.target.down.add(self.victims[0])
        process.kill()
        self._kills += process.exit_code == -signal.SIGKILL
        self.effective = self._kills >= STORM_KILLS_MIN
        self._next_s = time.monotonic() + self.random.uniform(*STORM_DOWN_S)


class Stop(Fault):
    """SIGTERM: the node hands its shards over, ends cleanly, and is started again."""

    def start(self) -> None:
        """Ask it to stop."""
        self.take(self.choose())
        self.target.down.update(self.victims)
        for name in self.victims:
            self.target.process(name).terminate()

    def observe(self) -> None:
        """It ended, and said that it ended well."""
        codes = [self.target.process(name).exit_code for name in self.victims]
        self.effective = all(code in self.target.clean_exits for code in codes)

    def stop(self) -> None:
        """Start it again; one that does not end, or not well, is a finding."""
        for name in self.victims:
            process = self.target.process(name)
            if not process.wait(CLEAN_STOP_S):
                self.context.findings.append(f"{name} did not stop within {CLEAN_STOP_S:.0f} s")
                process.kill()
            elif process.exit_code not in self.target.clean_exits:
                self.context.findings.append(
                    f"{name} was asked to stop and ended with code {process.exit_code}"
                )
            self.observe()
            self.target.start_node(name)


class Pause(Fault):
    """SIGSTOP to all processes of the nodes; links and sockets stay open, nobody is told."""

    def start(self) -> None:
        """Freeze them."""
        self.take(self.choose())
        for name in self.victims:
            self.target.process(name).signal_group(signal.SIGSTOP)

    def observe(self) -> None:
        """The kernel says that they are stopped."""
        self.effective = all(self._state(name) == "T" for name in self.victims)

    def stop(self) -> None:
        """Let them go on."""
        self.observe()
        for name in self.victims:
            self.target.process(name).signal_group(signal.SIGCONT)
        wait_until(lambda: all(self._state(name) != "T" for name in self.victims), _REAP_S)

    def _state(self, name: str) -> str:
        return state_of(self.target.process(name).pid)
