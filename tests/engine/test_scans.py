"""Scans over many shards: a page is right, and costs about a page however many there are."""

import itertools
from collections import deque
from collections.abc import Callable
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raftkv.core.operations import BATCH_FORMAT, Batch, Command, KeyValue, Put, RangeResult
from raftkv.core.shard.machine import StateMachine
from raftkv.engine.gather import PARTS_AT_ONCE, ScanGather, entry_bytes, scan_part
from raftkv.engine.requests import Answer
from raftkv.rpc.messages import Failure, Response, ScanPart, ScanRequest, Served
from raftkv.rpc.sizes import entries_bytes

PAGE = ScanRequest(b"", None, 100)
"""What is asked for where nothing else is said: 1 MiB at most."""


class Shards:
    """The states of all shards, and what scans have cost them.

    Parts are answered at once, or when :meth:`answer` is called.
    """

    def __init__(self, count: int, *, at_once: bool = True) -> None:
        self.states = [StateMachine(1, lambda _: True) for _ in range(count)]
        self.at_once = at_once
        self.waiting: deque[tuple[ScanRequest, Answer]] = deque()
        self.parts = 0
        self.bytes_sent = 0
        self.most_at_once = 0
        self.answers: list[Response] = []

    def put(self, shard: int, key: bytes, value: bytes) -> None:
        """Store a value."""
        self.states[shard].apply(Batch(BATCH_FORMAT, 1, 1, (Command(Put(key, value)),)))

    def ask(self, part: ScanRequest, take: Answer) -> None:
        """Take a part, as the router does."""
        self.parts += 1
        self.waiting.append((part, take))
        self.most_at_once = max(self.most_at_once, len(self.waiting))
        if self.at_once:
            self.answer()

    def answer(self, number: int = 0) -> None:
        """Answer one that waits."""
        part, take = self.waiting[number]
        del self.waiting[number]
        assert part.shard is not None
        answer = scan_part(self.states[part.shard], part)
        self.bytes_sent += entries_bytes(answer.entries)
        take(answer, Served("n2", part.shard, age_ms=part.shard))

    def begin(self, request: ScanRequest) -> None:
        """Begin a scan."""
        numbers = tuple(range(len(self.states)))

        def done(response: Response, _: Served) -> None:
            self.answers.append(response)

        ScanGather(request, numbers, done, "n1", self.ask).start()

    def scan(self, request: ScanRequest) -> RangeResult:
        """Scan to the end, answering parts in the order of asking."""
        self.answers.clear()
        self.begin(request)
        while self.waiting:
            self.answer()
        [page] = self.answers
        assert isinstance(page, RangeResult)
        return page

    def reference(self, request: ScanRequest) -> RangeResult:
        """The page by definition: all of the range in order, up to the limits."""
        whole = [scan_part(state, _whole(request)).entries for state in self.states]
        taken: list[KeyValue] = []
        size = 0
        for entry in sorted(itertools.chain(*whole), key=lambda entry: entry.key):
            size += entry_bytes(entry)
            if taken and (len(taken) >= request.limit or size > request.bytes_max):
                return RangeResult(tuple(taken), more=True)
            taken.append(entry)
        return RangeResult(tuple(taken), more=False)


def _whole(request: ScanRequest) -> ScanRequest:
    return ScanRequest(request.start, request.end, 10_000, request.keys_only, bytes_max=2**23)


SPREADS: dict[str, Callable[[bytes], int]] = {
    "evenly": lambda key: sum(key) * 7,
    "in ranges": lambda key: key[0] // 64,
    "in one shard": lambda _: 0,
    "mostly in one shard": lambda key: key[0] if key[0] % 8 == 0 else 0,
}
KEYS = st.sets(st.binary(min_size=1, max_size=3), max_size=60)
REQUESTS = st.builds(
    ScanRequest,
    start=st.binary(max_size=2),
    end=st.none() | st.binary(min_size=1, max_size=2),
    limit=st.integers(1, 70),
    keys_only=st.booleans(),
    bytes_max=st.integers(1, 2000),
)


@given(
    keys=KEYS,
    spread=st.sampled_from(sorted(SPREADS)),
    shards=st.integers(1, 9),
    request=REQUESTS,
    sizes=st.integers(1, 400),
)
def test_a_page_is_what_one_shard_of_all_keys_would_give(
    keys: set[bytes], spread: str, shards: int, request: ScanRequest, sizes: int
) -> None:
    """However keys and sizes are spread over the shards, and whatever cuts the page."""
    world = Shards(shards)
    for key in keys:
        value = bytes(Random(key).randrange(sizes))
        world.put(SPREADS[spread](key) % shards, key, value)
    assert world.scan(request) == world.reference(request)


@given(keys=KEYS, limit=st.integers(1, 12), bytes_max=st.integers(1, 60), shards=st.integers(1, 4))
def test_pages_of_a_scan_are_the_whole(
    keys: set[bytes], limit: int, bytes_max: int, shards: int
) -> None:
    """Page after page gives every key once and in order."""
    world = Shards(shards)
    for key in keys:
        world.put(key[0] % shards, key, bytes(sum(key) % 40))
    seen: list[bytes] = []
    start = b""
    for _ in range(len(keys) + 1):
        page = world.scan(ScanRequest(start, None, limit, bytes_max=bytes_max))
        seen += [entry.key for entry in page.entries]
        if not page.more:
            break
        assert page.entries, "a page that says more must bring something"
        start = page.entries[-1].key + b"\0"
    assert seen == sorted(keys)


@pytest.mark.parametrize("shards", [1, 4, 96, 512, 1024])
@pytest.mark.parametrize("value_bytes", [10, 1000, 100_000, 2**20])
@pytest.mark.parametrize("spread", ["evenly", "in one shard"])
def test_a_page_costs_about_a_page(shards: int, value_bytes: int, spread: str) -> None:
    """Shards send a few pages in all, in a few rounds, and not a page each."""
    world = Shards(shards)
    value, random = bytes(value_bytes), Random(0)
    for number in range(min(4000, 2**27 // value_bytes)):
        shard = 0 if spread == "in one shard" else random.randrange(shards)
        world.put(shard, b"%08d" % number, value)
    page = world.scan(PAGE)
    assert page == world.reference(PAGE)
    entry_size = entries_bytes(page.entries) // len(page.entries)
    assert world.bytes_sent <= 3 * PAGE.bytes_max
    assert world.bytes_sent <= 3 * (len(page.entries) + shards) * entry_size
    assert world.parts <= shards + 3 * len(page.entries)


def test_shards_are_asked_a_few_at_a_time() -> None:
    """Each answer makes room for the next question; the page waits for all."""
    world = Shards(200, at_once=False)
    for shard in range(200):
        world.put(shard, b"%04d" % shard, b"v")
    world.begin(PAGE)
    random = Random(1)
    while world.waiting:
        assert not world.answers
        world.answer(random.randrange(len(world.waiting)))
    assert world.most_at_once == PARTS_AT_ONCE
    [page] = world.answers
    assert page == world.reference(PAGE)


def test_what_is_used_of_a_shard_is_of_one_moment() -> None:
    """A shard that is asked again is read again from the beginning of the range."""
    world = Shards(2, at_once=False)
    for number in range(50):
        world.put(0, b"%02d" % number, b"old")
    world.begin(ScanRequest(b"", None, 40))
    world.answer()
    world.answer()
    assert world.waiting, "one shard has nearly all of the page"
    for number in range(50):
        world.put(0, b"%02d" % number, b"new")
    while world.waiting:
        world.answer()
    [page] = world.answers
    assert isinstance(page, RangeResult)
    assert {entry.value for entry in page.entries} == {b"new"}


def test_the_first_entry_of_a_page_comes_whatever_its_size() -> None:
    """Also where it grows while the shard is asked for it."""
    world = Shards(3, at_once=False)
    world.put(1, b"large", bytes(5000))
    world.put(2, b"small", b"v")
    request = ScanRequest(b"", None, 10, bytes_max=100)
    world.begin(request)
    for _ in range(3):
        world.answer()
    world.put(1, b"large", bytes(6000))
    while world.waiting:
        world.answer()
    [page] = world.answers
    assert isinstance(page, RangeResult)
    assert [(entry.key, len(entry.value)) for entry in page.entries] == [(b"large", 6000)]
    assert page.more


def test_one_refusal_is_the_answer() -> None:
    """A page with a hole in it would be a lie; what comes afterwards is not listened to."""
    world = Shards(100, at_once=False)
    world.begin(PAGE)
    refusal = Failure("no_leader", "shard 1 has no leader", definite=True)
    _, take = world.waiting.popleft()
    take(refusal, Served("n2", 1))
    assert world.answers == [refusal]
    asked = world.parts
    while world.waiting:
        world.answer()
    assert world.answers == [refusal]
    assert world.parts == asked, "nobody is asked any more"


def test_a_part_tells_what_it_would_go_on_with() -> None:
    """The key behind the part and the size of its entry, also where nothing fits the share."""
    state = StateMachine(1, lambda _: True)
    commands = [Command(Put(key, bytes(size))) for key, size in ((b"a", 9), (b"b", 99), (b"c", 9))]
    state.apply(Batch(BATCH_FORMAT, 1, 1, tuple(commands)))

    def part(limit: int, bytes_max: int, start: bytes = b"") -> tuple[int, bytes | None, int]:
        request = ScanRequest(start, b"c", limit, bytes_max=bytes_max, shard=0)
        answer: ScanPart = scan_part(state, request)
        return len(answer.entries), answer.next_key, answer.next_bytes

    assert part(10, 1000) == (2, None, 0)
    assert part(1, 1000) == (1, b"b", 100)
    assert part(10, 50) == (1, b"b", 100)
    assert part(10, 9) == (0, b"a", 10)
    assert part(10, 99, b"b") == (0, b"b", 100)
    assert part(10, 100, b"b") == (1, None, 0)
    assert part(10, 100, b"bb") == (0, None, 0)
