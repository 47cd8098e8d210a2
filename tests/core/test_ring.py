"""Partitioning: even, stable when shards are added, the same in every process."""

import itertools
from bisect import bisect_left
from collections import Counter

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from raftkv.core.ring import (
    RING_POSITIONS,
    Modulo,
    Partitioner,
    Ring,
    RingParameters,
    hash_tag,
    partitioner,
    position_of,
    share_tag,
)

KEYS = st.binary(min_size=1, max_size=40)
SHARD_LISTS = st.lists(st.integers(0, 2**31), min_size=1, max_size=6, unique=True)


@pytest.fixture(scope="module")
def positions() -> list[int]:
    """Where a million keys stand."""
    return [position_of(b"key-%d" % number) for number in range(1_000_000)]


def test_the_fullest_of_eight_shards_holds_at_most_15_percent_more(positions: list[int]) -> None:
    """With the defaults, eight shards share a million keys evenly."""
    counts = Counter(map(Ring(range(8)).shard_at, positions))
    assert len(counts) == 8
    assert max(counts.values()) <= 1.15 * len(positions) / 8


def test_a_ninth_shard_takes_its_share_and_nothing_else_moves(positions: list[int]) -> None:
    """Adding a shard moves at most 1.2 of its fair share, all of it to the new shard."""
    before, after = Ring(range(8)), Ring(range(9))
    moves = Counter((before.shard_at(position), after.shard_at(position)) for position in positions)
    moved = {pair: count for pair, count in moves.items() if pair[0] != pair[1]}
    assert {new for _, new in moved} == {8}
    assert {old for old, _ in moved} == set(range(8))
    assert sum(moved.values()) <= 1.2 * len(positions) / 9


def test_modulo_moves_almost_every_key(positions: list[int]) -> None:
    """A ninth shard under modulo moves about eight ninths: why the ring is the default."""
    before, after = Modulo(range(8)), Modulo(range(9))
    moved = sum(before.shard_at(position) != after.shard_at(position) for position in positions)
    assert moved / len(positions) == pytest.approx(8 / 9, abs=0.01)


@pytest.mark.parametrize("shards", [2, 3, 4, 5, 16, 64])
def test_other_numbers_of_shards_are_even_too(shards: int) -> None:
    """The share of the circle that any shard owns stays near the mean."""
    owned: Counter[int] = Counter()
    for start, end, shard in Ring(range(shards)).arcs():
        owned[shard] += end - start
    assert max(owned.values()) <= 1.15 * RING_POSITIONS / shards


def test_arcs_cover_the_circle_once_and_agree_with_lookup() -> None:
    """Arcs are adjacent, in order, and each belongs to the shard that lookup gives."""
    ring = Ring([3, 1, 2], vnodes=50)
    arcs = list(ring.arcs())
    assert (arcs[0][0], arcs[-1][1]) == (-1, RING_POSITIONS - 1)
    assert all(left[1] == right[0] for left, right in itertools.pairwise(arcs))
    for start, end, shard in arcs:
        assert 0 <= start + 1 <= end
        assert {ring.shard_at(start + 1), ring.shard_at(end)} == {shard}


@given(SHARD_LISTS, st.integers(1, 60))
def test_lookup_by_buckets_agrees_with_the_arcs(shards: list[int], vnodes: int) -> None:
    """Just before, at and just after every point, for coarse and fine rings."""
    ring = Ring(shards, vnodes)
    for start, end, owner in ring.arcs():
        for position in (start + 1, (start + end) // 2 + 1, end):
            if start < position <= end:
                assert ring.shard_at(position) == owner


def test_the_circle_closes() -> None:
    """Beyond the last point the first one owns: the hash that wraps is no special shard."""
    for vnodes in range(1, 20):
        ring = Ring([3, 1, 2], vnodes)
        assert ring.shard_at(RING_POSITIONS - 1) == ring.shard_at(0)


@given(KEYS, SHARD_LISTS, st.integers(0, 2**31))
def test_any_added_shard_only_takes(key: bytes, shards: list[int], added: int) -> None:
    """Whatever shards there are: with one more, a key stays or goes to the new one."""
    if added in shards:
        return
    before = Ring(shards, vnodes=8).shard_of(key)
    assert Ring([*shards, added], vnodes=8).shard_of(key) in {before, added}


@given(KEYS, SHARD_LISTS)
def test_the_order_of_shards_does_not_matter_to_a_ring(key: bytes, shards: list[int]) -> None:
    """A ring is made of a set of shards; its order is only how they are listed."""
    assert Ring(shards, 8).shard_of(key) == Ring(sorted(shards), 8).shard_of(key)


@given(KEYS, SHARD_LISTS)
def test_both_partitioners_give_a_shard_of_theirs(key: bytes, shards: list[int]) -> None:
    """Every key has a shard, and by the position it is the same one."""
    for made in (Ring(shards, 4), Modulo(shards)):
        as_protocol: Partitioner = made
        assert as_protocol.shard_of(key) in as_protocol.shards
        assert made.shard_of(key) == made.shard_at(position_of(key))


def test_positions_are_fixed_for_ever() -> None:
    """Where keys go is an on-disk format: these numbers may never change."""
    assert position_of(b"a") == 0x85555565F6597889
    ring = Ring(range(8))
    owners = [ring.shard_of(b"key-%d" % number) for number in range(8)]
    assert owners == [0, 0, 4, 6, 5, 3, 7, 7]


@pytest.mark.parametrize(
    ("key", "tag"),
    [
        (b"plain", b"plain"),
        (b"{user1}.name", b"user1"),
        (b"a{user1}b", b"user1"),
        (b"{}.name", b"{}.name"),
        (b"{open", b"{open"),
        (b"}{a}", b"a"),
        (b"{a}{b}", b"a"),
        (b"{{a}}", b"{a"),
        (b"a{}{b}", b"a{}{b}"),
        (b"\xff{\x00}", b"\x00"),
    ],
)
def test_hash_tags_follow_redis_cluster(key: bytes, tag: bytes) -> None:
    """The part between the first brace and the next closing one counts, if it is not empty."""
    assert hash_tag(key) == tag


@given(st.binary(min_size=1, max_size=10), KEYS, KEYS)
def test_keys_with_one_tag_share_a_shard(tag: bytes, left: bytes, right: bytes) -> None:
    """However long the keys are, one tag is one shard, so they can share a transaction."""
    tag = tag.replace(b"{", b"").replace(b"}", b"") or b"t"
    ring = Ring(range(16), 16)
    shards = {ring.shard_of(b"{" + tag + b"}" + rest) for rest in (left, right)}
    assert shards == {ring.shard_of(tag)}


def test_parameters_make_the_partitioner() -> None:
    """The map's parameters decide kind, shards and virtual nodes."""
    ring = partitioner(RingParameters("ring", (4, 5), 7))
    assert isinstance(ring, Ring)
    assert (ring.shards, ring.vnodes) == ((4, 5), 7)
    assert isinstance(partitioner(RingParameters("modulo", (4, 5))), Modulo)


@pytest.mark.parametrize("shards", [[], [1, 1]])
def test_no_shards_or_twice_the_same_is_refused(shards: list[int]) -> None:
    """A partitioner without a shard or with a repeated one is a mistake."""
    with pytest.raises(ValueError, match="shard"):
        Ring(shards)
    with pytest.raises(ValueError, match="shard"):
        Modulo(shards)
    with pytest.raises(ValueError, match="virtual node"):
        Ring([1], vnodes=0)


@pytest.mark.parametrize(
    ("start", "end", "shared"),
    [
        (b"{t}", b"{t~", True),  # what a prefix becomes
        (b"{t}a", b"{t}b", True),
        (b"a{t}x", b"a{t}y", True),
        (b"{t}a", b"{t~", True),
        (b"{t}a", b"{t~\0", False),  # {t~ has no tag
        (b"{t}a", None, False),
        (b"{t", b"{u", False),
        (b"{}{t}a", b"{}{t}b", False),  # an empty pair of braces: the whole key counts
        (b"}{t}a", b"}{t}b", True),
        (b"order/", b"order0", False),
        (b"order", b"order\0", True),  # one key
        (b"", b"\0\0", False),  # one key, but not where the range is looked for
        (b"", b"\0", True),
        (b"", b"\1", False),
        (b"b", b"a", True),  # no key
    ],
)
def test_which_ranges_share_a_tag(start: bytes, end: bytes | None, *, shared: bool) -> None:
    """A range has one shard for certain if all of its keys have the hash tag of its start."""
    assert share_tag(start, end) is shared


_FEW = b"\0ab{|}~"
_SHORT_KEYS = sorted(
    bytes(key) for length in range(1, 6) for key in itertools.product(_FEW, repeat=length)
)
_ENDS = st.lists(st.sampled_from(list(_FEW)), max_size=4).map(bytes)


@given(start=_ENDS, end=_ENDS)
@example(start=b"", end=b"\0\0")
def test_a_range_shares_a_tag_exactly_if_all_of_its_keys_do(start: bytes, end: bytes) -> None:
    """Its start has it as well, where the range is looked for: no key need stand there.

    Compared with looking at every key, of those that can be written with a few bytes.
    """
    first, last = bisect_left(_SHORT_KEYS, start), bisect_left(_SHORT_KEYS, end)
    tags = set(map(hash_tag, _SHORT_KEYS[first:last]))
    assert share_tag(start, end) == (tags <= {hash_tag(start)})
