"""Where replicas go: a pure function from nodes, shards and replication factor to placements.

Even in three ways. Replicas: no node holds more than one replica more than another. Preferred
leaders: likewise. Pairs: a node's followers are spread over the other nodes, so that when it dies
its shards' new leaders are spread as well.
"""

from collections import Counter, deque
from collections.abc import Sequence

from raftkv.core.cluster_map import ClusterMap, GroupPlacement, contradiction
from raftkv.core.ring import VNODES_DEFAULT, RingParameters

FIRST_GENERATION = 1
FIRST_EPOCH = 1


def place(
    nodes: Sequence[str], shards: Sequence[int], replication_factor: int
) -> tuple[GroupPlacement, ...]:
    """Spread the replicas of ``shards`` over ``nodes``; the first replica is to lead.

    The order in which nodes are listed does not matter: every node seeds its map from its own
    configuration file, and they must all come to the same one.

    Raises:
        ValueError: The factor is below one or above the number of nodes, or a name is repeated.
    """
    names = sorted(nodes)
    if len(set(names)) != len(names):
        raise ValueError("a node is listed twice")
    if not 1 <= replication_factor <= len(names):
        raise ValueError(
            f"cannot put {replication_factor} replicas of a shard on {len(names)} nodes"
        )
    replica_sets = _spread_replicas(names, len(shards), replication_factor)
    leaders = _spread_leaders(names, replica_sets)
    return tuple(
        GroupPlacement(shard, FIRST_GENERATION, _leader_first(leader, replicas))
        for shard, leader, replicas in zip(shards, leaders, replica_sets, strict=True)
    )


def seed_map(
    cluster_id: str,
    nodes: Sequence[str],
    shards: int,
    replication_factor: int,
    *,
    kind: str = "ring",
    vnodes: int = VNODES_DEFAULT,
) -> ClusterMap:
    """Make the first map of a cluster, with shards numbered from 0.

    Raises:
        ValueError: What is asked for cannot be had; the message says why.
    """
    if shards < 1:
        raise ValueError("a cluster needs at least one shard")
    if kind not in {"ring", "modulo"}:
        raise ValueError(f"unknown partitioner {kind!r}: ring or modulo")
    numbers = tuple(range(shards))
    ring = RingParameters("modulo" if kind == "modulo" else "ring", numbers, vnodes)
    groups = place(nodes, numbers, replication_factor)
    cluster_map = ClusterMap(FIRST_EPOCH, cluster_id, tuple(sorted(nodes)), ring, groups)
    problem = contradiction(cluster_map)
    if problem is not None:
        raise ValueError(problem)
    return cluster_map


def _spread_replicas(names: list[str], shards: int, factor: int) -> list[list[str]]:
    """Give each shard the nodes that hold least; among those, ones that rarely sat together."""
    held = dict.fromkeys(names, 0)
    together: Counter[tuple[str, str]] = Counter()
    replica_sets = []
    for _ in range(shards):
        chosen: list[str] = []
        while len(chosen) < factor:
            chosen.append(
                min(
                    (node for node in names if node not in chosen),
                    key=lambda node: (held[node], sum(together[node, other] for other in chosen)),
                )
            )
        for node in chosen:
            held[node] += 1
            together.update((node, other) for other in chosen)
        replica_sets.append(chosen)
    return replica_sets


def _spread_leaders(names: list[str], replica_sets: list[list[str]]) -> list[str]:
    """Choose each shard's leader among its replicas, no node leading two more than another.

    Greedy choice alone can end uneven; then leaderships are passed along the shortest chain of
    shared shards from a node that leads too many to one that leads too few. With even replicas
    such a chain exists while the counts differ by two or more (integrality of flows).
    """
    load = dict.fromkeys(names, 0)
    leaders = []
    for replicas in replica_sets:
        leader = min(replicas, key=load.__getitem__)
        load[leader] += 1
        leaders.append(leader)
    while chain := _chain_of_relief(load, leaders, replica_sets):
        for shard, successor in chain:
            load[leaders[shard]] -= 1
            load[successor] += 1
            leaders[shard] = successor
    return leaders


def _chain_of_relief(
    load: dict[str, int], leaders: list[str], replica_sets: list[list[str]]
) -> list[tuple[int, str]]:
    """Return the changes ``(shard, new leader)`` that relieve some node, none if all is even.

    For any source whose chain reaches a node that leads at least two shards fewer.
    """
    for source in sorted(load, key=load.__getitem__, reverse=True):
        chains: dict[str, list[tuple[int, str]]] = {source: []}
        frontier = deque([source])
        while frontier:
            node = frontier.popleft()
            if load[node] <= load[source] - 2:
                return chains[node]
            for shard, leader in enumerate(leaders):
                if leader != node:
                    continue
                for successor in replica_sets[shard]:
                    if successor not in chains:
                        chains[successor] = [*chains[node], (shard, successor)]
                        frontier.append(successor)
    return []


def _leader_first(leader: str, replicas: list[str]) -> tuple[str, ...]:
    return (leader, *(node for node in replicas if node != leader))
