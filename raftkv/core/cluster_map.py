"""The cluster map: which nodes there are, where keys go, and who holds which shard.

One immutable value, the same on every node at the same epoch. ``node.toml`` only seeds the first
one (:mod:`raftkv.core.placement`); nothing else may assume how it was made. A shard's replicas are
whatever its placement says, and the number of shards has nothing to do with the number of nodes.
"""

from collections.abc import Callable
from functools import cached_property
from typing import Annotated, NamedTuple

import msgspec

from raftkv.core.errors import DECODE_FAILURES, CorruptMap, UnknownFormat
from raftkv.core.ring import Modulo, Ring, RingParameters, partitioner

__all__ = [
    "MAP_FORMAT",
    "ClusterMap",
    "GroupId",
    "GroupPlacement",
    "RingParameters",
    "decode_map",
    "encode_map",
]

MAP_FORMAT = 1
"""Version of the encoding of :class:`ClusterMap`."""

_Number = Annotated[int, msgspec.Meta(ge=0, le=2**53 - 1)]
_Name = Annotated[str, msgspec.Meta(min_length=1, max_length=255)]


class GroupId(NamedTuple):
    """A Raft group's name. A shard's successor after a handover has the next generation."""

    shard: int
    generation: int

    def __str__(self) -> str:
        return f"{self.shard}.{self.generation}"


class GroupPlacement(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """The group that holds a shard now, and its replicas; the first is the preferred leader."""

    shard: _Number
    generation: _Number
    replicas: tuple[_Name, ...]

    @property
    def id(self) -> GroupId:
        """The group's name."""
        return GroupId(self.shard, self.generation)

    @property
    def preferred_leader(self) -> str:
        """The node that should lead while it is healthy, so that leaders stay spread."""
        return self.replicas[0]


class ClusterMap(
    msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True, dict=True
):
    """The map at one epoch. ``dict=True`` only serves the caches below.

    Args:
        epoch: Greater than that of every map before; requests carry it.
        cluster_id: Which cluster this is a map of.
        nodes: Names of all nodes, sorted.
        ring: Where keys go.
        groups: One placement per shard of the ring, in the ring's order.
    """

    epoch: _Number
    cluster_id: _Name
    nodes: tuple[_Name, ...]
    ring: RingParameters
    groups: tuple[GroupPlacement, ...]

    @cached_property
    def partitioner(self) -> Ring | Modulo:
        """The partitioner of ``ring``, built once: building sorts thousands of points."""
        return partitioner(self.ring)

    @cached_property
    def _by_shard(self) -> dict[int, GroupPlacement]:
        return {group.shard: group for group in self.groups}

    @cached_property
    def group_ids(self) -> dict[int, GroupId]:
        """The name of the group that holds each shard."""
        return {group.shard: group.id for group in self.groups}

    @cached_property
    def shard_of(self) -> Callable[[bytes], int]:
        """The shard that holds a key; the partitioner's own method, as it is called so often."""
        return self.partitioner.shard_of

    def placement(self, shard: int) -> GroupPlacement:
        """Return who holds ``shard``; ``KeyError`` if there is no such shard."""
        return self._by_shard[shard]

    def groups_of(self, node: str) -> tuple[GroupPlacement, ...]:
        """Return the groups that have a replica on ``node``."""
        return tuple(group for group in self.groups if node in group.replicas)


class _Envelope(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    format: int
    map: ClusterMap


class _FormatOnly(msgspec.Struct, array_like=True, frozen=True):
    format: int


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(_Envelope)
_format_decoder = msgspec.msgpack.Decoder(_FormatOnly)


def encode_map(cluster_map: ClusterMap) -> bytes:
    """Encode a map for the wire or the disk; equal maps have equal encodings."""
    return _encoder.encode(_Envelope(MAP_FORMAT, cluster_map))


def decode_map(data: bytes) -> ClusterMap:
    """Decode a map, refusing one that contradicts itself.

    Raises:
        UnknownFormat: A newer version wrote it.
        CorruptMap: Anything else is wrong with it.
    """
    try:
        # The format is read by itself first: a newer format may have any other shape behind it.
        version = _format_decoder.decode(data).format
        if version != MAP_FORMAT:
            raise UnknownFormat(f"cluster map of format {version}, this version knows {MAP_FORMAT}")
        cluster_map = _decoder.decode(data).map
    except DECODE_FAILURES as error:
        raise CorruptMap(f"not a cluster map: {error}") from error
    problem = contradiction(cluster_map)
    if problem is not None:
        raise CorruptMap(f"cluster map contradicts itself: {problem}")
    return cluster_map


def contradiction(cluster_map: ClusterMap) -> str | None:
    """Return what is inconsistent in a map, None if nothing is."""
    nodes = cluster_map.nodes
    shards = tuple(group.shard for group in cluster_map.groups)
    if not shards or shards != cluster_map.ring.shards or len(set(shards)) != len(shards):
        return "the groups are not one for each shard of the ring"
    if len(set(nodes)) != len(nodes):
        return "a node is listed twice"
    for group in cluster_map.groups:
        if not group.replicas:
            return f"shard {group.shard} has no replicas"
        if len(set(group.replicas)) != len(group.replicas):
            return f"shard {group.shard} has two replicas on one node"
        if not set(group.replicas) <= set(nodes):
            return f"shard {group.shard} has a replica on an unknown node"
    return None
