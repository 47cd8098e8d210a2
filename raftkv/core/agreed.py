"""What all nodes of a cluster must agree on, as facts with names that can be compared.

Raft makes replicas agree on a log. What is *done* with a log, and which log a key belongs in, is
decided by the cluster map, by constants and by code, and each node reads those from files of its
own. Nodes for which they differ must not count for each other: one shard might get two leaders,
or two replicas of a shard different states. So a handshake compares these facts.

Every constant of the modules that decide outcomes is a fact, unless :data:`DECIDES_NOTHING` says
why not: one that is added and forgotten is compared all the same. Options of a node's own (ports,
times, queues, the largest value that its door lets in) are no facts: they may be changed one node
after another, and no replica applies anything differently for them.
"""

from collections.abc import Iterator, Mapping

import msgspec
from mmh3 import mmh3_x64_128_digest

from raftkv.core import batches, cluster_map, operations, placement, ring
from raftkv.core.cluster_map import ClusterMap
from raftkv.core.shard import (
    changes,
    expiry,
    keyspace,
    machine,
    outcomes,
    sections,
    snapshot,
    transactions,
)
from raftkv.core.shard.outcomes import MemoryLimits

DECIDING_MODULES = (
    batches,
    cluster_map,
    expiry,
    outcomes,
    operations,
    placement,
    ring,
    snapshot,
    machine,
    changes,
    keyspace,
    transactions,
    sections,
)
"""All of the core that a log's outcome depends on."""

DECIDES_NOTHING = {
    "BUCKETS_PER_POINT": "only how fast a ring finds what its points decide",
    "_BUCKET_BITS_MAX": "likewise",
    "RING_POSITIONS": "the width of the hash, which the owners of the probes tell",
    "VNODES_DEFAULT": "the map says how many there are",
    "FIRST_EPOCH": "the map says its epoch",
    "FIRST_GENERATION": "the map says each group's generation",
    "DISMANTLE_ENTRIES": "how a state that nobody uses any more is freed",
    "NAMES_PER_FORGET": "a leader's proposal names what is forgotten",
    "FORGET_CHARACTERS_MAX": "likewise",
    "NAMES_PER_EPOCH": "a leader's proposals end epochs",
    "BATCH_FORMATS_READ": "what is proposed is of BATCH_FORMAT",
    "_FORMATS_READ": "what is written is of SNAPSHOT_FORMAT",
    "PIECE_ITEMS_MAX": "how a snapshot is cut, which its reader does not mind",
    "PIECE_BYTES_MAX": "likewise",
    "PART_BYTES_MAX": "likewise",
}
"""Constants of these modules that need not agree, and why."""

FACT_CHARACTERS_MAX = 160
"""Longer values are compared, and shown, by a digest."""

NODES_FACT = "cluster.nodes"

PROBES = 256
"""So many keys are asked after, to compare what no parameter says: the hash and the code."""


def agreed_facts(cluster_map: ClusterMap, limits: MemoryLimits) -> dict[str, str]:
    """Return all facts by name, those first that an operator can have caused.

    Two kilobytes at most, whatever the map. Maps of two epochs differ as well: nothing spreads a
    newer map yet.
    """
    named = {**dict(_map_facts(cluster_map)), **dict(_limit_facts(limits)), **dict(constants())}
    return {name: _shown(value) for name, value in named.items()}


def constants() -> Iterator[tuple[str, str]]:
    """Yield the constants that decide outcomes, by name."""
    for module in DECIDING_MODULES:
        for name, value in sorted(vars(module).items()):
            if is_constant(name, value) and name not in DECIDES_NOTHING:
                yield name, repr(value)


def is_constant(name: str, value: object) -> bool:
    """Whether a module's variable is a constant that can be compared."""
    if not name.isupper() or name.startswith("__"):
        return False
    parts = value if isinstance(value, tuple) else (value,)
    return all(isinstance(part, int | float | str | bytes) for part in parts)


def first_difference(mine: Mapping[str, str], theirs: Mapping[str, str]) -> str | None:
    """Say in which fact two nodes differ first, and both values; None if in none.

    Where there is nothing to compare, as for a tool that only speaks the protocol, is none.
    """
    if not mine or not theirs:
        return None
    for name in (*mine, *(name for name in theirs if name not in mine)):
        here, there = mine.get(name, "unknown"), theirs.get(name, "unknown")
        if here != there:
            return f"{name} is {there} there and {here} here"
    return None


def digest_of(facts: Mapping[str, str]) -> str:
    """Return 128 bits over all facts, as hexadecimal digits."""
    return mmh3_x64_128_digest(msgspec.msgpack.encode(sorted(facts.items()))).hex()


def _map_facts(cluster_map: ClusterMap) -> Iterator[tuple[str, str]]:
    ring_parameters = cluster_map.ring
    yield NODES_FACT, ",".join(cluster_map.nodes)
    yield "cluster.shards", str(len(ring_parameters.shards))
    yield "cluster.replicas", str(max(len(group.replicas) for group in cluster_map.groups))
    yield "partitioner", f"{ring_parameters.kind} of {ring_parameters.vnodes} virtual nodes"
    yield "map epoch", str(cluster_map.epoch)
    # All of it once more, for what has no name above: who replicates which shard, and who is to
    # lead it.
    yield "map", _digest(cluster_map)
    shard_of = cluster_map.shard_of
    yield "owners of keys", _digest([shard_of(b"probe-%d" % probe) for probe in range(PROBES)])


def _limit_facts(limits: MemoryLimits) -> Iterator[tuple[str, str]]:
    for name, value in msgspec.structs.asdict(limits).items():
        yield f"memory.{name}", str(value)
    # A retry is known by this hash of its request, so its encoding decides as well.
    known_put = operations.Put(b"key", b"value")
    yield "fingerprint", outcomes.fingerprint_of(known_put).hex()


def _shown(value: str) -> str:
    if len(value) <= FACT_CHARACTERS_MAX:
        return value
    return f"{value[: FACT_CHARACTERS_MAX // 2]}... ({_digest(value)})"


def _digest(value: object) -> str:
    return mmh3_x64_128_digest(msgspec.msgpack.encode(value)).hex()
