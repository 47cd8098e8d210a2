"""Watches who leads what, by asking every node of itself twice a second."""

import threading
from types import TracebackType
from typing import NamedTuple, Self

from raftkv.chaos.recorder import EventLog
from raftkv.chaos.target import Target

PERIOD_S = 0.5


class Leader(NamedTuple):
    """Who leads a shard, and since which term."""

    term: int
    node: str


class Observer:
    """One thread for each node, so that a frozen one delays no other. The lock guards the leaders.

    A leader is whoever claims the highest term; an older claim is one that has not heard yet.
    """

    def __init__(self, target: Target, events: EventLog) -> None:
        self._target = target
        self._events = events
        self._lock = threading.Lock()
        self._leaders: dict[int, Leader] = {}
        self._stopping = threading.Event()
        self._threads = [
            threading.Thread(target=self._watch, args=(name,), name=f"watch {name}", daemon=True)
            for name in target.names
        ]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join()

    def leader_of(self, shard: int) -> str | None:
        """The node that was last seen to lead a shard."""
        with self._lock:
            leader = self._leaders.get(shard)
        return None if leader is None else leader.node

    def _watch(self, name: str) -> None:
        while not self._stopping.is_set():
            for shard, term in (self._target.leads(name) or {}).items():
                self._note(shard, Leader(term, name))
            self._stopping.wait(PERIOD_S)

    def _note(self, shard: int, seen: Leader) -> None:
        with self._lock:
            known = self._leaders.get(shard)
            if known is None or seen.term > known.term:
                self._leaders[shard] = seen
                self._events.leader(shard, seen.node, seen.term)
