"""One node as a process: started, stopped, killed, frozen, with what it says kept in a file."""

import contextlib
import os
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

from raftkv.interpreter import PYTHON_M

RAFTKV_COMMAND = (*PYTHON_M, "raftkv")
LOG_TAIL_BYTES = 16_384


class NodeProcess:
    """A node of a local cluster; its process leads a group that its HTTP workers belong to.

    The node's standard input is a pipe that only its starter holds: when the starter dies, however
    suddenly, the node sees the end of it and stops.
    """

    def __init__(
        self, name: str, config: Path, log: Path, command: Sequence[str] = RAFTKV_COMMAND
    ) -> None:
        self.name = name
        self.config = config
        self.log = log
        self.output: int | None = None
        """The descriptor that it writes to instead of the log, for who wants to see it hindered."""
        self._command = (*command, "serve", "--until-eof", "--config", str(config))
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it. It must not be running."""
        if self.is_running:
            raise RuntimeError(f"{self.name} is running already")
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(  # noqa: S603 -- our own command
                self._command,
                stdin=subprocess.PIPE,
                stdout=log if self.output is None else self.output,
                stderr=subprocess.STDOUT,
                process_group=0,
            )

    @property
    def pid(self) -> int:
        """The process id, of the last process if it ended."""
        if self._process is None:
            raise RuntimeError(f"{self.name} was never started")
        return self._process.pid

    @property
    def is_running(self) -> bool:
        """Whether the process lives; one that ended is reaped here."""
        return self._process is not None and self._process.poll() is None

    @property
    def exit_code(self) -> int | None:
        """The code that it ended with, minus the signal that it was killed by; None if it runs."""
        return None if self._process is None else self._process.poll()

    def terminate(self) -> None:
        """Ask it to stop cleanly."""
        if self._process is not None:
            self._process.terminate()

    def wait(self, timeout_s: float) -> bool:
        """Wait for its end; False if it does not come in time."""
        if self._process is None:
            return True
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return False
        if self._process.stdin is not None:
            self._process.stdin.close()
        return True

    def signal_group(self, number: signal.Signals) -> None:
        """Send a signal to every process of the node."""
        if self.is_running:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, number)

    def kill(self) -> None:
        """End every process of the node at once (SIGKILL), as when its machine loses power."""
        self.signal_group(signal.SIGKILL)
        self.wait(timeout_s=10)

    def log_tail(self) -> str:
        """The end of what it said."""
        try:
            with self.log.open("rb") as log:
                log.seek(max(0, self.log.stat().st_size - LOG_TAIL_BYTES))
                return log.read().decode(errors="replace")
        except FileNotFoundError:
            return ""


class ForeignProcess(NodeProcess):
    """A node of another store, which the kernel kills when its starter is gone.

    It is become, not wrapped: the time that its start takes is its own.
    """

    def __init__(self, name: str, log: Path, command: Sequence[str]) -> None:
        super().__init__(name, log, log)
        self._command = ("setpriv", "--pdeathsig", "KILL", "--", *command)
