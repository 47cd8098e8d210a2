"""Bulk messages of one link: they wait per channel, and leave in pieces as the peer gives credit.

What is large (values, snapshots) must not hold up what is urgent (Raft), nor fill the memory with
encodings that cannot leave. So a large message waits as what it is made of; it is encoded when its
turn comes, and cut into pieces, of which only so many are under way that the receiver has not taken
yet. Each channel is a lane: its messages leave one after another, and lanes take turns piece by
piece, so that a snapshot and large answers share a link. Credit is counted as in HTTP/2 (RFC 9113,
section 5.2), by totals instead of increments, so that nothing can be counted twice.
"""

from collections import deque

from raftkv.engine.peer_wire import Encode

PIECE_BYTES = 64 * 1024
"""Larger messages are cut: an urgent one waits for a piece at most, not for megabytes."""


class _Lane:
    """The messages of one channel, the one that is being sent apart from those that wait."""

    __slots__ = ("offset", "sending", "waiting", "waiting_bytes")

    def __init__(self) -> None:
        self.waiting: deque[tuple[int, Encode]] = deque()
        self.waiting_bytes = 0
        self.sending = memoryview(b"")
        self.offset = 0

    @property
    def is_sending(self) -> bool:
        """Whether a part of a message has left and a part has not."""
        return self.offset > 0

    def begin_next(self) -> bool:
        """Encode the next message that is still wanted; whether there is one."""
        while self.waiting:
            size_bytes, encode = self.waiting.popleft()
            self.waiting_bytes -= size_bytes
            message = encode()
            if message is not None:
                self.sending = memoryview(message)
                return True
        return False

    def cut(self, bytes_max: int) -> tuple[memoryview, bool]:
        """Take the next piece of the message that is being sent; whether more of it follows."""
        piece = self.sending[self.offset : self.offset + bytes_max]
        self.offset += len(piece)
        if self.offset < len(self.sending):
            return piece, True
        self.sending, self.offset = memoryview(b""), 0
        return piece, False


class BulkLanes:
    """What waits for one peer, and how much of it may leave now.

    Args:
        window_bytes: so much may be under way that the peer has not taken; one piece always.
        piece_bytes: larger messages are cut.
    """

    def __init__(self, window_bytes: int, piece_bytes: int = PIECE_BYTES) -> None:
        self._window_bytes = window_bytes
        self._piece_bytes = piece_bytes
        self._lanes: dict[int, _Lane] = {}
        self._turns: deque[int] = deque()  # channels with something to send, the next one first
        self.sent_bytes = 0
        self._taken_bytes = 0

    @property
    def is_empty(self) -> bool:
        """Whether nothing waits."""
        return not self._turns

    @property
    def waiting_bytes(self) -> int:
        """Bytes that wait, encoded or not."""
        return sum(
            lane.waiting_bytes + len(lane.sending) - lane.offset for lane in self._lanes.values()
        )

    @property
    def under_way_bytes(self) -> int:
        """Bytes that the peer has not taken yet, as far as is known."""
        return self.sent_bytes - self._taken_bytes

    def offer(self, channel: int, size_bytes: int, encode: Encode, *, bytes_max: int) -> bool:
        """Let a message of about ``size_bytes`` wait; False: ``bytes_max`` wait already.

        An empty lane takes anything, and every lane what has no size.
        """
        lane = self._lanes.get(channel)
        if lane is None:
            lane = self._lanes[channel] = _Lane()
        if lane.waiting and size_bytes and lane.waiting_bytes + size_bytes > bytes_max:
            return False
        if not lane.waiting and not lane.is_sending:
            self._turns.append(channel)
        lane.waiting.append((size_bytes, encode))
        lane.waiting_bytes += size_bytes
        return True

    def next_piece(self) -> tuple[int, memoryview, bool] | None:
        """Take (channel, piece, whether more of its message follows) if there is credit for it."""
        while self._turns and not self._is_window_full():
            channel = self._turns.popleft()
            lane = self._lanes[channel]
            if not lane.is_sending and not lane.begin_next():
                continue
            piece, more = lane.cut(self._piece_bytes)
            if more or lane.waiting:
                self._turns.append(channel)
            self.sent_bytes += len(piece)
            return channel, piece, more
        return None

    def _is_window_full(self) -> bool:
        under_way = self.under_way_bytes
        return under_way > 0 and under_way + self._piece_bytes > self._window_bytes

    def taken(self, total_bytes: int) -> bool:
        """Called with how much the peer says it has taken in all; False if that cannot be."""
        if not self._taken_bytes <= total_bytes <= self.sent_bytes:
            return False
        self._taken_bytes = total_bytes
        return True


class _Begun:
    """The pieces of a message whose last one is not here yet."""

    __slots__ = ("pieces", "since", "size_bytes")

    def __init__(self, since: int) -> None:
        self.pieces: list[bytes] = []
        self.size_bytes = 0
        self.since = since


class Pieces:
    """The receiver's side: puts messages together again, one at a time for each channel.

    ``since`` is a time before which nothing of what comes now was sent; kept is that of a
    message's first piece, since the message was made when that left.
    """

    def __init__(self, message_bytes_max: int) -> None:
        self._message_bytes_max = message_bytes_max
        self._begun: dict[int, _Begun] = {}
        self.received_bytes = 0

    def begin(self, channel: int, piece: bytes, since: int) -> bool:
        """Take a piece that is not the last; False if the message gets too large."""
        self.received_bytes += len(piece)
        begun = self._begun.get(channel)
        if begun is None:
            begun = self._begun[channel] = _Begun(since)
        begun.pieces.append(piece)
        begun.size_bytes += len(piece)
        return begun.size_bytes <= self._message_bytes_max

    def end(self, channel: int, piece: bytes, since: int) -> tuple[bytes, int]:
        """Take the last piece; return the message, and since when it may have been on its way."""
        self.received_bytes += len(piece)
        begun = self._begun.pop(channel, None)
        if begun is None:
            return piece, since
        begun.pieces.append(piece)
        return b"".join(begun.pieces), begun.since
