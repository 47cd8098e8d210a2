"""Which shard a key belongs to: consistent hashing, and modulo hashing to compare it with.

Consistent hashing (Karger et al., "Consistent Hashing and Random Trees", STOC 1997) puts every
shard on a circle of 2^64 positions at many pseudo-random points, its virtual nodes; a key belongs
to the first point at or after its own position. A shard's points depend on that shard alone, so
adding a shard can only take keys *to* it, never move keys between the others. Modulo hashing is
kept under the same protocol because it shows what the ring is for: with it almost every key moves.

Both are pure functions of their parameters: every process computes the same answer from the map.
mmh3 is not keyed, so somebody who chooses keys can aim them at one shard; the ring spreads honest
load, it is no defence.
"""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from typing import Annotated, Literal, Protocol

import msgspec
from mmh3 import mmh3_x64_128_utupledigest

VNODES_DEFAULT = 512
"""Virtual nodes per shard. A shard's share spreads by about 1/sqrt(vnodes), here 4.4 %: enough for
the fullest of 8 shards to stay under 1.15 of the mean, while the list of points stays small."""

BUCKETS_PER_POINT = 8
"""How much finer than its points a ring is cut for looking keys up: seven buckets of eight have no
point in them, and then one shard."""

_BUCKET_BITS_MAX = 18

RING_POSITIONS = 2**64
"""Size of the circle."""


class RingParameters(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """All that decides where keys go. ``vnodes`` is unused by ``modulo``."""

    kind: Literal["ring", "modulo"]
    shards: tuple[int, ...]
    vnodes: Annotated[int, msgspec.Meta(ge=1, le=2**16)] = VNODES_DEFAULT


class Partitioner(Protocol):
    """Assigns every key to one of ``shards``, the same one in every process."""

    @property
    def shards(self) -> tuple[int, ...]:
        """The shards that keys are spread over."""
        ...

    def shard_of(self, key: bytes) -> int:
        """Return the shard that holds ``key``; keys with the same hash tag share a shard."""
        ...


def hash_tag(key: bytes) -> bytes:
    """Return the part of ``key`` that decides its shard, by the rule of Redis Cluster.

    That is what stands between the first ``{`` and the next ``}``, if there is something between
    them, and the whole key otherwise. Keys that must be changed in one transaction share a tag.
    """
    start = key.find(b"{")
    if start < 0:
        return key
    end = key.find(b"}", start + 1)
    if end <= start + 1:
        return key
    return key[start + 1 : end]


def share_tag(start: bytes, end: bytes | None) -> bool:
    r"""Whether all keys ``start <= key < end`` have the hash tag of ``start``, hence its shard.

    That is so if ``start`` goes on behind a tag's closing brace and ``end`` does not leave the
    keys that begin as ``start`` does up to there, or if there is room for ``start`` only. Otherwise
    it is not: without a whole tag in it, ``start`` has another one than ``start + b"\0"``.
    ``end`` None means to the end of the key space.
    """
    if end is None:
        return False
    if end <= start + b"\0":  # no key at all, or one that is ``start``
        return True
    opening = start.find(b"{")
    closing = start.find(b"}", opening + 1)
    if opening < 0 or closing <= opening + 1:
        return False
    return end <= start[:closing] + b"~"  # what comes after a closing brace


def position_of(key: bytes) -> int:
    """Return where ``key`` stands on the circle: 64 bits of its hash tag's mmh3."""
    # The test for a brace is cheaper than the call, and most keys have none.
    tag = hash_tag(key) if b"{" in key else key
    return mmh3_x64_128_utupledigest(tag)[0]


class Ring:
    """Consistent hashing with ``vnodes`` points per shard."""

    __slots__ = ("_bucket_shift", "_buckets", "_owners", "_points", "shards", "vnodes")

    def __init__(self, shards: Sequence[int], vnodes: int = VNODES_DEFAULT) -> None:
        if vnodes < 1:
            raise ValueError("a ring needs at least one virtual node per shard")
        self.shards = _checked(shards)
        self.vnodes = vnodes
        # Two shards on one position are ordered by number, so that all processes agree.
        points = sorted(
            (_point(shard, vnode), shard) for shard in self.shards for vnode in range(vnodes)
        )
        self._points = [position for position, _ in points]
        # One owner more than points: beyond the last point the circle begins again.
        self._owners = [shard for _, shard in points]
        self._owners.append(self._owners[0])
        bits = min(_BUCKET_BITS_MAX, (len(points) * BUCKETS_PER_POINT).bit_length())
        self._bucket_shift = RING_POSITIONS.bit_length() - 1 - bits
        self._buckets = self._owners_of_buckets(1 << bits)

    def _owners_of_buckets(self, count: int) -> list[int | None]:
        """Return the shard of each of ``count`` equal parts of the circle; None if it is cut."""
        buckets: list[int | None] = [self._owners[0]] * count
        begin = 0
        for position, owner in zip(self._points, self._owners, strict=False):
            bucket = position >> self._bucket_shift
            if begin < bucket:
                buckets[begin:bucket] = [owner] * (bucket - begin)
            buckets[bucket] = None
            begin = bucket + 1
        return buckets

    def shard_of(self, key: bytes) -> int:
        """Return the shard whose point is the first at or after the key's position."""
        # position_of and shard_at, inlined: this runs several times for every operation.
        tag = hash_tag(key) if b"{" in key else key
        position = mmh3_x64_128_utupledigest(tag)[0]
        owner = self._buckets[position >> self._bucket_shift]
        return self._owners[bisect_left(self._points, position)] if owner is None else owner

    def shard_at(self, position: int) -> int:
        """Return the shard that owns ``position`` of the circle."""
        owner = self._buckets[position >> self._bucket_shift]
        return self._owners[bisect_left(self._points, position)] if owner is None else owner

    def arcs(self) -> Iterator[tuple[int, int, int]]:
        """Yield the circle as ``(start, end, shard)``: positions ``start < p <= end`` are its.

        The circle is cut open below position zero, so the first and the last arc, which have the
        same owner, are two parts of one. Together they cover every position exactly once.
        """
        before = -1
        for position, owner in zip(self._points, self._owners, strict=False):
            yield before, position, owner
            before = position
        yield before, RING_POSITIONS - 1, self._owners[-1]


class Modulo:
    """The naive partitioner: hash modulo the number of shards."""

    __slots__ = ("shards",)

    def __init__(self, shards: Sequence[int]) -> None:
        self.shards = _checked(shards)

    def shard_of(self, key: bytes) -> int:
        """Return the shard at the key's position modulo the number of shards."""
        return self.shard_at(position_of(key))

    def shard_at(self, position: int) -> int:
        """Return the shard that owns ``position``."""
        return self.shards[position % len(self.shards)]


def partitioner(parameters: RingParameters) -> Ring | Modulo:
    """Build the partitioner that ``parameters`` describe."""
    if parameters.kind == "modulo":
        return Modulo(parameters.shards)
    return Ring(parameters.shards, parameters.vnodes)


def _point(shard: int, vnode: int) -> int:
    return mmh3_x64_128_utupledigest(b"shard-%d/vnode-%d" % (shard, vnode))[0]


def _checked(shards: Sequence[int]) -> tuple[int, ...]:
    if not shards:
        raise ValueError("a partitioner needs at least one shard")
    if len(set(shards)) != len(shards):
        raise ValueError("shards must be distinct")
    return tuple(shards)
