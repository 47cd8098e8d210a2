"""How busy shards are, and hot keys by sampling: bounded, and certain of what it names."""

import random
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from raftkv.core.operations import Command, Put
from raftkv.engine.load import SAMPLE_EVERY, ShardLoad, SpaceSaving
from raftkv.rpc.messages import GetRequest
from raftkv.status.facts import HotKey, LoadRates


@given(st.lists(st.sampled_from([b"%d" % n for n in range(20)])))
def test_space_saving_never_claims_too_much(keys: list[bytes]) -> None:
    """A counter is certain of no more than what was there, and no frequent key lacks one."""
    sketch = SpaceSaving(counters=5)
    for key in keys:
        sketch.add(key)
    true = Counter(keys)
    certain = dict(sketch.certain())
    assert len(certain) <= 5
    assert all(count <= true[key] for key, count in certain.items())
    assert {key for key, count in true.items() if count > len(keys) / 5} <= set(certain)


def _read(load: ShardLoad, key: bytes) -> None:
    load.reads += 1
    if load.sampled():
        load.saw(key)


def test_hot_keys_stand_out() -> None:
    """A key with a third of the requests is named with its share; cold ones are not."""
    load, chance = ShardLoad(), random.Random(1)
    for number in range(30_000):
        _read(load, b"\xffhot" if chance.random() < 1 / 3 else b"cold-%d" % number)
    (hot,) = load.hot_keys()
    assert (hot.key_hex, hot.key) == ("ff" + b"hot".hex(), None)
    assert 0.2 < hot.share < 0.4


def test_past_heat_is_forgotten() -> None:
    """Long after its last request a key is no longer called hot."""
    load = ShardLoad()
    for _ in range(100 * SAMPLE_EVERY):
        _read(load, b"k")
    assert load.hot_keys()
    for _ in range(300):
        load.each_second()
    assert load.hot_keys() == ()


def test_batches_are_sampled_like_single_requests() -> None:
    """In whatever pieces requests come, one in so many is looked at, reads and writes alike."""
    load = ShardLoad()
    batch = (Command(Put(b"k", b"")), GetRequest(b"k"), GetRequest(b"k"))
    for _ in range(31 * 10):
        load.took(batch)
    assert (load.writes, load.reads) == (310, 620)
    assert load.hot_keys() == (HotKey(b"k".hex(), "k", 1.0),)
    assert load._hot.total == 930 // SAMPLE_EVERY


def test_rates_are_means_of_the_last_seconds() -> None:
    """Rates follow the load within ten seconds, also when it ends."""
    load = ShardLoad()
    assert load.rates() == LoadRates(0.0, 0.0)
    for _ in range(4):
        load.reads += 30
        load.writes += 10
        load.each_second()
    assert load.rates() == LoadRates(30.0, 10.0)
    for _ in range(10):
        load.each_second()
    assert load.rates() == LoadRates(0.0, 0.0)
