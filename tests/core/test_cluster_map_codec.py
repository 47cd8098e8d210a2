"""The cluster map as bytes: what goes in comes out, and nothing inconsistent gets in."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raftkv.core.cluster_map import (
    ClusterMap,
    GroupPlacement,
    RingParameters,
    decode_map,
    encode_map,
)
from raftkv.core.errors import CorruptMap, UndecodableError, UnknownFormat
from raftkv.core.placement import seed_map

MAP = seed_map("c", ["a", "b", "c"], 3, 2)


@st.composite
def maps(draw: st.DrawFn) -> ClusterMap:
    """Draw maps as a rebalanced cluster might have them: any shards, generations, replicas."""
    nodes = draw(st.lists(st.text(min_size=1, max_size=8), min_size=1, max_size=5, unique=True))
    shards = draw(st.lists(st.integers(0, 2**53 - 1), min_size=1, max_size=5, unique=True))
    replicas = st.lists(st.sampled_from(nodes), min_size=1, max_size=5, unique=True)
    groups = tuple(
        GroupPlacement(shard, draw(st.integers(0, 2**53 - 1)), tuple(draw(replicas)))
        for shard in shards
    )
    ring = RingParameters(
        draw(st.sampled_from(["ring", "modulo"])), tuple(shards), draw(st.integers(1, 2**16))
    )
    epoch = draw(st.integers(0, 2**53 - 1))
    return ClusterMap(epoch, draw(st.text(min_size=1, max_size=8)), tuple(nodes), ring, groups)


@given(maps())
def test_a_map_survives_its_encoding(made: ClusterMap) -> None:
    """Equal maps have equal bytes, and the bytes give the map back."""
    data = encode_map(made)
    assert decode_map(data) == made
    assert encode_map(decode_map(data)) == data


@given(st.binary(max_size=60))
def test_any_other_bytes_are_an_undecodable_error(data: bytes) -> None:
    """No other exception escapes, whatever the bytes."""
    with pytest.raises(UndecodableError):
        decode_map(data)


@given(maps(), st.data())
def test_a_map_with_a_changed_byte_never_decodes_to_nonsense(
    made: ClusterMap, data: st.DataObject
) -> None:
    """Damage is refused, or gives another consistent map; it never raises anything else."""
    encoded = bytearray(encode_map(made))
    encoded[data.draw(st.integers(0, len(encoded) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        decoded = decode_map(bytes(encoded))
    except UndecodableError:
        return
    assert all(decoded.placement(shard).replicas for shard in decoded.ring.shards)


def test_a_newer_format_is_told_from_damage() -> None:
    """A newer version's map asks for an upgrade, whatever shape it has."""
    with pytest.raises(UnknownFormat, match="format 2"):
        decode_map(msgspec.msgpack.encode([2, {"anything": "else"}]))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"groups": MAP.groups[:2]}, "one for each shard"),
        ({"groups": MAP.groups[::-1]}, "one for each shard"),
        ({"groups": (), "ring": RingParameters("ring", ())}, "one for each shard"),
        ({"nodes": ("a", "b", "c", "a")}, "listed twice"),
        ({"nodes": ("a", "b")}, "unknown node"),
        ({"groups": (GroupPlacement(0, 1, ()), *MAP.groups[1:])}, "no replicas"),
        ({"groups": (GroupPlacement(0, 1, ("a", "a")), *MAP.groups[1:])}, "two replicas"),
    ],
)
def test_a_map_that_contradicts_itself_is_refused(change: dict[str, object], words: str) -> None:
    """Every rule that the engine relies on is checked before a map is believed."""
    with pytest.raises(CorruptMap, match=words):
        decode_map(encode_map(msgspec.structs.replace(MAP, **change)))
