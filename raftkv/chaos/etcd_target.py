"""etcd as a target: the same clients, workloads and faults of processes on a system known well.

If the judge finds fault with etcd, it is the harness that needs a closer look.
"""

import shutil
import signal
from collections.abc import Mapping
from pathlib import Path

from raftkv.chaos.errors import ChaosError
from raftkv.testing import ClusterError
from raftkv.testing.etcd_client import EtcdClient
from raftkv.testing.etcd_cluster import EtcdCluster
from raftkv.testing.processes import NodeProcess


class EtcdTarget:
    """Members ``e1``, ``e2``, ... of one etcd cluster, which is one shard."""

    supported = frozenset({"kill", "storm", "stop", "pause"})
    clean_exits = frozenset({0, -signal.SIGTERM})  # it cleans up, then lets the signal end it
    shards = 1

    def __init__(self, directory: Path, *, nodes: int, election_timeout_ms: int) -> None:
        self.title = f"etcd, {nodes} nodes"
        self.election_timeout_s = election_timeout_ms / 1000
        self.down: set[str] = set()
        self._cluster = EtcdCluster(
            directory / "cluster",
            nodes=nodes,
            options={
                "heartbeat-interval": str(max(10, election_timeout_ms // 10)),
                "election-timeout": str(election_timeout_ms),
                "snapshot-count": "1000",
                "log-level": "warn",
            },
        )

    def start(self) -> None:
        """Start all members and wait for a leader."""
        try:
            self._cluster.start()
        except ClusterError as error:
            raise ChaosError(f"--target etcd: {error}") from error

    def close(self) -> None:
        """Kill all members; their data is worth nothing."""
        self._cluster.close()

    @property
    def names(self) -> tuple[str, ...]:
        """The members' names."""
        return self._cluster.names

    def process(self, name: str) -> NodeProcess:
        """The process of a member."""
        return self._cluster.process(name)

    def start_node(self, name: str) -> None:
        """Start a member, once the one before has given its ports up."""
        self._cluster.start_node(name)
        self.down.discard(name)

    def connect(self, client: int) -> EtcdClient:
        """A client that begins with another member than its neighbours."""
        urls = list(self._cluster.urls.values())
        first = client % len(urls)
        return EtcdClient([*urls[first:], *urls[:first]])

    def leads(self, name: str) -> Mapping[int, int] | None:
        """Shard 0 with its term, if this member leads."""
        term = self._cluster.leadership(name)
        return None if term is None else {0: term} if term else {}

    def committed(self) -> Mapping[int, int]:
        """Nothing to compare: a member that answers a linearizable read has caught up enough."""
        return {}

    def late(self, goal: Mapping[int, int]) -> str:
        """Which member does not answer a read yet."""
        del goal
        return self._cluster.late()

    def disagreements(self) -> list[str]:
        """Nothing: etcd's replicas are etcd's own affair."""
        return []

    def keep_logs(self, directory: Path) -> None:
        """Copy each member's log."""
        for name in self.names:
            log = self.process(name).log
            if log.exists():
                shutil.copy(log, directory / log.name)
