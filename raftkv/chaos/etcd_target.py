"""etcd as a target: the same clients, workloads and faults of processes on a system known well.

If the judge finds fault with etcd, it is the harness that needs a closer look.
"""

import contextlib
import shutil
import signal
from collections.abc import Mapping
from pathlib import Path

from raftkv.chaos.errors import ChaosError
from raftkv.chaos.etcd_client import EtcdClient
from raftkv.chaos.launch import launcher
from raftkv.chaos.waiting import wait_until
from raftkv.client import RaftkvError
from raftkv.testing.ports import PortReservation, is_free
from raftkv.testing.processes import NodeProcess

HOST = "127.0.0.1"
READY_S = 60.0
PORT_WAIT_S = 5.0
ASK_S = 0.5


class EtcdProcess(NodeProcess):
    """An etcd member; its data are removed with the run, its log is kept."""

    def __init__(self, name: str, log: Path, command: tuple[str, ...]) -> None:
        super().__init__(name, log, log)
        self._command = launcher(command, None)


class EtcdTarget:
    """Members ``e1``, ``e2``, ... of one etcd cluster, which is one shard."""

    supported = frozenset({"kill", "storm", "stop", "pause"})
    clean_exits = frozenset({0, -signal.SIGTERM})  # it cleans up, then lets the signal end it
    shards = 1

    def __init__(self, directory: Path, *, nodes: int, election_timeout_ms: int) -> None:
        self.title = f"etcd, {nodes} nodes"
        self.election_timeout_s = election_timeout_ms / 1000
        self.down: set[str] = set()
        self._directory = directory / "cluster"
        self._names = tuple(f"e{number}" for number in range(1, nodes + 1))
        self._election_timeout_ms = election_timeout_ms
        self._stack = contextlib.ExitStack()
        self._urls: dict[str, str] = {}
        self._ports: dict[str, tuple[int, int]] = {}
        self._processes: dict[str, EtcdProcess] = {}
        self._clients: dict[str, EtcdClient] = {}

    def start(self) -> None:
        """Start all members and wait for a leader."""
        executable = shutil.which("etcd")
        if executable is None:
            raise ChaosError("--target etcd needs etcd: apt-get install etcd-server")
        self._directory.mkdir(parents=True)
        reservation = PortReservation(2 * len(self._names))
        self._stack.callback(reservation.release)
        ports = iter(reservation.ports)
        self._ports = {name: (next(ports), next(ports)) for name in self._names}
        self._stack.callback(self._stop)
        for name in self._names:
            self._make(name, executable)
            self.start_node(name)
        if not wait_until(lambda: not self.late({}), READY_S):
            raise ChaosError(f"etcd is not ready within {READY_S:.0f} s: {self.late({})}")

    def _make(self, name: str, executable: str) -> None:
        client_port, peer_port = self._ports[name]
        self._urls[name] = f"http://{HOST}:{client_port}"
        self._clients[name] = EtcdClient([self._urls[name]], timeout_s=ASK_S)
        peer_url = f"http://{HOST}:{peer_port}"
        members = ",".join(f"{n}=http://{HOST}:{p}" for n, (_, p) in self._ports.items())
        options = {
            "name": name,
            "data-dir": str(self._directory / name),
            "listen-client-urls": self._urls[name],
            "advertise-client-urls": self._urls[name],
            "listen-peer-urls": peer_url,
            "initial-advertise-peer-urls": peer_url,
            "initial-cluster": members,
            "heartbeat-interval": str(max(10, self._election_timeout_ms // 10)),
            "election-timeout": str(self._election_timeout_ms),
            "snapshot-count": "1000",
            "log-level": "warn",
        }
        command = (executable, *(f"--{option}={value}" for option, value in options.items()))
        self._processes[name] = EtcdProcess(name, self._directory / f"{name}.log", command)

    def _stop(self) -> None:
        for process in self._processes.values():
            process.kill()

    def close(self) -> None:
        """Kill all members; their data is worth nothing."""
        self._stack.close()
        for client in self._clients.values():
            client.close()

    @property
    def names(self) -> tuple[str, ...]:
        """The members' names."""
        return self._names

    def process(self, name: str) -> NodeProcess:
        """The process of a member."""
        return self._processes[name]

    def start_node(self, name: str) -> None:
        """Start a member, once the one before has given its ports up."""
        wait_until(lambda: all(is_free(port) for port in self._ports[name]), PORT_WAIT_S)
        self._processes[name].start()
        self.down.discard(name)

    def connect(self, client: int) -> EtcdClient:
        """A client that begins with another member than its neighbours."""
        urls = list(self._urls.values())
        first = client % len(urls)
        return EtcdClient([*urls[first:], *urls[:first]])

    def leads(self, name: str) -> Mapping[int, int] | None:
        """Shard 0 with its term, if this member leads."""
        try:
            status = self._clients[name].status()
        except RaftkvError:
            return None
        leads = status.get("leader") == status["header"]["member_id"]
        return {0: int(status["raftTerm"])} if leads else {}

    def committed(self) -> Mapping[int, int]:
        """Nothing to compare: a member that answers a linearizable read has caught up enough."""
        return {}

    def late(self, goal: Mapping[int, int]) -> str:
        """Which member does not answer a read yet."""
        del goal
        for name, client in self._clients.items():
            try:
                client.get("chaos-ready")
            except RaftkvError as error:
                return f"{name}: {error}"
        return ""

    def disagreements(self) -> list[str]:
        """Nothing: etcd's replicas are etcd's own affair."""
        return []

    def keep_logs(self, directory: Path) -> None:
        """Copy each member's log."""
        for process in self._processes.values():
            if process.log.exists():
                shutil.copy(process.log, directory / process.log.name)
