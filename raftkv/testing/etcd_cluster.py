"""etcd as processes on this machine: the store that ours is compared with."""

import contextlib
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from raftkv.client import RaftkvError
from raftkv.testing.etcd_client import EtcdClient
from raftkv.testing.local_cluster import POLL_S, ClusterError
from raftkv.testing.ports import PortReservation, is_free
from raftkv.testing.processes import ForeignProcess, NodeProcess

HOST = "127.0.0.1"
READY_S = 60.0
PORT_WAIT_S = 5.0
ASK_S = 0.5


class EtcdCluster:
    """Members ``e1``, ``e2``, ... of one etcd cluster.

    Args:
        directory: New; holds data and logs, which stay.
        nodes: How many members.
        options: Command line options without dashes, beyond names and addresses.
    """

    def __init__(
        self, directory: Path, *, nodes: int = 3, options: Mapping[str, str] | None = None
    ) -> None:
        self.names = tuple(f"e{number}" for number in range(1, nodes + 1))
        self.urls: dict[str, str] = {}
        self._directory = directory
        self._options = dict(options or {})
        self._stack = contextlib.ExitStack()
        self._ports: dict[str, tuple[int, int]] = {}
        self._processes: dict[str, ForeignProcess] = {}

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def start(self) -> None:
        """Start all members and wait until each answers a linearizable read.

        Raises:
            ClusterError: There is no etcd, or it was not ready in time.
        """
        self.prepare()
        for name in self.names:
            self.start_node(name)
        self.wait_ready()

    def prepare(self) -> None:
        """Choose ports and make the directory, without starting anything."""
        executable = shutil.which("etcd")
        if executable is None:
            raise ClusterError("this needs etcd: apt-get install etcd-server")
        self._directory.mkdir(parents=True)
        reservation = PortReservation(2 * len(self.names))
        self._stack.callback(reservation.release)
        ports = iter(reservation.ports)
        self._ports = {name: (next(ports), next(ports)) for name in self.names}
        for name in self.names:
            self._make(name, executable)

    def _make(self, name: str, executable: str) -> None:
        client_port, peer_port = self._ports[name]
        self.urls[name] = f"http://{HOST}:{client_port}"
        peer_url = f"http://{HOST}:{peer_port}"
        options = {
            "name": name,
            "data-dir": str(self._directory / name),
            "listen-client-urls": self.urls[name],
            "advertise-client-urls": self.urls[name],
            "listen-peer-urls": peer_url,
            "initial-advertise-peer-urls": peer_url,
            "initial-cluster": ",".join(
                f"{other}=http://{HOST}:{port}" for other, (_, port) in self._ports.items()
            ),
            **self._options,
        }
        command = (executable, *(f"--{option}={value}" for option, value in options.items()))
        self._processes[name] = ForeignProcess(name, self._directory / f"{name}.log", command)

    def start_node(self, name: str) -> None:
        """Start a member, once the one before has given its ports up."""
        deadline = time.monotonic() + PORT_WAIT_S
        while not all(is_free(port) for port in self._ports[name]):
            if time.monotonic() > deadline:
                raise ClusterError(f"{name}: its ports {self._ports[name]} are in use")
            time.sleep(POLL_S)
        self._processes[name].start()

    def wait_ready(self, timeout_s: float = READY_S) -> None:
        """Wait until each member answers a linearizable read."""
        deadline = time.monotonic() + timeout_s
        while late := self.late():
            if time.monotonic() > deadline:
                raise ClusterError(f"etcd is not ready within {timeout_s:.0f} s: {late}")
            time.sleep(POLL_S)

    def late(self) -> str:
        """Which member does not answer a linearizable read now; empty if all do."""
        for name in self.names:
            with contextlib.closing(self.client(name)) as client:
                try:
                    client.get("ready?")
                except RaftkvError as error:
                    return f"{name}: {error}"
        return ""

    def client(self, name: str) -> EtcdClient:
        """A client of one member alone, that does not wait long; to be closed."""
        return EtcdClient([self.urls[name]], timeout_s=ASK_S)

    def leadership(self, name: str) -> int | None:
        """The term in which a member leads, 0 if it does not, None if it does not answer."""
        with contextlib.closing(self.client(name)) as client:
            try:
                status = client.status()
            except RaftkvError:
                return None
        leads = status.get("leader") == status["header"]["member_id"]
        return int(status["raftTerm"]) if leads else 0

    def leader(self) -> str | None:
        """The member that says it leads, None while none does."""
        return next((name for name in self.names if self.leadership(name)), None)

    def process(self, name: str) -> NodeProcess:
        """The process of a member."""
        return self._processes[name]

    def close(self) -> None:
        """Kill all members and give the ports up."""
        for process in self._processes.values():
            process.kill()
        self._stack.close()
