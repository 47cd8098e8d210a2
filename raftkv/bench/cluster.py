"""The clusters that are measured: three real nodes that leave nothing behind."""

import socket
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from raftkv.bench.load.run_load import LoadError
from raftkv.bench.processes import workers_of
from raftkv.client import Client, RaftkvError
from raftkv.testing import LocalCluster
from raftkv.testing.processes import RAFTKV_COMMAND

NODES = 3
_CONNECT_S = 5.0

Options = dict[str, dict[str, int | bool | str]]


@contextmanager
def throwaway_cluster(
    parent: Path | None,
    *,
    shards: int,
    options: Options | None = None,
    ready_timeout_s: float = 60.0,
    command: Sequence[str] = RAFTKV_COMMAND,
) -> Iterator[LocalCluster]:
    """A running cluster in a new directory in ``parent``, both gone in the end, come what may."""
    with (
        tempfile.TemporaryDirectory(prefix="raftkv-bench-", dir=parent) as directory,
        LocalCluster(
            Path(directory) / "bench",
            nodes=NODES,
            shards=shards,
            replicas=NODES,
            options=options,
            ready_timeout_s=ready_timeout_s,
            command=command,
        ) as cluster,
    ):
        yield cluster


def addresses_of(urls: Sequence[str]) -> tuple[tuple[str, int], ...]:
    """Host and port of every URL."""
    parts = [urlsplit(url) for url in urls]
    return tuple((part.hostname or "", part.port or 80) for part in parts)


def check_reachable(urls: Sequence[str]) -> None:
    """Find out now, and not in a generator, whether something listens at every URL.

    Raises:
        LoadError: Nothing does; the message names the URL.
    """
    for url, address in zip(urls, addresses_of(urls), strict=True):
        try:
            socket.create_connection(address, _CONNECT_S).close()
        except OSError as error:
            raise LoadError(f"{url}: {error.strerror or error}") from error


def server_processes(cluster: LocalCluster) -> dict[str, list[int]]:
    """The processes of all nodes, by what they are: engines and HTTP workers."""
    engines = [cluster.pid(name) for name in cluster.names]
    return {"engine": engines, "worker": [pid for engine in engines for pid in workers_of(engine)]}


def local_facts(cluster: LocalCluster, node: str) -> dict[str, Any]:
    """What one node says of itself alone."""
    with Client(cluster.node(node).url) as client:
        return client.status("local")


def shard_facts(cluster: LocalCluster, node: str, shard: int) -> dict[str, Any]:
    """What one node says of its replica of a shard."""
    for facts in local_facts(cluster, node)["shards"]:
        if facts["shard"] == shard:
            return dict(facts)
    raise ValueError(f"{node} holds no replica of shard {shard}")


def wait_caught_up(cluster: LocalCluster, timeout_s: float = 60.0) -> None:
    """Wait until every replica has applied all that was committed when this was called."""
    goal = {shard: int(row["commit_index"]) for shard, row in cluster.shards().items()}

    def caught_up() -> bool:
        rows = cluster.shards()
        return all(
            len(rows[shard]["members"]) == len(rows[shard]["replicas"])
            and all(view["applied_index"] >= index for view in rows[shard]["members"].values())
            for shard, index in goal.items()
        )

    cluster.wait_for(caught_up, "every replica has caught up", timeout_s)


def wait_leaders_home(cluster: LocalCluster, timeout_s: float = 60.0) -> None:
    """Have every shard led by the node that is preferred for it.

    Asked for, as an operator would: a node that is killed again and again is otherwise given its
    leaderships back ever more rarely.
    """
    with cluster.client() as client:

        def at_home() -> bool:
            rows = cluster.shards().items()
            away = [shard for shard, row in rows if row["leader"] != row["preferred_leader"]]
            for shard in away:
                with suppress(RaftkvError):  # it has not caught up yet, say
                    client.transfer_leader(shard)
            return not away

        cluster.wait_for(at_home, "every shard is led by its preferred node", timeout_s)


def key_of_each_shard(client: Client, shards: int) -> dict[int, bytes]:
    """One key for each shard."""
    keys: dict[int, bytes] = {}
    number = 0
    while len(keys) < shards:
        key = f"bench-{number}".encode()
        keys.setdefault(int(client.explain(key)["shard"]), key)
        number += 1
    return keys
