"""When a leader may forget what is not used: its own monotonic clock, never a replica's.

A leader makes an :class:`ExpiryClock` when it begins to lead and polls it now and then with its
monotonic time. The clock knows nothing of the time before, so every name that it finds gets a
whole lifetime from then; a change of leader makes names live longer, never shorter.

It needs no list of names: an :class:`Aging` section, as the
:class:`~raftkv.core.shard.outcomes.OutcomeMemory` is, stamps every use of a name with an epoch, and
an epoch ends with each command applied that forgets. The clock notes when it saw
each epoch begin; names last used before an epoch that began a lifetime ago have had their time.
While names are in use it proposes one every ``interval_s``, if need be without names, so that
epochs go by, and more often while very many are new; on an idle shard it proposes nothing.
"""

from collections import deque
from typing import Protocol

from raftkv.core.operations import LoggedOperation

LIFETIME_S = 120.0
"""How long the outcome of a request is remembered at least, after its name was last used (a
session) or first used (a free-form key)."""

NAMES_PER_FORGET = 4_000
"""A ``Forget`` names so many keys, and as many sessions, at most: a shard takes half as many new
ones a second, and applying it takes some milliseconds."""

NAMES_PER_EPOCH = 1_000
"""An epoch in which so many keys were new ends at the next look. All of an epoch's names live as
long as its youngest: long epochs of many names would fill the table with names that have had their
time."""


class Aging(Protocol):
    """A section whose names are forgotten when they were not used for a lifetime."""

    @property
    def epoch(self) -> int:
        """The present epoch."""

    @property
    def free_key_count(self) -> int:
        """How many names there are whose time no later use renews."""

    def newest_epoch(self) -> int | None:
        """Return the epoch in which a name was last used, None if no name is known."""

    def unused_since(self, epoch: int, limit: int) -> LoggedOperation | None:
        """Return what forgets about ``limit`` names last used before ``epoch``, if any."""

    def next_epoch(self) -> LoggedOperation:
        """Return what ends the present epoch, and forgets nothing."""


class ExpiryClock:
    """Decides what a leader proposes to forget.

    Args:
        section: Whose names it looks after, read only.
        lifetime_s: How long a name lives at least. Epochs change every twelfth of it at least
            while names are in use; names live up to twice that longer than they must.
        retry_s: After how long a proposal that was not applied is given up and made again.
    """

    def __init__(
        self,
        section: Aging,
        *,
        lifetime_s: float = LIFETIME_S,
        retry_s: float = 5.0,
    ) -> None:
        self._section = section
        self._lifetime_s = lifetime_s
        self._interval_s = lifetime_s / 12
        self._retry_s = retry_s
        self._begun: deque[tuple[int, float]] = deque()  # (epoch, when it was seen to have begun)
        self._keys_at_begin = 0
        self._proposed: tuple[int, float] | None = None  # (epoch at the time, when)

    def poll(self, now_s: float) -> LoggedOperation | None:
        """Return what to propose now, if anything.

        Call it every second or so. Applying the result is the only way on: until then, or until
        ``retry_s`` has passed, there is nothing more to propose.
        """
        epoch = self._section.epoch
        if not self._begun or self._begun[-1][0] != epoch:
            self._begun.append((epoch, now_s))
            self._keys_at_begin = self._section.free_key_count
        if self._is_pending(epoch, now_s):
            return None
        due = self._due(epoch, now_s)
        self._proposed = None if due is None else (epoch, now_s)
        return due

    def _is_pending(self, epoch: int, now_s: float) -> bool:
        if self._proposed is None:
            return False
        proposed_in, proposed_at = self._proposed
        return proposed_in == epoch and now_s - proposed_at < self._retry_s

    def _due(self, epoch: int, now_s: float) -> LoggedOperation | None:
        # Keep the newest epoch that is old enough: names last used before it have had their time.
        while len(self._begun) > 1 and now_s - self._begun[1][1] >= self._lifetime_s:
            self._begun.popleft()
        first_epoch, begun_at = self._begun[0]
        if now_s - begun_at >= self._lifetime_s:
            due = self._section.unused_since(first_epoch, NAMES_PER_FORGET)
            if due is not None:
                return due
        # Names used in the present epoch can only ever be forgotten after it has ended.
        is_used = self._section.newest_epoch() == epoch
        is_long = now_s - self._begun[-1][1] >= self._interval_s
        is_crowded = self._section.free_key_count - self._keys_at_begin >= NAMES_PER_EPOCH
        return self._section.next_epoch() if is_used and (is_long or is_crowded) else None
