"""How long a shard takes no writes after its leader was killed."""

import time

import msgspec

from raftkv.bench.cluster import (
    addresses_of,
    key_of_each_shard,
    throwaway_cluster,
    wait_caught_up,
    wait_leaders_home,
)
from raftkv.bench.load.dialects import DIALECTS
from raftkv.bench.load.first_write import first_write
from raftkv.bench.load.paced import PacedWriter, numbered_keys
from raftkv.bench.load.summary import summarize
from raftkv.bench.measure import Setting
from raftkv.bench.report import Figure, Report
from raftkv.testing import ClusterError, LocalCluster

SHARDS = 4
LOAD_PER_S = 40
TARGET_S = 2.0


class Kill(msgspec.Struct, frozen=True):
    """One leader killed, and what came of it."""

    shard: int
    leader: str
    seconds: float
    """From the kill to the first write that another node answered with success."""
    caught_up_s: float
    """From when it was brought back until every replica had everything again."""


def run(kills: int, setting: Setting, *, freeze: bool = False) -> Report:
    """Kill or freeze leaders, one after the other."""
    with throwaway_cluster(setting.parent, shards=SHARDS) as cluster:
        with cluster.client() as client:
            keys = key_of_each_shard(client, SHARDS)
        next_key = numbered_keys(b"load-")
        with PacedWriter(cluster.urls, next_key, b"x" * 100, per_s=LOAD_PER_S) as load:
            found = []
            for number in range(kills):
                shard = number % SHARDS
                found.append(kill_once(cluster, shard, keys[shard], freeze=freeze))
                setting.progress(f"kill {number + 1}: {found[-1].seconds * 1000:.0f} ms")
        lost = _lost(cluster, load.acknowledged)
    times = [kill.seconds for kill in found]
    summary = summarize(times)
    figures = [
        Figure("time without writes, median", summary.median_s, "s", TARGET_S),
        Figure("time without writes, worst", summary.worst_s, "s"),
        Figure("until caught up again, worst", max(k.caught_up_s for k in found), "s"),
        Figure("writes acknowledged meanwhile", len(load.acknowledged)),
        Figure("of them lost", lost, at_most=0),
    ]
    samples = ", ".join(f"{seconds * 1000:.0f}" for seconds in times)
    return setting.report(
        f"fail-over: {kills} times {'SIGSTOP' if freeze else 'kill -9'} of a shard's leader, "
        f"{SHARDS} shards, {LOAD_PER_S} writes/s",
        figures,
        notes=[f"all samples in ms: {samples}"],
        details={"kills": found, "writes_failed": load.failed},
    )


def kill_once(cluster: LocalCluster, shard: int, key: bytes, *, freeze: bool) -> Kill:
    """End or freeze the shard's leader, write through the others, bring it back."""
    wait_leaders_home(cluster)  # else the same node would be killed again and again
    leader = cluster.leader_of(shard)
    if leader is None:
        raise ClusterError(f"shard {shard} has no leader")
    others = addresses_of([cluster.node(name).url for name in cluster.names if name != leader])
    request = DIALECTS["raftkv"].put(key, b"written after the kill")
    killed_at = time.monotonic()
    if freeze:
        cluster.pause(leader)
    else:
        cluster.kill(leader)
    written_at = first_write(others, request)
    restarted_at = time.monotonic()
    if freeze:
        cluster.resume(leader)
    else:
        cluster.restart(leader)
    wait_caught_up(cluster)
    return Kill(shard, leader, written_at - killed_at, caught_up_s=time.monotonic() - restarted_at)


def _lost(cluster: LocalCluster, acknowledged: set[bytes]) -> int:
    """How many writes that were acknowledged cannot be read any more."""
    with cluster.client() as client:
        there = {entry.key for entry in client.scan(b"load-", keys_only=True)}
    return len(acknowledged - there)
