"""What a load asks for: which operations, on which keys, in each store's own words."""

import base64
import itertools
import json
import random
from collections import Counter
from collections.abc import Iterator

import msgspec
import pytest

from raftkv.bench.load.dialects import DIALECTS
from raftkv.bench.load.workload import KINDS, Kind, Workload, chooser, generalized_harmonic

DRAWS = 50_000
RAFTKV, ETCD = DIALECTS["raftkv"], DIALECTS["etcd"]


def requests(workload: Workload, count: int, dialect: str = "raftkv") -> list[bytes]:
    """The first requests of a workload."""
    return list(itertools.islice(workload.requests(DIALECTS[dialect], 1), count))


def body_of(request: bytes) -> bytes:
    """The body, which must be as long as the head says."""
    head, body = request.split(b"\r\n\r\n", 1)
    assert b"content-length: %d" % len(body) in head.split(b"\r\n")
    return body


def text(data: bytes) -> str:
    """Bytes as etcd's JSON has them."""
    return base64.b64encode(data).decode()


# --- which keys ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def zipfian() -> Counter[int]:
    """How often each of a thousand numbers came."""
    choose = chooser("zipfian", 1000, random.Random(1))
    return Counter(choose() for _ in range(DRAWS))


def zipf_share(ranks: range, count: int = 1000, theta: float = 0.99) -> float:
    """The share that these ranks have by Zipf's law, summed without any trick."""
    weights: list[float] = [(rank + 1) ** -theta for rank in range(count)]
    return sum(weights[rank] for rank in ranks) / sum(weights)


@pytest.mark.parametrize("rank", [0, 1])
def test_the_most_popular_keys_come_as_often_as_zipf_says(zipfian: Counter[int], rank: int) -> None:
    """For the first two the algorithm is exact."""
    assert zipfian[rank] / DRAWS == pytest.approx(zipf_share(range(rank, rank + 1)), rel=0.05)


@pytest.mark.parametrize("ranks", [range(10), range(10, 100), range(100, 1000)])
def test_the_other_keys_come_nearly_as_often(zipfian: Counter[int], ranks: range) -> None:
    """For the others it approximates."""
    share = sum(zipfian[rank] for rank in ranks) / DRAWS
    assert share == pytest.approx(zipf_share(ranks), rel=0.1)


def test_numbers_are_those_of_keys(zipfian: Counter[int]) -> None:
    """None lies beyond the keys, and the rarest are drawn, too."""
    assert min(zipfian) == 0
    assert 950 < max(zipfian) < 1000


@pytest.mark.parametrize("keys", [1, 2, 3])
def test_few_keys_can_be_zipfian(keys: int) -> None:
    """The formula divides by what is nothing then."""
    choose = chooser("zipfian", keys, random.Random(1))
    assert {choose() for _ in range(1000)} == set(range(keys))


def test_uniform_keys_come_alike() -> None:
    """Each of ten a tenth of the time."""
    choose = chooser("uniform", 10, random.Random(1))
    counts = Counter(choose() for _ in range(DRAWS))
    assert set(counts) == set(range(10))
    assert all(count / DRAWS == pytest.approx(0.1, rel=0.1) for count in counts.values())


@pytest.mark.parametrize("count", [1, 2, 10_000, 10_001, 50_000])
def test_the_sum_of_zipf_weights(count: int) -> None:
    """Far terms come from a formula that is as good as adding them."""
    assert generalized_harmonic(count, 0.99) == pytest.approx(
        sum(i**-0.99 for i in range(1, count + 1)), rel=1e-9
    )


@pytest.mark.parametrize("key_bytes", [16, 40])
def test_keys_have_their_length_and_differ(key_bytes: int) -> None:
    """One key for each number."""
    workload = Workload(key_bytes=key_bytes)
    keys = {workload.key(number) for number in range(1000)}
    assert len(keys) == 1000
    assert {len(key) for key in keys} == {key_bytes}


# --- which operations ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "puts"), [("put", 1.0), ("get", 0.0), ("a", 0.5), ("b", 0.05), ("c", 0.0)]
)
def test_the_share_of_puts(kind: Kind, puts: float) -> None:
    """YCSB's A, B and C update half, a twentieth and none; the others read."""
    found = Counter(request.split(b" ")[0] for request in requests(Workload(kind), 4000))
    assert found[b"PUT"] / 4000 == pytest.approx(puts, abs=0.03)
    assert found[b"PUT"] + found[b"GET"] == 4000


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dialect", ["raftkv", "etcd"])
def test_a_seed_decides_a_load(kind: Kind, dialect: str) -> None:
    """Two runs of the same load ask for the same."""
    workload = Workload(kind, distribution="zipfian")
    assert requests(workload, 20, dialect) == requests(workload, 20, dialect)


@pytest.mark.parametrize("distribution", ["uniform", "zipfian"])
def test_keys_of_a_batch_are_distinct(distribution: str) -> None:
    """Etcd refuses a transaction that puts a key twice; popular keys come often."""
    workload = msgspec.convert(
        {"kind": "batch", "keys": 50, "batch_size": 50, "distribution": distribution}, Workload
    )
    for request in requests(workload, 5):
        operations = msgspec.msgpack.decode(body_of(request))["operations"]
        assert len({operation["key"] for operation in operations}) == 50
        assert {operation["op"] for operation in operations} == {"put"}


def test_what_counts_as_an_operation() -> None:
    """A batch is as many as it puts, a page of a scan is one."""
    assert Workload("batch", batch_size=100).operations == 100
    assert Workload("scan", batch_size=100).operations == 1
    assert Workload("put").operations == 1


# --- in whose words ------------------------------------------------------------------------------


def test_a_put_of_raftkv() -> None:
    """Raw bytes, and a length."""
    request = RAFTKV.put(b"k", b"\x00\xff")
    assert request.startswith(b"PUT /v1/kv/k HTTP/1.1\r\n")
    assert body_of(request) == b"\x00\xff"


def test_reads_of_raftkv_say_how_fresh() -> None:
    """Linearizable unless asked otherwise."""
    assert RAFTKV.get(b"k").split(b" ")[1] == b"/v1/kv/k"
    assert RAFTKV.get_stale(b"k").split(b" ")[1] == b"/v1/kv/k?consistency=stale"
    assert RAFTKV.scan(b"k", 7).split(b" ")[1] == b"/v1/kv?start=k&limit=7"


def etcd_requests() -> Iterator[tuple[bytes, str, object]]:
    """Requests of etcd's gateway, with their routes and documents."""
    key, value = text(b"k"), text(b"\xff")
    put = {"key": key, "value": value}
    yield ETCD.put(b"k", b"\xff"), "/v3/kv/put", put
    yield ETCD.get(b"k"), "/v3/kv/range", {"key": key}
    yield ETCD.get_stale(b"k"), "/v3/kv/range", {"key": key, "serializable": True}
    yield ETCD.batch([(b"k", b"\xff")]), "/v3/kv/txn", {"success": [{"request_put": put}]}
    yield (
        ETCD.scan(b"k", 7),
        "/v3/kv/range",
        {"key": key, "range_end": text(b"\0"), "limit": 7},
    )


@pytest.mark.parametrize(("request_", "route", "document"), list(etcd_requests()))
def test_requests_of_etcd(request_: bytes, route: str, document: object) -> None:
    """JSON with base64, made by hand because that is cheaper."""
    assert request_.split(b" ")[:2] == [b"POST", route.encode()]
    assert json.loads(body_of(request_)) == document
