"""A bit that flips in a file of a stopped node: it must refuse to start, or still be right.

It has to be told from a write that a power cut has torn, which a node may cut off. If it were not,
the node would lack what it has promised to have, and the others must make up for it: so they all
stay up, and nothing else happens, until it has caught up.
"""

import signal
from pathlib import Path

from raftkv.chaos.faults.base import Fault
from raftkv.chaos.waiting import wait_until

DECIDE_S = 30.0
"""How long a node may take to refuse or to be ready."""
CATCH_UP_S = 60.0


def flip(file: Path, offset: int, bit: int) -> None:
    """Flip one bit of a file; doing it twice restores it."""
    with file.open("r+b") as stream:
        stream.seek(offset)
        byte = stream.read(1)[0]
        stream.seek(offset)
        stream.write(bytes([byte ^ (1 << bit)]))


def used_bytes(file: Path) -> int:
    """How much of a file that was allocated ahead is written."""
    return len(file.read_bytes().rstrip(b"\0"))


REFUSED = 1
"""Exit code of a node that says in one line why it does not start; another one is a crash."""


class BitFlip(Fault):
    """Kill a node, flip a bit, start it; if it refuses, mend the bit and start it again."""

    def start(self) -> None:
        """Do all of it, from the kill until the node has caught up."""
        self.take(self.free_nodes()[:1])
        self._node = self.victims[0]
        self._flipped: tuple[Path, int, int] | None = None
        process = self.target.process(self._node)
        process.kill()
        if process.exit_code != -signal.SIGKILL:
            return
        self._flip_somewhere()
        self.target.start_node(self._node)
        if self._refused():
            self.detail += "; it refused to start, and started when the bit was mended"
            self._mend()
            self.target.start_node(self._node)
        else:
            self.detail += "; it started"
        self._catch_up()

    def _flip_somewhere(self) -> None:
        file = self._file()
        offset, bit = self.random.randrange(used_bytes(file)), self.random.randrange(8)
        self._flipped = (file, offset, bit)
        flip(*self._flipped)
        self.effective = True
        self.detail = f"bit {bit} of byte {offset} of {file.name}"

    def _file(self) -> Path:
        """A file of the kind that the variant says; of the log where there is no snapshot yet."""
        data = self.context.raftkv.data(self._node)
        pattern = "snapshots/*.snap" if self.variant == "snapshot" else "wal/*.log"
        files = sorted(data.glob(pattern)) or sorted(data.glob("wal/*.log"))
        return self.random.choice([file for file in files if used_bytes(file)])

    def _refused(self) -> bool:
        """Wait until it has decided."""
        process, cluster = self.target.process(self._node), self.context.raftkv.cluster
        decided = wait_until(
            lambda: not process.is_running or cluster.is_ready(self._node), DECIDE_S
        )
        if not decided:
            self._find("neither refused to start nor was ready in time")
        if process.exit_code not in (None, REFUSED):
            self._find(f"did not refuse to start, but ended with code {process.exit_code}")
        return not process.is_running

    def _mend(self) -> None:
        if self._flipped is not None:
            flip(*self._flipped)
            self._flipped = None

    def _catch_up(self) -> None:
        goal = self.target.committed()
        if not wait_until(lambda: not self.target.late(goal), CATCH_UP_S):
            self._find(f"had not caught up in time ({self.target.late(goal)})")

    def _find(self, what: str) -> None:
        self.context.findings.append(f"{self._node} {what}, after {self.detail}")

    def observe(self) -> None:
        """Nothing to wait for: the bit was flipped, and what came of it is known."""

    def stop(self) -> None:
        """Have the node running, also after an interruption."""
        if not self.target.process(self._node).is_running:
            self._mend()
            self.target.start_node(self._node)
