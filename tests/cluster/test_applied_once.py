"""A retry under the same idempotency key is applied once, whatever happened in between."""

import signal
import uuid
from dataclasses import dataclass, field

import pytest
import urllib3

from raftkv.testing import LocalCluster
from tests.cluster.cluster_load import Load, status, until, wait_replicas_agree

pytestmark = pytest.mark.cluster

SHORT_LOG = {
    "limits": {
        "snapshot_after_entries": 50,
        "snapshot_after_bytes": 2**16,
        "wal_segment_bytes": 2**20,
    }
}

TIMEOUT_MS = 10_000


@dataclass
class Write:
    """One write of a key, to be sent again and again with the same idempotency headers."""

    key: str
    headers: dict[str, str]
    method: str = "PUT"
    body: bytes | None = b"first"
    first: tuple[int, bytes] = (0, b"")
    urls: list[str] = field(default_factory=list)

    def send(self, url: str) -> tuple[int, bytes]:
        """Send it once and return status and body."""
        headers = {**self.headers, "Raftkv-Timeout-Ms": str(TIMEOUT_MS)}
        answer = urllib3.request(
            self.method,
            f"{url}/v1/kv/{self.key}",
            body=self.body,
            headers=headers,
            retries=False,
            timeout=TIMEOUT_MS / 1000 + 5,
        )
        return answer.status, answer.data


def writes_of_every_kind() -> list[Write]:
    """Puts and deletes, with free-form keys and with sessions."""
    session = uuid.uuid4().hex
    return [
        Write("once/free", {"Idempotency-Key": uuid.uuid4().hex}),
        Write("once/session", {"Raftkv-Session": f"{session};1;1;9"}),
        Write("gone/free", {"Idempotency-Key": uuid.uuid4().hex}, "DELETE", None),
        Write("gone/session", {"Raftkv-Session": f"{session};2;1;9"}, "DELETE", None),
    ]


def change_leaders(cluster: LocalCluster) -> None:
    """Kill a node that leads; the others take over."""
    with cluster.client(timeout_s=20) as client:
        leader = client.explain("once/free")["leader"]
    cluster.kill(leader)
    cluster.wait_for(
        lambda: all(row["leader"] not in {None, leader} for row in status(cluster).values()),
        "other leaders",
    )
    cluster.restart(leader)


def restart_all(cluster: LocalCluster) -> None:
    """Kill every node and start all again."""
    for name in cluster.names:
        cluster.process(name).signal_group(signal.SIGKILL)
    for name in cluster.names:
        cluster.kill(name)
    for name in cluster.names:
        cluster.start_node(name)
    cluster.wait_ready()


def compact(cluster: LocalCluster) -> None:
    """Write until no replica's log holds what was in it before, then load the snapshots."""
    before = {shard: row["last_index"] for shard, row in status(cluster).items()}

    def compacted() -> bool:
        rows = []
        for name in cluster.names:
            url = f"{cluster.node(name).url}/v1/status"
            rows += urllib3.request("GET", url, timeout=10).json()["shards"]
        return all(row["first_index"] > before[row["shard"]] for row in rows)

    with Load(cluster, name="compact"):
        cluster.wait_for(compacted, "every replica's log begins later")
    restart_all(cluster)


HAPPENINGS = [change_leaders, compact, restart_all]


@pytest.mark.raftkv_cluster(options=SHORT_LOG, shards=1)
def test_a_retry_is_applied_once(raftkv_cluster: LocalCluster) -> None:
    """After a leader change, a snapshot, a restart: the first answer again, and no second effect.

    In between somebody else writes the keys, which a second application would undo.
    """
    cluster = raftkv_cluster
    client = cluster.client(timeout_s=20)
    writes = writes_of_every_kind()
    for write in writes:
        if write.method == "DELETE":
            client.put(write.key, "to be deleted")
        write.first = write.send(cluster.urls[0])
        assert write.first[0] in {200, 201}
        client.put(write.key, "by somebody else")
    for happening in HAPPENINGS:
        happening(cluster)
        for write in writes:
            for url in cluster.urls:
                assert write.send(url) == write.first, (happening.__name__, write.key)
            entry = client.get(write.key)
            assert entry is not None, (happening.__name__, write.key)
            assert entry.value == b"by somebody else", (happening.__name__, write.key)
        other = Write(writes[0].key, writes[0].headers, body=b"another request")
        assert other.send(cluster.urls[1])[0] == 422
    wait_replicas_agree(cluster)


def test_retries_while_leaders_die_are_applied_once(raftkv_cluster: LocalCluster) -> None:
    """Free-form keys sent to any node until one answers: the version counts each write once."""
    cluster, key = raftkv_cluster, "counted"
    done = 0

    def write() -> None:
        nonlocal done
        headers = {"Idempotency-Key": uuid.uuid4().hex}
        attempt = 0

        def answered() -> bool:
            nonlocal attempt
            attempt += 1
            url = cluster.urls[attempt % len(cluster.urls)]
            try:
                answer = urllib3.request(
                    "PUT",
                    f"{url}/v1/kv/{key}",
                    body=str(done),
                    headers={**headers, "Raftkv-Timeout-Ms": "300"},
                    retries=False,
                    timeout=1,
                )
            except urllib3.exceptions.HTTPError:
                return False
            assert answer.status in {200, 201, 429, 503, 504}, answer.data
            return answer.status in {200, 201}

        until(answered, "the write is acknowledged by somebody")
        done += 1

    with cluster.client(timeout_s=20) as client:
        for _ in range(2):
            for _ in range(20):
                write()
            leader = client.explain(key)["leader"]
            cluster.kill(leader)
            for _ in range(20):
                write()
            cluster.restart(leader)
        entry = client.get(key)
    assert entry is not None
    assert (entry.version, entry.value) == (done, str(done - 1).encode())
