"""Calls with items: in order, without a gap, never more under way than the reader has room for."""

from collections import deque
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from raftkv.rpc.calls import OPEN_MAX, LinkCalls
from raftkv.rpc.items import (
    CallError,
    Cancel,
    Credit,
    End,
    Item,
    ItemMessage,
    ItemReader,
    ItemWriter,
    Open,
    item_bytes,
)
from raftkv.rpc.local import LocalCall
from raftkv.rpc.messages import Call, Facts, GetRequest, Reply, Served

WINDOW_BYTES = 1000
REQUEST = GetRequest(b"key")
SERVED = Served("n1")
DONE = Facts.of({})


def call(number: int) -> LocalCall:
    """Make a call with this number."""
    return LocalCall(number, 1000, REQUEST)


class Stream:
    """One call with items, as both of its ends see it."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.reader: ItemReader
        self.writer: ItemWriter | None = None
        self.sent: list[bytes] = []
        self.taken: list[bytes] = []
        self.reply: Reply | None = None
        self.changes = 0
        self.rooms = 0
        self.cancellations = 0

    def changed(self) -> None:
        """An item has come."""
        self.changes += 1

    def room(self) -> None:
        """A refused item may be tried again."""
        self.rooms += 1

    def was_cancelled(self) -> None:
        """Nobody wants more."""
        self.cancellations += 1

    @property
    def under_way_bytes(self) -> int:
        """What was sent and not consumed."""
        return sum(map(item_bytes, self.sent)) - sum(map(item_bytes, self.taken))


class Link:
    """Two tables and what is on its way between them, each way in order."""

    def __init__(self) -> None:
        self.to_asked: deque[ItemMessage] = deque()
        self.to_asker: deque[ItemMessage] = deque()
        self.has_room = True
        self.streams: dict[int, Stream] = {}
        self.asker: LinkCalls[Stream] = LinkCalls(self.to_asked.append)
        self.asked: LinkCalls[None] = LinkCalls(
            self.to_asker.append, has_room=lambda: self.has_room, take_call=self._take
        )

    def open(self, window_bytes: int = WINDOW_BYTES) -> Stream:
        """Ask for items."""
        stream = Stream(len(self.streams))
        self.streams[stream.number] = stream
        stream.reader = self.asker.open(call(stream.number), window_bytes, stream, stream.changed)
        return stream

    def opened(self, window_bytes: int = WINDOW_BYTES) -> tuple[Stream, ItemWriter]:
        """Ask for items, and let the call arrive."""
        stream = self.open(window_bytes)
        self.arrive()
        assert stream.writer is not None
        return stream, stream.writer

    def _take(self, taken: Call, writer: ItemWriter) -> None:
        stream = self.streams[taken.id]
        stream.writer = writer
        writer.room = stream.room
        writer.cancelled = stream.was_cancelled

    def arrive_at_asked(self) -> None:
        """Deliver the oldest message to the answering side."""
        assert self.asked.take(self.to_asked.popleft()) is None

    def arrive_at_asker(self) -> None:
        """Deliver the oldest message to the asking side."""
        answered = self.asker.take(self.to_asker.popleft())
        if answered is not None:
            stream, reply = answered
            assert stream.reply is None
            stream.reply = reply

    def arrive(self) -> None:
        """Deliver everything."""
        while self.to_asked or self.to_asker:
            if self.to_asked:
                self.arrive_at_asked()
            if self.to_asker:
                self.arrive_at_asker()

    def lose(self) -> list[Stream]:
        """Lose the link with all that is on its way; return who waited."""
        self.to_asked.clear()
        self.to_asker.clear()
        self.asked.lose()
        return [stream for _, stream in self.asker.lose()]


def take_all(stream: Stream) -> None:
    """Consume what has come."""
    while (payload := stream.reader.take()) is not None:
        stream.taken.append(payload)


# --- every interleaving ------------------------------------------------------------------------


class Interleavings(RuleBasedStateMachine):
    """Several calls with items on one link: opened, fed, read, cancelled, ended, lost at will."""

    @initialize()
    def start(self) -> None:
        """A link without calls."""
        self.link = Link()
        self.lost: list[Stream] = []
        self.given_up: set[int] = set()
        self.ended: set[int] = set()

    def pick(self, number: int, among: Callable[[Stream], bool]) -> Stream | None:
        """Choose one of the streams for which something holds."""
        streams = [stream for stream in self.link.streams.values() if among(stream)]
        return streams[number % len(streams)] if streams else None

    @precondition(lambda self: not self.link.asker.is_lost and len(self.link.streams) < 4)
    @rule(window_bytes=st.sampled_from([256, WINDOW_BYTES]))
    def ask(self, window_bytes: int) -> None:
        """One more call."""
        self.link.open(window_bytes)

    @rule(number=st.integers(0, 3), size=st.integers(0, 500), count=st.integers(1, 5))
    def feed(self, number: int, size: int, count: int) -> None:
        """Send what goes."""
        stream = self.pick(number, lambda each: each.writer is not None)
        if stream is None or stream.writer is None:
            return
        size = min(size, stream.writer.payload_bytes_max)
        for _ in range(count):
            payload = bytes([len(stream.sent) % 256]) * size
            if stream.writer.send(payload):
                stream.sent.append(payload)

    @rule(number=st.integers(0, 3), count=st.integers(1, 5))
    def read(self, number: int, count: int) -> None:
        """Consume some."""
        stream = self.pick(number, lambda _: True)
        for _ in range(count):
            payload = None if stream is None else stream.reader.take()
            if stream is not None and payload is not None:
                stream.taken.append(payload)

    @rule(number=st.integers(0, 3))
    def end(self, number: int) -> None:
        """Send the final reply."""
        stream = self.pick(number, lambda each: each.writer is not None)
        if stream is not None and stream.writer is not None:
            if stream.writer.is_open:
                self.ended.add(stream.number)
            stream.writer.end(DONE, SERVED)

    @rule(number=st.integers(0, 3))
    def cancel(self, number: int) -> None:
        """Want no more."""
        stream = self.pick(number, lambda each: each.reply is None)
        if stream is not None and not self.link.asker.is_lost:
            self.given_up.add(stream.number)
            self.link.asker.cancel(stream.number)

    @rule(has_room=st.booleans())
    def change_room(self, has_room: bool) -> None:  # noqa: FBT001 -- a rule's argument
        """The link's socket fills up, or takes more again."""
        self.link.has_room = has_room
        if has_room:
            self.link.asked.made_room()

    @precondition(lambda self: self.link.to_asked)
    @rule()
    def arrive_at_asked(self) -> None:
        """A message arrives at the answering side."""
        self.link.arrive_at_asked()

    @precondition(lambda self: self.link.to_asker)
    @rule()
    def arrive_at_asker(self) -> None:
        """A message arrives at the asking side."""
        self.link.arrive_at_asker()

    @precondition(lambda self: not self.link.asker.is_lost)
    @rule(really=st.integers(0, 9))
    def lose(self, really: int) -> None:
        """The link breaks, seldom."""
        if not really:
            waited = {s.number for s in self.link.streams.values() if s.reply is None}
            self.lost = self.link.lose()
            assert {stream.number for stream in self.lost} == waited - self.given_up

    @invariant()
    def never_more_than_the_window_is_under_way(self) -> None:
        """Counted from where it is sent to where it is consumed."""
        for stream in self.link.streams.values():
            window_bytes = stream.reader._window_bytes
            assert stream.under_way_bytes <= window_bytes

    @invariant()
    def what_is_read_is_what_was_sent_in_order(self) -> None:
        """Without a gap, and nothing twice."""
        for stream in self.link.streams.values():
            assert stream.taken == stream.sent[: len(stream.taken)]

    @invariant()
    def nobody_writes_for_ever_to_nobody(self) -> None:
        """A call that is open nowhere is told so once, at most."""
        for stream in self.link.streams.values():
            assert stream.cancellations <= 1

    def teardown(self) -> None:
        """In the end everything arrives, all is read, and each call has its clear end."""
        link = self.link
        link.has_room = True
        for _ in range(3):
            link.arrive()
            for stream in link.streams.values():
                take_all(stream)
        lost = {stream.number for stream in self.lost}
        for stream in link.streams.values():
            if stream.number in self.given_up | lost:
                assert stream.reply is None
                assert stream.writer is None or not stream.writer.is_open
                assert stream.writer is None or stream.cancellations or stream.number in self.ended
                continue
            assert stream.taken == stream.sent
            assert (stream.reply is not None) == (stream.number in self.ended)
            assert stream.writer is not None
            if stream.reply is None:
                largest = bytes(stream.writer.payload_bytes_max)
                assert stream.writer.send(largest), "an idle call always takes an item"


TestInterleavings = Interleavings.TestCase
TestInterleavings.settings = settings(max_examples=150, stateful_step_count=60, deadline=None)


@given(st.lists(st.integers(0, 436), min_size=1, max_size=60), st.integers(1, 8))
def test_a_reader_that_reads_gets_everything(sizes: list[int], at_once: int) -> None:
    """Whatever the sizes and however little it takes at a time, no credit is ever stuck."""
    link = Link()
    stream, writer = link.opened()
    waiting = deque(bytes(size) for size in sizes)
    while waiting or stream.reply is None:
        before = len(waiting)
        while waiting and writer.send(waiting[0]):
            stream.sent.append(waiting.popleft())
        if not waiting:
            writer.end(DONE, SERVED)
        link.arrive()
        taken = 0
        while taken < at_once and (payload := stream.reader.take()) is not None:
            stream.taken.append(payload)
            taken += 1
        link.arrive()
        assert len(waiting) < before or taken or stream.reply is not None, "it stands still"
    take_all(stream)
    assert stream.taken == stream.sent == [bytes(size) for size in sizes]


# --- pace --------------------------------------------------------------------------------------


def test_who_reads_nothing_hurts_only_itself() -> None:
    """Its writer is refused at the window; another call of the same link goes on."""
    link = Link()
    (idle, to_idle), (busy, to_busy) = link.opened(), link.opened()
    while to_idle.send(bytes(100)):
        link.arrive()
    for _ in range(100):
        assert to_busy.send(bytes(100))
        link.arrive()
        take_all(busy)
    assert not to_idle.send(bytes(100))
    assert (idle.changes, len(busy.taken), idle.rooms) == (6, 100, 0)


def test_refused_items_are_asked_for_when_there_is_credit_again() -> None:
    """The writer hears of it once half of the window was consumed."""
    link = Link()
    stream, writer = link.opened()
    while writer.send(bytes(136)):
        pass
    link.arrive()
    assert stream.reader.take() is not None
    assert stream.reader.take() is not None
    link.arrive()
    assert stream.rooms == 0
    assert stream.reader.take() is not None
    link.arrive()
    assert stream.rooms == 1
    assert writer.send(bytes(136))


def test_a_link_without_room_refuses_and_then_asks_all_in_turn() -> None:
    """What waits in a process is bounded for all of its calls together."""
    link = Link()
    both = [link.opened() for _ in range(2)]
    link.has_room = False
    assert [writer.send(b"x") for _, writer in both] == [False, False]
    assert link.asked.waits_for_room is True
    link.asked.made_room()
    assert [stream.rooms for stream, _ in both] == [0, 0], "it has none yet"
    link.has_room = True
    link.asked.made_room()
    assert [stream.rooms for stream, _ in both] == [1, 1]
    assert [writer.send(b"x") for _, writer in both] == [True, True]


@pytest.mark.parametrize("how", ["ended", "cancelled"])
def test_who_has_ended_while_the_link_had_no_room_is_not_asked_again(how: str) -> None:
    """Room is not offered to a call that is over."""
    link = Link()
    stream, writer = link.opened()
    link.has_room = False
    assert not writer.send(b"x")
    if how == "ended":
        writer.end(DONE, SERVED)
    else:
        link.asker.cancel(0)
        link.arrive()
    assert link.asked.waits_for_room is False
    link.has_room = True
    link.asked.made_room()
    assert stream.rooms == 0


def test_an_item_of_more_than_half_a_window_is_a_mistake() -> None:
    """It would wait for credit that never comes; the writer says how large one may be."""
    link = Link()
    _, writer = link.opened()
    assert writer.send(bytes(writer.payload_bytes_max))
    with pytest.raises(ValueError, match="437 bytes, 436 allowed"):
        writer.send(bytes(writer.payload_bytes_max + 1))


# --- the end -----------------------------------------------------------------------------------


def test_the_final_reply_comes_behind_the_items() -> None:
    """They can still be taken; nothing is sent after it, and it is sent once."""
    link = Link()
    stream, writer = link.opened()
    assert writer.send(b"one")
    writer.end(DONE, SERVED, 7)
    writer.end(DONE, SERVED, 8)
    assert not writer.send(b"two")
    link.arrive()
    assert stream.reply == Reply(0, DONE, SERVED, 7)
    assert stream.reader.take() == b"one"
    assert (link.asker.reading, link.asked.writing, len(link.to_asked)) == (0, 0, 0)


def test_a_cancelled_call_ends_on_both_sides() -> None:
    """Its writer hears of it; what was on its way is dropped; no reply follows."""
    link = Link()
    stream, writer = link.opened()
    assert writer.send(b"one")
    link.asker.cancel(0)
    link.asker.cancel(0)
    link.arrive()
    assert stream.cancellations == 1
    assert not writer.send(b"two")
    writer.end(DONE, SERVED)
    link.arrive()
    assert stream.reply is None
    assert (link.asker.reading, link.asked.writing) == (0, 0)


def test_a_lost_link_ends_calls_on_both_sides() -> None:
    """Who waits is named with its number; what has come before can be taken."""
    link = Link()
    stream, writer = link.opened()
    assert writer.send(b"one")
    link.arrive()
    assert link.lose() == [stream]
    assert (stream.cancellations, writer.is_open) == (1, False)
    assert not writer.send(b"two")
    assert stream.reader.take() == b"one"
    assert stream.reader.take() is None


# --- who breaks the protocol -------------------------------------------------------------------

BROKEN_AT_ASKER: dict[str, ItemMessage] = {
    "a gap": Item(0, 1, b""),
    "too much": Item(0, 0, bytes(WINDOW_BYTES)),
    "an end after a gap": End(1, Reply(0, DONE, SERVED)),
    "a call where none is answered": Open(call(1), WINDOW_BYTES),
}
BROKEN_AT_ASKED: dict[str, ItemMessage] = {
    "credit beyond the window": Credit(0, WINDOW_BYTES + 1),
    "credit taken back": Credit(0, WINDOW_BYTES - 1),
    "a number twice": Open(call(0), WINDOW_BYTES),
}


@pytest.mark.parametrize("what", BROKEN_AT_ASKER)
def test_whoever_asked_notices_what_cannot_be(what: str) -> None:
    """A gap is never read over: the link is given up."""
    link = Link()
    link.opened()
    with pytest.raises(CallError):
        link.asker.take(BROKEN_AT_ASKER[what])


@pytest.mark.parametrize("what", BROKEN_AT_ASKED)
def test_whoever_answers_notices_what_cannot_be(what: str) -> None:
    """Nobody is sent more than its window."""
    link = Link()
    link.opened()
    with pytest.raises(CallError):
        link.asked.take(BROKEN_AT_ASKED[what])


def test_calls_with_items_are_bounded() -> None:
    """One more than whoever asks may open is a breach."""
    link = Link()
    for number in range(OPEN_MAX):
        link.streams[number] = Stream(number)
        link.asked.take(Open(call(number), WINDOW_BYTES))
    with pytest.raises(CallError, match="more than"):
        link.asked.take(Open(call(OPEN_MAX), WINDOW_BYTES))


@pytest.mark.parametrize(
    "message", [Item(9, 3, b""), Credit(9, 1), Cancel(9), End(2, Reply(9, DONE, SERVED))]
)
def test_what_crossed_with_the_end_of_its_call_is_dropped(message: ItemMessage) -> None:
    """Either side may have ended it."""
    link = Link()
    assert link.asker.take(message) is None
    assert link.asked.take(message) is None
