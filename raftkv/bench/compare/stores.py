"""The stores that are compared, each started with its own defaults."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Protocol

from raftkv.bench.cluster import (
    addresses_of,
    server_processes,
    throwaway_cluster,
    wait_leaders_home,
)
from raftkv.bench.run_load import Servers
from raftkv.testing import LocalCluster
from raftkv.testing.etcd_cluster import EtcdCluster

SHARDS = 4


class Store(Protocol):
    """A running cluster of three nodes that speaks HTTP."""

    name: str
    dialect: str

    @property
    def addresses(self) -> tuple[tuple[str, int], ...]:
        """Where its nodes listen."""

    @property
    def servers(self) -> Servers:
        """Its processes."""

    def settle(self) -> None:
        """Wait until it is as it should be before a run."""


class RaftkvStore:
    """Four shards on three nodes, in the shipped configuration."""

    name = "raftkv"
    dialect = "raftkv"

    def __init__(self, cluster: LocalCluster) -> None:
        self._cluster = cluster
        self.addresses = addresses_of(cluster.urls)

    @property
    def servers(self) -> Servers:
        """Engines and HTTP workers."""
        return server_processes(self._cluster)

    def settle(self) -> None:
        """Every shard is led by its preferred node."""
        wait_leaders_home(self._cluster)


class EtcdStore:
    """Three members with etcd's own defaults, asked through the JSON gateway."""

    name = "etcd"
    dialect = "etcd"

    def __init__(self, cluster: EtcdCluster) -> None:
        self._cluster = cluster
        self.addresses = addresses_of(list(cluster.urls.values()))

    @property
    def servers(self) -> Servers:
        """The members."""
        return {"etcd": [self._cluster.process(name).pid for name in self._cluster.names]}

    def settle(self) -> None:
        """Every member answers a linearizable read."""
        self._cluster.wait_ready()


@contextlib.contextmanager
def raftkv_store(directory: Path) -> Iterator[Store]:
    """Start raftkv in a new directory in ``directory``; gone in the end."""
    with throwaway_cluster(directory, shards=SHARDS) as cluster:
        yield RaftkvStore(cluster)


@contextlib.contextmanager
def etcd_store(directory: Path) -> Iterator[Store]:
    """Start etcd in ``directory``."""
    with EtcdCluster(directory / "etcd") as cluster:
        yield EtcdStore(cluster)


HTTP_PEERS: Mapping[str, Callable[[Path], contextlib.AbstractContextManager[Store]]] = {
    "etcd": etcd_store,
}
"""The peers that the generator can load, by name."""
