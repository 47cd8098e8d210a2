"""Large values through another node than the leader: much at once costs no link between nodes."""

import http.client
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import msgspec
import pytest

from raftkv import Client
from raftkv.client import Get
from raftkv.testing import LocalCluster

pytestmark = pytest.mark.cluster

VALUE = b"v" * 2**20
AT_ONCE = 256
"""Twice the 128 MiB after which a link was given up when all of it was queued at once."""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    """Three nodes, one shard."""
    with LocalCluster(tmp_path_factory.mktemp("large"), shards=1) as three:
        yield three


def follower(cluster: LocalCluster, client: Client) -> str:
    """The name of a node that does not lead."""
    leader = client.explain("large")["leader"]
    return next(name for name in cluster.names if name != leader)


def links(cluster: LocalCluster) -> dict[str, dict[str, int]]:
    """Since when each node has had its link to each other, in microseconds."""
    seen = {}
    for name in cluster.names:
        with Client(cluster.node(name).url) as client:
            nodes = client.status("local")["nodes"]
        seen[name] = {row["name"]: row["since_us"] for row in nodes if row["name"] != name}
    return seen


def ask(url: str, method: str, body: bytes | None) -> str:
    """Make one plain request; return the status, with the code of a refusal."""
    where = urlsplit(url)
    connection = http.client.HTTPConnection(where.hostname or "", where.port, timeout=60)
    try:
        connection.request(method, "/v1/kv/large", body)
        response = connection.getresponse()
        data = response.read()
    finally:
        connection.close()
    if response.status < 300:
        return "ok"
    problem = msgspec.json.decode(data, type=dict[str, object])
    return f"{problem['code']}, definite={problem['definite']}"


@pytest.mark.parametrize("method", ["GET", "PUT"])
def test_many_at_once_are_answered_or_refused_and_no_link_is_lost(
    cluster: LocalCluster, method: str
) -> None:
    """What does not fit is refused, definitely; nothing is unknown, and Raft notices nothing."""
    with cluster.client(timeout_s=30) as client:
        client.put("large", VALUE)
        url = cluster.node(follower(cluster, client)).url
        before = links(cluster)
        with ThreadPoolExecutor(AT_ONCE) as pool:
            asked = [
                pool.submit(ask, url, method, VALUE if method == "PUT" else None)
                for _ in range(AT_ONCE)
            ]
            outcomes = Counter(future.result(90) for future in asked)
        assert set(outcomes) <= {"ok", "busy, definite=True", "overloaded, definite=True"}
        assert outcomes["ok"] > 0
        assert links(cluster) == before


def test_a_batch_of_more_than_an_answer_holds_is_read_whole(cluster: LocalCluster) -> None:
    """The client asks again for what did not fit, through a follower as well."""
    with cluster.client(timeout_s=30) as client:
        client.put("large", VALUE)
        through = cluster.node(follower(cluster, client)).url
    with Client(through, timeout_s=30) as client:
        found = client.batch([Get("large")] * 40)
    assert [getattr(entry, "value", entry) == VALUE for entry in found] == [True] * 40
