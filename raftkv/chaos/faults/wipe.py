"""A node comes back under its name with an empty disk: the others must not let it in.

It has forgotten what it voted and acknowledged, and would vote and count as if it had promised
nothing (hazard H19). In the end it gets its disk back, and is a node that was away.
"""

import shutil
from pathlib import Path

from raftkv.chaos.faults.base import Fault

REFUSAL = "came back with another identity"
"""What the others write into their logs of such a node."""


class Wipe(Fault):
    """Kill a node, put its data aside, initialize it anew and start it."""

    def start(self) -> None:
        """Do all of it; afterwards the node runs, and has nothing."""
        self.take(self.choose())
        self._node = self.victims[0]
        self._said_before = self._refusals()
        self._let_in = False
        self._kill()
        shutil.copytree(self._data, self._aside, ignore=shutil.ignore_patterns("*.sock"))
        _empty(self._data)
        self.context.raftkv.cluster.init_node(self._node)
        self.target.start_node(self._node)

    @property
    def _data(self) -> Path:
        return self.context.raftkv.data(self._node)

    @property
    def _aside(self) -> Path:
        return self._data.with_name("data.aside")

    def _kill(self) -> None:
        self.target.down.add(self._node)
        self.target.process(self._node).kill()

    def _refusals(self) -> dict[str, int]:
        """How often each of the other nodes says, at the end of its log, that it refused one."""
        others = [name for name in self.target.names if name != self._node]
        return {name: self.target.process(name).log_tail().count(REFUSAL) for name in others}

    def observe(self) -> None:
        """The others say that they refuse it; a node that is ready was let in by a majority."""
        self.effective = self.effective or self._refusals() != self._said_before
        if not self._let_in and self.context.raftkv.cluster.is_ready(self._node):
            self._let_in = True
            self.context.findings.append(f"{self._node} was let in with an emptied disk")

    def stop(self) -> None:
        """Give it its disk back, also if it was never emptied."""
        self._kill()
        if self._aside.exists():
            _empty(self._data)
            shutil.copytree(self._aside, self._data, dirs_exist_ok=True)
            shutil.rmtree(self._aside)
        self.target.start_node(self._node)


def _empty(directory: Path) -> None:
    """Remove what is in a directory; it may be a mount, so it stays itself."""
    for entry in directory.iterdir():
        if entry.is_dir():
            shutil.rmtree(entry)
        else:
            entry.unlink()
