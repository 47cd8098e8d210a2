"""More nodes than replicas: any node answers any request, for shards that it does not hold too."""

from collections.abc import Iterator

import pytest
from cluster_load import shard_tags

from raftkv import Client
from raftkv.client import Compare, Delete, DeleteResult, Get, KeyValue, Put, PutResult
from raftkv.testing import LocalCluster

pytestmark = pytest.mark.cluster

NODES = ("n1", "n2", "n3", "n4", "n5")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    """Five nodes, five shards with three replicas each."""
    directory = tmp_path_factory.mktemp("five")
    with LocalCluster(directory, nodes=5, shards=5, replicas=3) as five:
        yield five


@pytest.fixture(scope="module")
def tags(cluster: LocalCluster) -> dict[int, str]:
    """A tag for each shard."""
    with cluster.client() as client:
        return shard_tags(client)


@pytest.fixture(params=NODES)
def client(cluster: LocalCluster, request: pytest.FixtureRequest) -> Client:
    """A client of one node."""
    return Client(cluster.node(request.param).url, timeout_s=20)


def test_each_node_lacks_some_shards(cluster: LocalCluster, client: Client) -> None:
    """Otherwise the other tests show nothing."""
    held = {row["shard"] for row in client.status("local")["shards"]}
    assert 0 < len(held) < 5


def test_single_keys(client: Client, tags: dict[int, str]) -> None:
    """Put, get, compare and set, delete, in every shard."""
    for tag in tags.values():
        key = f"{tag}/single/{client.endpoints[0]}"
        first = client.put(key, "1")
        assert client.get(key) == KeyValue(key.encode(), b"1", first.revision, 1, first.revision)
        second = client.cas(key, "2", revision=first.revision)
        assert second.revision > first.revision
        assert client.delete(key).deleted
        assert client.get(key) is None


def test_batches_and_scans_over_all_shards(client: Client, tags: dict[int, str]) -> None:
    """A batch spans all shards, and a scan finds it in order."""
    prefix = f"span/{client.endpoints[0]}/"
    keys = [f"{prefix}{number:03}" for number in range(100)]
    assert {client.explain(key)["shard"] for key in keys} == tags.keys()
    results = client.batch([*(Put(key, key) for key in keys), Delete(f"{prefix}absent")])
    assert all(isinstance(result, PutResult) for result in results[:-1])
    assert isinstance(results[-1], DeleteResult)
    assert [entry.key.decode() for entry in client.scan(prefix, page_size=7)] == keys
    read = client.batch([Get(key) for key in keys])
    assert [entry.value.decode() for entry in read if isinstance(entry, KeyValue)] == keys


def test_transactions(client: Client, tags: dict[int, str]) -> None:
    """Compare, then: in every shard, through a node that may not hold it."""
    for tag in tags.values():
        a, b = (f"{tag}/txn/{client.endpoints[0]}/{name}" for name in "ab")
        done = client.txn([Compare(a, "version", "=", 0)], [Put(a, "1"), Put(b, "2")])
        again = client.txn([Compare(a, "version", "=", 0)], [Put(a, "3")], [Get(b)])
        assert (done.succeeded, again.succeeded) == (True, False)
        assert isinstance(again.results[0], KeyValue)
        assert again.results[0].value == b"2"


def test_stale_reads_of_bounded_age(client: Client, tags: dict[int, str]) -> None:
    """With ``max_age_ms=0`` a stale read must ask, and so sees what was just written."""
    for tag in tags.values():
        key = f"{tag}/stale/{client.endpoints[0]}"
        client.put(key, "now")
        for max_age_ms in (0, 5000):
            entry = client.get(key, consistency="stale", max_age_ms=max_age_ms)
            assert max_age_ms or entry is not None
        assert client.get(key, consistency="stale") in {None, client.get(key)}
    stale = client.scan("{", consistency="stale", max_age_ms=0)
    assert {f"{tag}/stale/{client.endpoints[0]}" for tag in tags.values()} <= {
        entry.key.decode() for entry in stale
    }


def test_status(cluster: LocalCluster, client: Client) -> None:
    """Each node tells of all nodes and shards, and where a key lives."""
    whole = client.status("cluster")
    assert whole["not_answering"] == []
    assert [node["name"] for node in whole["nodes"]] == list(NODES)
    for row in whole["shards"]:
        assert row["leader"] in row["replicas"]
        assert set(row["members"]) == set(row["replicas"])
        assert len(row["replicas"]) == 3
    assert len(client.shards()["shards"]) == 5
    assert client.shard(3)["shard"] == 3
    assert {node["name"] for node in client.nodes()["nodes"]} == set(NODES)


def test_leadership_is_moved_through_any_node(cluster: LocalCluster, client: Client) -> None:
    """The node that is asked need not hold the shard."""
    row = client.shard(0)
    target = next(name for name in row["replicas"] if name != row["leader"])
    client.transfer_leader(0, target)
    cluster.wait_for(lambda: client.shard(0)["leader"] == target, f"{target} leads shard 0")
