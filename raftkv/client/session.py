"""The client's idempotency: a session, numbered writes, and what may be forgotten.

Every write carries ``session; sequence; low``: the shard remembers the outcome of a sequence
number until the client says, by a greater ``low``, that it has its answer. So a write whose answer
was lost can be sent again, to any node, and is applied once (Raft dissertation, section 6.3).
"""

import os
import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Session:
    """Numbers the writes of one client. The lock guards the counter and the open numbers."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._renew()

    def _renew(self) -> None:
        self._pid = os.getpid()
        self._id = secrets.token_hex(16)
        self._next = 1
        # A dict for its order: numbers are issued in rising order, so its first is the lowest.
        self._unanswered: dict[int, None] = {}

    @contextmanager
    def writes(self, count: int = 1) -> Iterator["Ticket"]:
        """Take ``count`` consecutive numbers and keep them from being forgotten until the end."""
        ticket = self._take(count)
        try:
            yield ticket
        finally:
            with self._lock:
                if ticket.session == self._id:
                    for sequence in range(ticket.first, ticket.first + count):
                        del self._unanswered[sequence]

    def _take(self, count: int) -> "Ticket":
        with self._lock:
            if self._pid != os.getpid():
                # Parent and child of a fork must not number their writes alike: the second write
                # under a number would be taken for a repetition and silently not applied.
                self._renew()
            first = self._next
            self._next += count
            self._unanswered.update(dict.fromkeys(range(first, first + count)))
            return Ticket(self, self._id, first)

    def low(self, ticket: "Ticket") -> int:
        """The lowest number of the ticket's session that has no answer yet."""
        with self._lock:
            if ticket.session != self._id:
                return ticket.first
            return next(iter(self._unanswered))


class Ticket:
    """The numbers of one call; the same for every attempt at it."""

    def __init__(self, owner: Session, session: str, first: int) -> None:
        self._owner = owner
        self.session = session
        self.first = first

    @property
    def header(self) -> str:
        """The value of ``Raftkv-Session``, with the watermark as it is now."""
        return f"{self.session};{self.first};{self.low}"

    @property
    def low(self) -> int:
        """The watermark as it is now."""
        return self._owner.low(self)


class SessionPool:
    """Sessions for use by one caller at a time. The lock guards the idle ones."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._idle: list[Session] = []

    @contextmanager
    def borrow(self) -> Iterator[Session]:
        """Have a session alone; the one used last is lent first, so that few are kept alive."""
        with self._lock:
            session = self._idle.pop() if self._idle else Session()
        try:
            yield session
        finally:
            with self._lock:
                self._idle.append(session)
