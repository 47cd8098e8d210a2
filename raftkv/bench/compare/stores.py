"""The stores that are compared, each started with its own defaults: three nodes, one disk."""

import contextlib
import dataclasses
import importlib.util
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from raftkv.bench.cluster import (
    addresses_of,
    server_processes,
    throwaway_cluster,
    wait_leaders_home,
)
from raftkv.bench.compare.zookeeper import zookeeper_cluster
from raftkv.bench.load.dialects import DIALECTS
from raftkv.bench.load.filling import fill_keys
from raftkv.bench.load.first_write import first_write
from raftkv.bench.load.generator import Carrier
from raftkv.bench.load.run_load import Servers
from raftkv.bench.load.workload import Workload
from raftkv.interpreter import PYTHON_M
from raftkv.testing import ClusterError
from raftkv.testing.etcd_cluster import EtcdCluster
from raftkv.testing.ports import PortReservation
from raftkv.testing.processes import ForeignProcess

SHARDS = 4
NODES = 3
HOST = "127.0.0.1"


@dataclasses.dataclass(frozen=True)
class Store:
    """A running cluster, ready to be loaded."""

    name: str
    addresses: tuple[tuple[str, int], ...]
    processes: Callable[[], Servers]
    settle: Callable[[], None]
    """Waits until all is as it should be before a run."""
    fill: Callable[[Workload], None]
    """Puts every key."""
    dialect: str = "raftkv"
    carrier: Carrier = "http"


def _filler(addresses: tuple[tuple[str, int], ...], dialect: str) -> Callable[[Workload], None]:
    return lambda workload: fill_keys(addresses, workload, dialect)


@contextlib.contextmanager
def raftkv_store(directory: Path) -> Iterator[Store]:
    """Four shards on three nodes, in the shipped configuration."""
    with throwaway_cluster(directory, shards=SHARDS) as cluster:
        addresses = addresses_of(cluster.urls)
        yield Store(
            "raftkv",
            addresses,
            processes=lambda: server_processes(cluster),
            settle=lambda: wait_leaders_home(cluster),
            fill=_filler(addresses, "raftkv"),
        )


@contextlib.contextmanager
def _etcd(directory: Path) -> Iterator[Store]:
    """Three members, asked through the JSON gateway."""
    with EtcdCluster(directory / "etcd", nodes=NODES) as cluster:
        addresses = addresses_of(list(cluster.urls.values()))
        yield Store(
            "etcd",
            addresses,
            processes=lambda: {"etcd": [cluster.process(name).pid for name in cluster.names]},
            settle=cluster.wait_ready,
            fill=_filler(addresses, "etcd"),
            dialect="etcd",
        )


@contextlib.contextmanager
def _zookeeper(directory: Path) -> Iterator[Store]:
    """Three servers, asked by kazoo."""
    if importlib.util.find_spec("kazoo") is None:
        raise ClusterError("ZooKeeper is asked by kazoo: in a checkout, pip install '.[bench]'")
    from raftkv.bench.load import kazoo_load  # noqa: PLC0415 -- needs an optional package

    with zookeeper_cluster(directory / "zookeeper") as (addresses, pids):
        yield Store(
            "zookeeper",
            tuple(addresses),
            processes=lambda: {"zookeeper": pids},
            settle=lambda: None,
            fill=lambda workload: kazoo_load.fill(addresses[0], workload),
            carrier="kazoo",
        )


@contextlib.contextmanager
def _pysyncobj(directory: Path) -> Iterator[Store]:
    """Three processes of the library's example."""
    with contextlib.ExitStack() as stack:
        reservation = PortReservation(2 * NODES)
        stack.callback(reservation.release)
        ports, peers = reservation.ports[:NODES], reservation.ports[NODES:]
        members = [f"{HOST}:{peer}" for peer in peers]
        processes = []
        for number, port in enumerate(ports):
            partners = [member for member in members if member != members[number]]
            command = (
                *PYTHON_M,
                "raftkv.bench.compare.pysyncobj_http",
                str(port),
                members[number],
                *partners,
            )
            process = ForeignProcess(f"p{number}", directory / f"pysyncobj{number}.log", command)
            stack.callback(process.kill)
            process.start()
            processes.append(process)
        addresses = tuple((HOST, port) for port in ports)
        for address in addresses:
            first_write((address,), DIALECTS["pysyncobj"].put(b"ready", b"?"))
        yield Store(
            "pysyncobj",
            addresses,
            processes=lambda: {"pysyncobj": [process.pid for process in processes]},
            settle=lambda: None,
            fill=_filler(addresses, "pysyncobj"),
            dialect="pysyncobj",
        )


PEERS: Mapping[str, Callable[[Path], contextlib.AbstractContextManager[Store]]] = {
    "etcd": _etcd,
    "zookeeper": _zookeeper,
    "pysyncobj": _pysyncobj,
}
"""How to start each peer, by name."""
