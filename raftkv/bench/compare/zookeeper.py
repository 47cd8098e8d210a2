"""ZooKeeper as processes on this machine, with its own defaults."""

import contextlib
import logging
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from raftkv.testing import ClusterError
from raftkv.testing.ports import PortReservation
from raftkv.testing.processes import ForeignProcess

JAR = Path("/usr/share/java/zookeeper.jar")
NODES = 3
READY_S = 60.0
HOST = "127.0.0.1"
_MAIN = "org.apache.zookeeper.server.quorum.QuorumPeerMain"
_POLL_S = 0.2
_SILENT = logging.getLogger("kazoo.waiting")
_SILENT.setLevel(logging.CRITICAL)  # that a server does not listen yet is no news

Address = tuple[str, int]


@contextlib.contextmanager
def zookeeper_cluster(directory: Path) -> Iterator[tuple[list[Address], list[int]]]:
    """Three servers in ``directory``: their addresses for clients, and process ids.

    Raises:
        ClusterError: There is no ZooKeeper, or it was not ready in time.
    """
    java = shutil.which("java")
    if java is None or not JAR.exists():
        raise ClusterError("this needs ZooKeeper: apt-get install zookeeper")
    with contextlib.ExitStack() as stack:
        reservation = PortReservation(3 * NODES)
        stack.callback(reservation.release)
        client, peer, election = (reservation.ports[n::NODES] for n in range(NODES))
        ensemble = "".join(
            f"server.{number + 1}={HOST}:{peer[number]}:{election[number]}\n"
            for number in range(NODES)
        )
        addresses = [(HOST, port) for port in client]
        processes = []
        for number, (_, port) in enumerate(addresses, 1):
            data = directory / f"zk{number}"
            data.mkdir(parents=True)
            (data / "myid").write_text(f"{number}\n")
            config = data / "zoo.cfg"
            config.write_text(
                f"tickTime=2000\ninitLimit=10\nsyncLimit=5\ndataDir={data}\n"
                f"clientPort={port}\nclientPortAddress={HOST}\nadmin.enableServer=false\n"
                f"maxClientCnxns=0\n{ensemble}"
            )
            command = (java, "-cp", str(JAR), _MAIN, str(config))
            process = ForeignProcess(f"zk{number}", data / "log", command)
            stack.callback(process.kill)
            process.start()
            processes.append(process)
        _wait_ready(addresses, processes)
        yield addresses, [process.pid for process in processes]


def _wait_ready(addresses: list[Address], processes: list[ForeignProcess]) -> None:
    from kazoo.client import KazooClient  # noqa: PLC0415 -- only this peer needs it
    from kazoo.handlers.threading import KazooTimeoutError  # noqa: PLC0415

    deadline = time.monotonic() + READY_S
    for host, port in addresses:
        while True:
            ended = [process for process in processes if process.exit_code is not None]
            if ended:
                raise ClusterError(f"{ended[0].name} ended: {ended[0].log_tail()}")
            client = KazooClient(hosts=f"{host}:{port}", logger=_SILENT)
            try:
                client.start(timeout=1.0)
                client.get_children("/")
                break
            except KazooTimeoutError as error:
                if time.monotonic() > deadline:
                    raise ClusterError(f"ZooKeeper is not ready in {READY_S:.0f} s") from error
                time.sleep(_POLL_S)
            finally:
                client.stop()
                client.close()
