"""A follower that was away past log compaction catches up by snapshot, whatever dies meanwhile."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from raftkv.client import Put
from raftkv.testing import LocalCluster
from tests.cluster.cluster_load import (
    Load,
    assert_one_leader_per_term,
    status,
    until,
    wait_replicas_agree,
)

pytestmark = pytest.mark.cluster

SHARD = 0
STATE_BYTES = 6 * 2**20
"""Large enough that sending and loading it takes a while."""

POLL_S = 0.002
"""What is waited for may last for some milliseconds only."""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    """Three nodes with one shard, a short log, and some megabytes of state."""
    options = {
        "limits": {
            "snapshot_after_entries": 100,
            "snapshot_after_bytes": 2**16,
            "wal_segment_bytes": 2**20,
        }
    }
    directory = tmp_path_factory.mktemp("catch-up")
    with LocalCluster(directory, shards=1, options=options) as cluster:
        with cluster.client(timeout_s=30) as client:
            value = "x" * 16_384
            client.batch([Put(f"ballast/{n}", value) for n in range(STATE_BYTES // len(value))])
        yield cluster


class Watch:
    """How far a node has come with a snapshot, as its files and its log show it."""

    def __init__(self, cluster: LocalCluster, name: str) -> None:
        node = cluster.node(name)
        self._directory = node.directory / "data" / "snapshots"
        self._log = node.log
        self._said_before = node.log.stat().st_size
        self._file_before = _inode(self._file)

    @property
    def _file(self) -> Path:
        return self._directory / f"group-{SHARD}-1.snap"

    def connected(self) -> bool:
        """A link is up: whatever it missed is about to come."""
        return "is up" in self._said()

    def transferring(self) -> bool:
        """The first bytes of a snapshot have come, or more than that has happened."""
        return self._file.with_name(f"{self._file.name}.receiving").exists() or self.received()

    def received(self) -> bool:
        """The file has got its name and is being loaded, or more than that has happened."""
        return _inode(self._file) != self._file_before or self.installed()

    def installed(self) -> bool:
        """It is the state now."""
        return "snapshot_installed" in self._said()

    def _said(self) -> str:
        with self._log.open("rb") as log:
            log.seek(self._said_before)
            return log.read().decode(errors="replace")


def _inode(file: Path) -> int:
    try:
        return file.stat().st_ino
    except FileNotFoundError:
        return 0


def away_past_compaction(cluster: LocalCluster, load: Load) -> tuple[str, str]:
    """Kill a follower and write until it needs a snapshot; return the leader and it."""
    row = status(cluster)[SHARD]
    leader = row["leader"]
    follower = next(name for name in row["replicas"] if name != leader)
    cluster.kill(follower)
    missed = row["last_index"] + 1
    load.wait_progress()

    def compacted() -> bool:
        row = status(cluster)[SHARD]
        return bool(row["leader"] is not None and row["first_index"] > missed)

    cluster.wait_for(compacted, "the leader's log begins after what the follower has")
    return leader, follower


POINTS: dict[str, Callable[[Watch], bool]] = {
    "before": Watch.connected,
    "during the transfer": Watch.transferring,
    "during the install": Watch.received,
    "right after": Watch.installed,
}


@pytest.mark.parametrize("victim", ["follower", "leader"])
@pytest.mark.parametrize("point", POINTS)
def test_a_crash_while_a_follower_catches_up_is_harmless(
    cluster: LocalCluster, point: str, victim: str
) -> None:
    """Kill -9 at this point: it comes back, all replicas agree, nothing acknowledged is lost."""
    with Load(cluster, name=f"{point}-{victim}", value_bytes=512) as load:
        leader, follower = away_past_compaction(cluster, load)
        watch = Watch(cluster, follower)
        cluster.start_node(follower)
        until(lambda: POINTS[point](watch), f"the follower gets there: {point}", POLL_S)
        killed = leader if victim == "leader" else follower
        cluster.kill(killed)
        load.wait_progress()
        cluster.restart(killed)
        load.wait_progress()
    wait_replicas_agree(cluster)
    with cluster.client(timeout_s=20) as client:
        load.judge(client)
    assert_one_leader_per_term(cluster)


def test_writes_go_on_while_a_follower_catches_up(cluster: LocalCluster) -> None:
    """From its start to its last entry no write fails."""
    with Load(cluster, name="going-on", value_bytes=512) as load:
        _, follower = away_past_compaction(cluster, load)
        failed = len(load.errors)
        watch = Watch(cluster, follower)
        cluster.start_node(follower)
        until(watch.installed, "the follower installs a snapshot", POLL_S)
        load.wait_progress()
        assert load.errors[failed:] == []
    wait_replicas_agree(cluster)
    with cluster.client(timeout_s=20) as client:
        load.judge(client)
