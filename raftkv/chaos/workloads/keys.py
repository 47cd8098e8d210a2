"""Keys that are hot for a while: each takes a bounded number of operations, then a new one comes.

A checker's work grows with the operations of one key, and with how many of them have an unknown
outcome; a bound on both keeps every verdict within reach, however long the run.
"""

import threading
from collections.abc import Callable
from random import Random

OPERATIONS_PER_KEY_MIN = 120
OPERATIONS_PER_KEY_MAX = 240


class KeyRotation:
    """Hands out keys. The lock guards which are active and how much is left of each.

    Args:
        name: What a key's name begins with; a number follows.
        active: How many keys are hot at a time.
        random: Decides how long each key lives.
        make: Makes the whole key of a numbered name.
    """

    def __init__(
        self, name: str, active: int, random: Random, make: Callable[[str], str] = str
    ) -> None:
        self._name = name
        self._random = random
        self._make = make
        self._lock = threading.Lock()
        self.used: list[str] = []
        self._left: dict[str, int] = {}
        self._active = [self._new() for _ in range(active)]

    def _new(self) -> str:
        key = self._make(f"{self._name}{len(self.used)}")
        self.used.append(key)
        self._left[key] = self._random.randint(OPERATIONS_PER_KEY_MIN, OPERATIONS_PER_KEY_MAX)
        return key

    def take(self, random: Random) -> str:
        """One of the active keys, for one operation."""
        with self._lock:
            place = random.randrange(len(self._active))
            key = self._active[place]
            self._left[key] -= 1
            if self._left[key] == 0:
                self._active[place] = self._new()
            return key

    def retire(self, key: str) -> None:
        """Use this key no more: nobody can say what became of it."""
        with self._lock:
            if key in self._active:
                self._active[self._active.index(key)] = self._new()
