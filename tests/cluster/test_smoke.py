"""A real cluster does what the first page of the README says."""

import time
import uuid
from collections.abc import Iterator

import pytest
import urllib3

from raftkv import Client
from raftkv.client import Compare, CrossShardError, Get, Put, PutResult, TooLargeError
from raftkv.testing import LocalCluster

pytestmark = pytest.mark.cluster

AWKWARD_KEYS = [b"a/b//c", b"..", b"\x00", b"\xff\xfe", b"%2F", b"x" * 1024, bytes(range(256))]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    """Three nodes, shared by the tests that leave all of them running."""
    with LocalCluster(tmp_path_factory.mktemp("shared")) as shared:
        yield shared


@pytest.fixture
def client(cluster: LocalCluster) -> Client:
    """A client of all nodes."""
    return cluster.client()


def test_any_node_answers_any_request(cluster: LocalCluster) -> None:
    """What was written through one node is read at once through each of the others."""
    clients = [Client(url) for url in cluster.urls]
    for writer in range(3):
        for number in range(8):
            clients[writer].put(f"any/{writer}/{number}", f"{writer}-{number}")
        for reader in clients:
            values = [reader.get(f"any/{writer}/{number}") for number in range(8)]
            assert [entry and entry.value.decode() for entry in values] == [
                f"{writer}-{number}" for number in range(8)
            ]


@pytest.mark.parametrize("key", AWKWARD_KEYS)
def test_keys_are_bytes(client: Client, key: bytes) -> None:
    """Whatever bytes a key has, it comes through the real front end whole."""
    client.put(key, key)
    entry = client.get(key)
    assert entry is not None
    assert (entry.key, entry.value) == (key, key)
    assert client.explain(key)["key_hex"] == key.hex()
    assert client.delete(key).deleted


def test_values_up_to_the_limit(client: Client) -> None:
    """Empty and 1 MiB are stored, a byte more is refused definitely."""
    for size in (0, 2**20):
        client.put("size", b"x" * size)
        entry = client.get("size")
        assert entry is not None
        assert len(entry.value) == size
    with pytest.raises(TooLargeError):
        client.put("size", b"x" * (2**20 + 1))


def test_scan_is_sorted_across_shards(client: Client) -> None:
    """Keys of all shards come in byte order, page by page."""
    keys = [f"scan/{number:04}" for number in range(500)]
    results = client.batch([Put(key, b"v") for key in keys])
    assert all(isinstance(result, PutResult) for result in results)
    assert [entry.key.decode() for entry in client.scan("scan/", page_size=77)] == keys
    shards = {client.explain(key)["shard"] for key in keys[:40]}
    assert len(shards) == 4


def test_a_transaction_is_atomic_in_its_shard(client: Client) -> None:
    """With one tag the keys share a shard; without, the transaction is refused."""
    done = client.txn(
        [Compare("{t}/a", "version", "=", 0)],
        [Put("{t}/a", "1"), Put("{t}/b", "2")],
        [Get("{t}/a")],
    )
    assert done.succeeded
    keys = iter(f"free/{number}" for number in range(1000))
    first = next(keys)
    home = client.explain(first)["shard"]
    other = next(key for key in keys if client.explain(key)["shard"] != home)
    with pytest.raises(CrossShardError):
        client.txn(then=[Put(first, "1"), Put(other, "2")])


def test_an_idempotency_key_names_one_write_of_one_shard(
    cluster: LocalCluster, client: Client
) -> None:
    """Another request under it is refused where the keys share a shard, and done elsewhere."""
    url = cluster.node(cluster.names[0]).url
    keys = [f"named/{number}" for number in range(16)]
    shards = [client.explain(key)["shard"] for key in keys]
    assert len(set(shards)) > 1
    headers = {"Idempotency-Key": uuid.uuid4().hex}
    statuses = [
        urllib3.request("PUT", f"{url}/v1/kv/{key}", body=key, headers=headers).status
        for key in keys
    ]
    first = [shard not in shards[:place] for place, shard in enumerate(shards)]
    assert statuses == [201 if is_first else 422 for is_first in first]


def test_leadership_moves_when_asked(cluster: LocalCluster, client: Client) -> None:
    """The named node leads afterwards, and nothing was lost."""
    client.put("before", b"1")
    leader = cluster.leader_of(0)
    target = next(name for name in cluster.names if name != leader)
    client.transfer_leader(0, target)
    cluster.wait_for(lambda: cluster.leader_of(0) == target, f"{target} leads shard 0")
    assert client.get("before") is not None


def test_a_frozen_leader_is_replaced_and_serves_nothing_stale(
    raftkv_cluster: LocalCluster,
) -> None:
    """SIGSTOP, a new leader takes a write, SIGCONT: the old one answers with the new value."""
    cluster = raftkv_cluster
    client = cluster.client(timeout_s=20)
    client.put("frozen", b"old")
    leader = client.explain("frozen")["leader"]
    shard = client.explain("frozen")["shard"]
    others = [cluster.node(name).url for name in cluster.names if name != leader]
    cluster.pause(leader)
    with Client(others, timeout_s=20) as alive:
        alive.put("frozen", b"new")
        assert alive.explain("frozen")["leader"] != leader
    cluster.resume(leader)
    with Client(cluster.node(leader).url, timeout_s=20) as thawed:
        entry = thawed.get("frozen")
    assert entry is not None
    assert entry.value == b"new", f"stale read of shard {shard} from {leader}"


def test_nothing_acknowledged_is_lost_when_all_nodes_are_killed(
    raftkv_cluster: LocalCluster,
) -> None:
    """Kill -9 of every node at once, then restart: every acknowledged write is there."""
    cluster = raftkv_cluster
    client = cluster.client(timeout_s=20)
    acknowledged = {f"kept/{number}": client.put(f"kept/{number}", "v") for number in range(50)}
    for name in cluster.names:
        cluster.kill(name)
    for name in cluster.names:
        cluster.start_node(name)
    cluster.wait_ready()
    for key, result in acknowledged.items():
        entry = client.get(key)
        assert entry is not None, key
        assert entry.revision == result.revision


def test_writes_go_on_when_a_leader_is_killed(raftkv_cluster: LocalCluster) -> None:
    """Its shards take writes again soon, and it catches up when it comes back."""
    cluster = raftkv_cluster
    client = cluster.client(timeout_s=20)
    client.put("going", b"1")
    leader = client.explain("going")["leader"]
    cluster.kill(leader)
    started = time.monotonic()
    client.put("going", b"2")
    # Generous: how long it takes is measured elsewhere; that it needs no operator is what counts.
    assert time.monotonic() - started < 15
    cluster.restart(leader)
    with Client(cluster.node(leader).url) as back:
        entry = back.get("going")
    assert entry is not None
    assert entry.value == b"2"
