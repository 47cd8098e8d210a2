"""``raftkv bench profile``: where the processor time of a write and of a read goes.

One shard, so that it is clear who leads and who follows. The same load runs twice, asking the
leader's node and asking a follower's node, which forwards. Processes are sampled from outside
(:mod:`raftkv.bench.measures.stages`) while their processor time is measured; the product of both is
microseconds by stage. Beside it stand limits that no store can pass
(:mod:`raftkv.bench.measures.limits`).
"""

from collections.abc import Iterator

import msgspec

from raftkv.bench.cluster import addresses_of, throwaway_cluster, wait_leaders_home
from raftkv.bench.load.filling import fill_keys
from raftkv.bench.load.generator import Load
from raftkv.bench.load.run_load import LoadResult, run_load
from raftkv.bench.load.workload import Kind, Workload
from raftkv.bench.measure import Setting
from raftkv.bench.measures import limits
from raftkv.bench.measures.stages import Profilers, find_profiler
from raftkv.bench.processes import workers_of
from raftkv.bench.report import Figure, Report
from raftkv.testing import LocalCluster

KINDS: tuple[Kind, ...] = ("put", "get")
SHOWN_US = 0.5
"""Stages below this are added up as the rest."""

_WARMUP_S = 2.0


class Profile(msgspec.Struct, frozen=True):
    """Of one load: microseconds of processor time for an operation, by process and stage."""

    kind: Kind
    asked: str
    """``leader`` or ``follower``: whose node the load was sent to."""
    result: LoadResult
    stages: dict[str, dict[str, float]]


def run(connections: int, seconds: float, setting: Setting) -> Report:
    """Profile puts and gets, and measure the limits."""
    find_profiler()
    setting.progress("limits: syncs, round trips, bare answers")
    bounds = [
        Figure("limit: one write and fdatasync, median", limits.sync_s(setting.parent) * 1e6, "us"),
        Figure("limit: one round trip on loopback, median", limits.round_trip_s() * 1e6, "us"),
    ]
    bare = limits.bare_wsgi(seconds, connections)
    bounds += [
        Figure("limit: a bare WSGI answer, requests per second", bare.requests_per_s),
        Figure(
            "limit: a bare WSGI answer, processor time", bare.servers["server"].us_per_request, "us"
        ),
    ]
    with throwaway_cluster(setting.parent, shards=1) as cluster:
        wait_leaders_home(cluster)
        profiles = []
        for kind in KINDS:
            for asked in ("leader", "follower"):
                setting.progress(f"{kind}, asking the {asked}'s node")
                load = Load((), connections, seconds, workload=Workload(kind), warmup_s=_WARMUP_S)
                profiles.append(_profile(cluster, asked, load))
    return setting.report(
        f"profile: {connections} connections to one node, one shard",
        [*bounds, *(figure for profile in profiles for figure in _figures(profile))],
        notes=["Sampling costs the processes some time, which is in the figures."],
        details={"profiles": profiles},
    )


def _profile(cluster: LocalCluster, asked: str, load: Load) -> Profile:
    leader = str(cluster.shards()[0]["leader"])
    follower = next(name for name in cluster.names if name != leader)
    node = leader if asked == "leader" else follower
    load = msgspec.structs.replace(load, addresses=addresses_of([cluster.node(node).url]))
    if load.workload.reads:
        fill_keys(load.addresses, load.workload)
    worker = workers_of(cluster.pid(node))[0]
    processes = {
        "worker": worker,
        "leader": cluster.pid(leader),
        "follower": cluster.pid(follower),
    }
    profilers = Profilers(processes, load.warmup_s + load.seconds)
    try:
        result = run_load(load, servers={name: [pid] for name, pid in processes.items()})
        shares = profilers.shares()
    finally:
        profilers.close()
    stages = {
        name: {
            stage: share * (result.servers[name].us_per_request or 0.0)
            for stage, share in shares[name].items()
        }
        for name in processes
    }
    return Profile(load.workload.kind, asked, result, stages)


def _figures(profile: Profile) -> Iterator[Figure]:
    title = f"{profile.kind} at the {profile.asked}'s node"
    yield Figure(f"{title}: requests per second", profile.result.requests_per_s)
    for process, stages in profile.stages.items():
        yield Figure(f"{title}: {process}, all", sum(stages.values()), "us")
        rest = 0.0
        for stage, spent_us in sorted(stages.items(), key=lambda item: -item[1]):
            if spent_us < SHOWN_US:
                rest += spent_us
            else:
                yield Figure(f"    {process}: {stage}", spent_us, "us")
        if rest:
            yield Figure(f"    {process}: the rest", rest, "us")
