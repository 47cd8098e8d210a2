"""One question to the engine for everybody who wants the same answer at the same time.

Ten open pages ask ten times a second; the engines of all nodes would then spend their time on
telling how they are.
"""

import threading
import time
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

T = TypeVar("T")

KEEP_S = 0.5
_KEPT_MAX = 64


class Shared(Generic[T]):
    """Remembers results for ``keep_s`` seconds; whoever comes while one is made waits for it.

    The lock guards the table; each entry's own lock is held while its result is made.
    """

    def __init__(
        self, keep_s: float = KEEP_S, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._keep_s = keep_s
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._entries: dict[Hashable, _Entry[T]] = {}

    def get(self, key: Hashable, make: Callable[[], T]) -> T:
        """Return the result under ``key``, made anew if it is older than ``keep_s``."""
        with self._lock:
            if len(self._entries) >= _KEPT_MAX and key not in self._entries:
                self._entries.clear()
            entry = self._entries.setdefault(key, _Entry())
        with entry.lock:
            if entry.result is None or self._monotonic() - entry.made_s > self._keep_s:
                entry.result = make()
                entry.made_s = self._monotonic()
            return entry.result

    def forget(self) -> None:
        """Make everything anew: something was changed."""
        with self._lock:
            self._entries.clear()


class _Entry(Generic[T]):
    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.result: T | None = None
        self.made_s = 0.0
