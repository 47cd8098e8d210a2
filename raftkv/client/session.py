"""The client's idempotency: a session, numbered writes, and what may be forgotten.

Every write carries ``session; sequence; low; born``: the shard remembers the outcome of a sequence
number until the client says, by a greater ``low``, that it has its answer. So a write whose answer
was lost can be sent again, to any node, and is applied once (Raft dissertation, section 6.3).

A session that is not used is forgotten by a shard, and then refused there for good: the shard tells
the greatest birth of all that it has forgotten, and only sessions born later are let in. ``born``
is a guess by this machine's clock, in microseconds; a refusal teaches a better one.
"""

import os
import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Self

from raftkv.client.clock import boot_s, wall_us

WINDOW_MAX = 512
"""Numbers between the lowest without an answer and the next one.

A shard keeps every outcome from the lowest on, and not without bound. So one write that hangs, for
a shard without a leader perhaps, must not hold up the watermark for all others: they go on under a
new session.
"""

IDLE_S = 100.0
"""A session that was not used for so long may soon be forgotten (after 120 s): another is begun."""

BIRTH_MAX = 2**52
"""Greatest birth that is taken from a clock: servers have room above it for later ones."""


class _Numbering:
    """One session as the shards know it: name, birth, and which of its numbers have no answer."""

    def __init__(self, born: int) -> None:
        self.id = secrets.token_hex(16)
        self.born = born
        self.used_s = 0.0
        self.pid = os.getpid()
        self.next = 1
        # A dict for its order: numbers are issued in rising order, so its first is the lowest.
        self.unanswered: dict[int, None] = {}

    @property
    def low(self) -> int:
        """The lowest number without an answer, or the next one."""
        return next(iter(self.unanswered), self.next)


class Session:
    """Numbers the writes of one client. The lock guards all numberings with open numbers."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ahead_us = 0  # of this machine's clock are births that servers let in
        self._current = self._begin(0)

    def _begin(self, born_after: int) -> _Numbering:
        now_us = min(wall_us(), BIRTH_MAX)
        self._ahead_us = max(self._ahead_us, born_after + 1 - now_us)
        return _Numbering(now_us + self._ahead_us)

    def writes(self, count: int = 1, born_after: int = 0) -> "Ticket":
        """Consecutive numbers, taken by ``with`` and kept from being forgotten until its end."""
        return Ticket(self, count, born_after)

    def take(self, count: int, born_after: int = 0) -> tuple[_Numbering, int]:
        """Issue ``count`` consecutive numbers, which are unanswered until :meth:`give_back`.

        They are those of a session born after ``born_after``.
        """
        with self._lock:
            now, now_s = self._current, boot_s()
            # Parent and child of a fork must not number their writes alike: the second write
            # under a number would be taken for a repetition and silently not applied.
            is_full = bool(now.unanswered) and now.next + count - now.low > WINDOW_MAX
            is_idle = now.next > 1 and now_s - now.used_s > IDLE_S
            if is_full or is_idle or now.born <= born_after or now.pid != os.getpid():
                now = self._current = self._begin(born_after)
            now.used_s = now_s
            first = now.next
            now.next += count
            now.unanswered.update(dict.fromkeys(range(first, first + count)))
            return now, first

    def give_back(self, numbering: _Numbering, first: int, count: int) -> None:
        """Whatever became of these numbers, they will not be sent again."""
        with self._lock:
            for sequence in range(first, first + count):
                del numbering.unanswered[sequence]

    def low(self, numbering: _Numbering) -> int:
        """The lowest number of a session that has no answer yet."""
        with self._lock:
            return numbering.low


class Ticket:
    """The numbers of one call, from ``with`` on; the same for every attempt after :meth:`renew`."""

    # Not a generator with @contextmanager, which costs more: every write makes one of these.
    __slots__ = ("_born_after", "_count", "_numbering", "_owner", "first", "session")

    _numbering: _Numbering
    session: str
    first: int

    def __init__(self, owner: Session, count: int, born_after: int) -> None:
        self._owner = owner
        self._count = count
        self._born_after = born_after

    def __enter__(self) -> Self:
        self._numbering, self.first = self._owner.take(self._count, self._born_after)
        self.session = self._numbering.id
        return self

    def __exit__(self, *_exception: object) -> None:
        self._owner.give_back(self._numbering, self.first, self._count)

    @property
    def header(self) -> str:
        """The value of ``Raftkv-Session``, with the watermark as it is now."""
        return f"{self.session};{self.first};{self.low};{self.born}"

    @property
    def born(self) -> int:
        """When the session began, as servers count it."""
        return self._numbering.born

    def renew(self, born_after: int) -> bool:
        """Go on in a session born later, where this one was refused; False if it was not for that.

        Only for a call of which no copy can have been applied: it gets another number.
        """
        if self.born > born_after:
            return False
        numbering, first = self._owner.take(self._count, born_after)
        self._owner.give_back(self._numbering, self.first, self._count)
        self._numbering, self.first, self.session = numbering, first, numbering.id
        return True

    @property
    def low(self) -> int:
        """The watermark as it is now."""
        return self._owner.low(self._numbering)


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
