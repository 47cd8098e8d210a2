"""Kill -9 under load: of any one node, of all at once, of the only one."""

import shutil
import signal
from pathlib import Path

import pytest

from raftkv import Client
from raftkv.client import UnknownOutcomeError
from raftkv.core.cluster_map import GroupId
from raftkv.storage.data_dir import open_data_dir
from raftkv.storage.disk import RealDisk
from raftkv.storage.wal import RecoveredGroup, Wal
from raftkv.testing import LocalCluster
from tests.cluster.cluster_load import (
    Load,
    assert_one_leader_per_term,
    status,
    wait_replicas_agree,
)

pytestmark = pytest.mark.cluster

SMALL_LOG = {"limits": {"wal_segment_bytes": 2**20}}


def kill_all(cluster: LocalCluster) -> None:
    """End every process of every node before the first of them is waited for."""
    for name in cluster.names:
        cluster.process(name).signal_group(signal.SIGKILL)
    for name in cluster.names:
        cluster.kill(name)


def start_all(cluster: LocalCluster) -> None:
    """Start every node and wait until all are ready."""
    for name in cluster.names:
        cluster.start_node(name)
    cluster.wait_ready()


def test_kill_of_any_one_node_loses_nothing(raftkv_cluster: LocalCluster) -> None:
    """Each node in turn: its shards take writes again, and every acknowledged write is there."""
    cluster = raftkv_cluster
    with Load(cluster) as load:
        for name in cluster.names:
            cluster.kill(name)
            load.wait_progress()
            cluster.restart(name)
            load.wait_progress()
    load.judge(cluster.client())
    wait_replicas_agree(cluster)
    assert_one_leader_per_term(cluster)


def hard_states(cluster: LocalCluster, copies: Path) -> dict[str, dict[GroupId, RecoveredGroup]]:
    """What each node's log remembers, read from a copy as the node itself would read it."""
    remembered = {}
    for name in cluster.names:
        copy = copies / name
        shutil.copytree(
            cluster.node(name).directory / "data",
            copy,
            ignore=shutil.ignore_patterns("*.sock"),
        )
        data = open_data_dir(RealDisk(), copy, cluster.layout.shape.cluster_id, name)
        wal, groups = Wal.open(
            RealDisk(), data.wal_directory, identity=data.identity.identity, segment_bytes=2**20
        )
        wal.close()
        data.close()
        remembered[name] = groups
    return remembered


@pytest.mark.raftkv_cluster(options=SMALL_LOG)
def test_kill_of_all_nodes_at_once_loses_nothing(
    raftkv_cluster: LocalCluster, tmp_path: Path
) -> None:
    """Every acknowledged write is there; terms never go back and votes are remembered."""
    cluster = raftkv_cluster
    with Load(cluster) as load:
        for number in range(2):
            before = status(cluster)
            load.wait_progress()
            kill_all(cluster)
            remembered = hard_states(cluster, tmp_path / str(number))
            start_all(cluster)
            load.wait_progress()
            after = status(cluster)
            for shard, row in before.items():
                group = GroupId(shard, row["generation"])
                recovered = {name: groups[group] for name, groups in remembered.items()}
                for name, member in row["members"].items():
                    assert recovered[name].term >= member["term"]
                    assert after[shard]["members"][name]["term"] >= recovered[name].term
                # Nobody has been elected since, so those who elected the leader still know it.
                votes = [r.vote for r in recovered.values() if r.term == row["term"]]
                if {r.term for r in recovered.values()} == {row["term"]}:
                    assert votes.count(row["leader"]) >= 2, (shard, votes, row["leader"])
                assert after[shard]["term"] > row["term"], "a new leader without a new term"
    load.judge(cluster.client())
    wait_replicas_agree(cluster)
    assert_one_leader_per_term(cluster)


def test_a_leader_without_followers_acknowledges_nothing(raftkv_cluster: LocalCluster) -> None:
    """Its followers frozen, it promises nothing that its death could break."""
    cluster = raftkv_cluster
    client = cluster.client(timeout_s=20)
    client.put("lonely", "before")
    leader = client.explain("lonely")["leader"]
    others = [name for name in cluster.names if name != leader]
    for name in others:
        cluster.pause(name)
    try:
        with (
            Client(cluster.node(leader).url, timeout_s=1.5, idempotent=False) as alone,
            pytest.raises(UnknownOutcomeError),
        ):
            alone.put("lonely", "promised by one")
        cluster.kill(leader)
    finally:
        for name in others:
            cluster.resume(name)
    entry = client.get("lonely")
    assert entry is not None
    assert entry.value in {b"before", b"promised by one"}, "what was acknowledged is lost"


@pytest.mark.raftkv_cluster(nodes=1)
def test_a_cluster_of_one_node_keeps_its_data(raftkv_cluster: LocalCluster) -> None:
    """It takes all requests alone, and neither kill -9 nor a clean stop loses anything."""
    cluster = raftkv_cluster
    with Load(cluster) as load:
        cluster.kill("n1")
        cluster.restart("n1")
        load.wait_progress()
    load.judge(cluster.client())
    assert cluster.stop_node("n1") == 0
    cluster.restart("n1")
    load.judge(cluster.client())
    assert_one_leader_per_term(cluster)
