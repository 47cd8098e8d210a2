"""The calls of one link: those that this side has asked, and those that it has to answer.

A call belongs to the link on which it was sent, and ends with it: a reply goes over that link or
nowhere, and once the link is lost nothing that was asked over it is answered any more. So each
link has a table of its own, and a new link to the same process a new table. The front end's
connection, the engine's side of it, and the links between engines all keep one.

A call has one reply. Before it there may be items (:mod:`raftkv.rpc.items`).
"""

from collections.abc import Callable
from typing import Generic, TypeVar

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
)
from raftkv.rpc.local import LocalCall
from raftkv.rpc.messages import Call, Reply

OPEN_MAX = 16_384
"""So many calls with items either side of a link may have open; whoever asks keeps to it."""

Asked = TypeVar("Asked")

ItemHandler = Callable[[Call, ItemWriter], None]
"""Takes a call that wants items; must not block."""


def _carries_none(message: ItemMessage) -> None:
    raise CallError(f"a {type(message).__name__} where no items are carried")


class LinkCalls(Generic[Asked]):
    """All calls of one link, in both directions; ``Asked`` is what waits for a reply.

    ``asked`` holds by number what was asked and is not answered; ``to_answer`` the numbers of calls
    of the other side. Calls with items are counted apart: they may stay open for days.

    Args:
        send: sends a message about items; none where the link carries no items.
        has_room: whether the link takes items now; who is refused for that waits for
            :meth:`made_room`.
        take_call: gets a call that wants items; none where the other side only answers.
    """

    __slots__ = (
        *("_has_room", "_reading", "_send", "_take_call", "_waiting", "_writing"),
        *("asked", "is_lost", "to_answer"),
    )

    def __init__(
        self,
        send: Callable[[ItemMessage], None] | None = None,
        *,
        has_room: Callable[[], bool] = lambda: True,
        take_call: ItemHandler | None = None,
    ) -> None:
        self.asked: dict[int, Asked] = {}
        self.to_answer: set[int] = set()
        self.is_lost = False
        self._send = _carries_none if send is None else send
        self._has_room = has_room
        self._take_call = take_call
        self._reading: dict[int, tuple[ItemReader, Asked]] = {}
        self._writing: dict[int, ItemWriter] = {}
        self._waiting: dict[ItemWriter, None] = {}  # refused for want of room, the oldest first

    def lose(self) -> list[tuple[int, Asked]]:
        """End with the link; return what was asked and is not answered, with its number.

        Readers keep what has come; writers hear that nobody wants more. Calls with one reply that
        are yet to be answered find ``is_lost``.
        """
        self.is_lost = True
        unanswered = list(self.asked.items())
        unanswered += [(number, asked) for number, (_, asked) in self._reading.items()]
        readers, writers = list(self._reading.values()), list(self._writing.values())
        self.asked.clear()
        self.to_answer.clear()
        self._reading.clear()
        self._writing.clear()
        self._waiting.clear()
        for reader, _ in readers:
            reader.lost()
        for writer in writers:
            writer.unwanted()
        return unanswered

    # --- calls with one reply -----------------------------------------------------------------

    def begin(self, number: int) -> None:
        """Note that the other side asked.

        Raises:
            CallError: under a number that is not answered yet.
        """
        if number in self.to_answer:
            raise CallError(f"two calls under the id {number}")
        self.to_answer.add(number)

    # --- calls with items: asking ---------------------------------------------------------------

    @property
    def reading(self) -> int:
        """Calls with items that were asked and are not ended."""
        return len(self._reading)

    def open(
        self, call: LocalCall, window_bytes: int, asked: Asked, changed: Callable[[], None]
    ) -> ItemReader:
        """Ask for items. ``asked`` waits for the final reply, ``changed`` hears of each item."""
        number = call.id
        reader = ItemReader(
            window_bytes, lambda allowed: self._send(Credit(number, allowed)), changed
        )
        self._reading[number] = (reader, asked)
        self._send(Open(call, window_bytes))
        return reader

    def cancel(self, number: int) -> None:
        """Want no more of a call with items; nothing if it has ended."""
        reading = self._reading.pop(number, None)
        if reading is not None:
            reading[0].lost()
            self._send(Cancel(number))

    # --- calls with items: both sides -----------------------------------------------------------

    def take(self, message: ItemMessage) -> tuple[Asked, Reply] | None:
        """Take what the other side says of items; return who gets a final reply, if it is one.

        What is said of a call that has ended here crossed with its end, and is dropped.

        Raises:
            CallError: the other side broke the protocol, and the link is to be closed.
        """
        match message:
            case Item():
                if message.id in self._reading:
                    self._reading[message.id][0].received(message)
            case Credit():
                if message.id in self._writing:
                    self._writing[message.id].credited(message.allowed_bytes)
            case End():
                reading = self._reading.get(message.reply.id)
                if reading is not None:
                    reading[0].ended(message.items)
                    del self._reading[message.reply.id]
                    return reading[1], message.reply
            case Cancel():
                writer = self._writing.pop(message.id, None)
                if writer is not None:
                    self._waiting.pop(writer, None)
                    writer.unwanted()
            case Open():
                self._opened(message)
        return None

    # --- calls with items: answering ------------------------------------------------------------

    @property
    def writing(self) -> int:
        """Calls of the other side that get items and are not ended."""
        return len(self._writing)

    @property
    def waits_for_room(self) -> bool:
        """Whether an item was refused because the link had no room."""
        return bool(self._waiting)

    def made_room(self) -> None:
        """Let those go on that were refused for want of room, in turns, while there is some."""
        for _ in range(len(self._waiting)):
            if not self._waiting or not self._has_room():
                return
            writer = next(iter(self._waiting))
            del self._waiting[writer]
            writer.room()

    def _opened(self, opened: Open) -> None:
        number = opened.call.id
        if self._take_call is None:
            raise CallError("a call where none is answered")
        if number in self._writing or number in self.to_answer:
            raise CallError(f"two calls under the id {number}")
        if len(self._writing) >= OPEN_MAX:
            raise CallError(f"more than {OPEN_MAX} calls with items")
        writer = self._writing[number] = ItemWriter(
            opened, self._write, self._has_room, self._wait_for_room
        )
        self._take_call(opened.call, writer)

    def _write(self, message: Item | End) -> None:
        if isinstance(message, End):
            self._waiting.pop(self._writing.pop(message.reply.id), None)
        self._send(message)

    def _wait_for_room(self, writer: ItemWriter) -> None:
        self._waiting[writer] = None
