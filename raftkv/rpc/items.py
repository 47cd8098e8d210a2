"""Calls that are answered many times: items in order, paced by credit, then the final reply.

Whoever asks opens the call with a window, and says how many bytes it has room for; whoever answers
sends no more than that. So what is under way to a slow reader is bounded by its own window, and
nobody else waits for it. Credit is counted as in HTTP/2 (RFC 9113, section 5.2), by totals
instead of increments, so that nothing can be counted twice.

Nothing here reads a socket or a clock: :mod:`raftkv.rpc.calls` has the table of a link's calls.
"""

from collections import deque
from collections.abc import Callable
from typing import Annotated

import msgspec

from raftkv.rpc.local import LocalCall
from raftkv.rpc.messages import Message, Reply, Response, Served
from raftkv.rpc.sizes import ITEM_BYTES

WINDOW_BYTES = 256 * 1024
"""Usual room for items that the reader has not consumed."""

CallId = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
Count = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]


class CallError(Exception):
    """The other side broke the protocol of calls; nothing that it says can be relied on."""


# --- messages --------------------------------------------------------------------------------


class Open(Message, tag=1, frozen=True):
    """Asks for items; ``window_bytes`` may be under way that the reader has not consumed."""

    call: LocalCall
    window_bytes: Annotated[int, msgspec.Meta(ge=4 * ITEM_BYTES, le=2**26)]


class Credit(Message, tag=2, frozen=True):
    """Whoever asked has room for so many bytes in all, counted from the first item."""

    id: CallId
    allowed_bytes: Count


class Cancel(Message, tag=3, frozen=True):
    """Whoever asked wants nothing more; no reply follows."""

    id: CallId


class Item(Message, tag=4, frozen=True):
    """The item with this number, counted from 0; its payload is between the two ends."""

    id: CallId
    number: Count
    payload: bytes


class End(Message, tag=5, frozen=True):
    """The final reply, after so many items."""

    items: Count
    reply: Reply


ItemMessage = Open | Credit | Cancel | Item | End

decode_item_message = msgspec.msgpack.Decoder(ItemMessage).decode


def item_bytes(payload: bytes) -> int:
    """What an item counts: also an empty one takes memory."""
    return ITEM_BYTES + len(payload)


def payload_bytes_max(window_bytes: int) -> int:
    """Return the size of the largest payload in such a window.

    An item takes half of it at most, so that credit given in halves never leaves one stuck.
    """
    return window_bytes // 2 - ITEM_BYTES


# --- the two ends of a call ------------------------------------------------------------------


class ItemReader:
    """The asking end: keeps what has come and was not consumed, within the window.

    Args:
        give_credit: tells the other end how many bytes it may send in all.
        changed: called when an item has come.
    """

    __slots__ = (
        *("_allowed_bytes", "_changed", "_consumed_bytes", "_ended", "_give_credit"),
        *("_items", "_received", "_received_bytes", "_window_bytes"),
    )

    def __init__(
        self,
        window_bytes: int,
        give_credit: Callable[[int], None],
        changed: Callable[[], None],
    ) -> None:
        self._window_bytes = window_bytes
        self._give_credit = give_credit
        self._changed = changed
        self._items: deque[bytes] = deque()
        self._received = 0
        self._received_bytes = 0
        self._consumed_bytes = 0
        self._allowed_bytes = window_bytes
        self._ended = False

    def take(self) -> bytes | None:
        """Consume the next item; None if none is here. Half a window consumed is given back."""
        if not self._items:
            return None
        payload = self._items.popleft()
        self._consumed_bytes += item_bytes(payload)
        allowed_bytes = self._consumed_bytes + self._window_bytes
        if not self._ended and 2 * (allowed_bytes - self._allowed_bytes) >= self._window_bytes:
            self._allowed_bytes = allowed_bytes
            self._give_credit(allowed_bytes)
        return payload

    def received(self, item: Item) -> None:
        """Keep an item that has come.

        Raises:
            CallError: one is missing before it, or there was no credit for it.
        """
        if item.number != self._received:
            raise CallError(f"item {item.number} came where {self._received} was next")
        self._received += 1
        self._received_bytes += item_bytes(item.payload)
        if self._received_bytes > self._allowed_bytes:
            raise CallError(f"{self._received_bytes} bytes of items, {self._allowed_bytes} allowed")
        self._items.append(item.payload)
        self._changed()

    def ended(self, items: int) -> None:
        """Expect no more, and give no more credit.

        Raises:
            CallError: an item is missing.
        """
        if items != self._received:
            raise CallError(f"a call ended after {items} items, {self._received} have come")
        self._ended = True

    def lost(self) -> None:
        """Expect no more: the link is gone, or the call given up. What has come can be taken."""
        self._ended = True


class ItemWriter:
    """The answering end: sends items while there is credit, and the final reply.

    Made by :class:`raftkv.rpc.calls.LinkCalls`. ``is_open`` until the call is ended here, or was
    cancelled, or its link is lost.
    """

    __slots__ = (
        *("_allowed_bytes", "_has_room", "_id", "_send", "_sent", "_sent_bytes"),
        *("_wait_for_room", "_window_bytes", "cancelled", "is_open", "room"),
    )

    def __init__(
        self,
        opened: Open,
        send: Callable[[Item | End], None],
        has_room: Callable[[], bool],
        wait_for_room: Callable[["ItemWriter"], None],
    ) -> None:
        self._id = opened.call.id
        self._window_bytes = self._allowed_bytes = opened.window_bytes
        self._send = send
        self._has_room = has_room
        self._wait_for_room = wait_for_room
        self._sent = 0
        self._sent_bytes = 0
        self.is_open = True
        self.room: Callable[[], None] = lambda: None
        """Called when there may be room for more items: with new credit, or by the link."""
        self.cancelled: Callable[[], None] = lambda: None
        """Called once if nobody wants the items any more."""

    @property
    def id(self) -> int:
        """The number of the call on its link."""
        return self._id

    @property
    def payload_bytes_max(self) -> int:
        """The size of the largest payload that this call can carry."""
        return payload_bytes_max(self._window_bytes)

    def send(self, payload: bytes) -> bool:
        """Send the next item; False: it was not sent, and ``room`` is called when it may be.

        Raises:
            ValueError: it is larger than :attr:`payload_bytes_max`.
        """
        size_bytes = item_bytes(payload)
        if 2 * size_bytes > self._window_bytes:
            raise ValueError(f"an item of {len(payload)} bytes, {self.payload_bytes_max} allowed")
        if not self.is_open or self._sent_bytes + size_bytes > self._allowed_bytes:
            return False
        if not self._has_room():
            self._wait_for_room(self)
            return False
        number = self._sent
        self._sent += 1
        self._sent_bytes += size_bytes
        self._send(Item(self._id, number, payload))
        return True

    def end(self, response: Response, served: Served, map_epoch: int = 0) -> None:
        """Send the final reply; nothing if nobody waits for it."""
        if self.is_open:
            self.is_open = False
            self._send(End(self._sent, Reply(self._id, response, served, map_epoch)))

    def credited(self, allowed_bytes: int) -> None:
        """Take more credit.

        Raises:
            CallError: it was taken back, or is more than the window.
        """
        if not self._allowed_bytes <= allowed_bytes <= self._sent_bytes + self._window_bytes:
            raise CallError(f"credit of {allowed_bytes} bytes after {self._allowed_bytes}")
        self._allowed_bytes = allowed_bytes
        self.room()

    def unwanted(self) -> None:
        """Called when the call was cancelled, or its link lost."""
        if self.is_open:
            self.is_open = False
            self.cancelled()
