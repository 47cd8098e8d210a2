"""What a run needs of the system under test, whatever it is."""

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from raftkv.chaos.store import Store
from raftkv.testing.processes import NodeProcess


class Target(Protocol):
    """A system to be driven; :class:`Nodes` are targets whose processes are ours to hurt."""

    title: str
    """What it is, for the report."""

    def start(self) -> None:
        """Be ready for clients.

        Raises:
            ChaosError: It cannot; one line that says what to do.
        """

    def close(self) -> None:
        """Leave nothing behind but the files of the run."""

    def connect(self, client: int) -> Store:
        """The store that this client uses for the whole run."""

    def leads(self, name: str) -> Mapping[int, int] | None:
        """The shards that a node says it leads, with their terms; None if it does not answer."""

    @property
    def names(self) -> tuple[str, ...]:
        """The nodes that can be asked what they lead."""

    def disagreements(self) -> list[str]:
        """How the replicas differ once all is quiet; empty if they agree."""

    def keep_logs(self, directory: Path) -> None:
        """Copy what the nodes said into a directory that outlives the target."""


class Nodes(Target, Protocol):
    """A target whose nodes are processes on this machine."""

    supported: frozenset[str]
    """The kinds of faults that can be done to it."""
    clean_exits: frozenset[int]
    """The codes that a node may end with after SIGTERM."""
    shards: int
    election_timeout_s: float
    down: set[str]
    """Nodes that a fault has taken down and not yet started again."""

    def process(self, name: str) -> NodeProcess:
        """The process of a node."""

    def start_node(self, name: str) -> None:
        """Start a node that is down, without waiting for it."""

    def committed(self) -> Mapping[int, int]:
        """How far each shard is committed now, as a goal for :meth:`late`."""

    def late(self, goal: Mapping[int, int]) -> str:
        """Why the nodes are not all back and as far as ``goal``; empty if they are."""
