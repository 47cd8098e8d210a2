"""Keys that are hot for a while, by time or by number of operations; then new ones come.

A checker's work grows with the operations of one key, and with how many of them have an unknown
outcome; a bound on both keeps every verdict within reach, however long the run.
"""

import threading
from collections.abc import Callable
from random import Random

OPERATIONS_PER_KEY_MIN = 120
OPERATIONS_PER_KEY_MAX = 240


_REGISTERS = 2


class KeysByTime:
    """Every kind has one key at a time, registers have two; all change with ``era``."""

    def __init__(self, era: Callable[[], int]) -> None:
        self._era = era

    def take(self, kind: str, random: Random) -> str:
        """The key of this era."""
        if kind == "register":
            return f"r{self._era()}-{random.randrange(_REGISTERS)}"
        return f"{_LETTERS[kind]}{self._era()}"

    def beside(self, key: str) -> str:
        """The other one of two registers."""
        return f"{key[:-1]}{1 - int(key[-1])}"

    def retire(self, key: str) -> None:
        """It ends with its era."""


_LETTERS = {"append": "l", "set": "s", "bank": "b", "lock": "k", "pages": "p", "txn": "t"}


class RotatingKeys:
    """Several keys of each kind are hot; each takes a bounded number of operations.

    Args:
        random: Decides how long each key lives.
        active: How many keys of a kind are hot at a time.
    """

    def __init__(self, random: Random, active: int) -> None:
        self._kinds = {
            kind: KeyRotation(f"{kind}-", active, Random(random.random()))  # noqa: S311 -- a seed
            for kind in ("register", *_LETTERS)
        }

    def take(self, kind: str, random: Random) -> str:
        """One of the hot keys."""
        return self._kinds[kind].take(random)

    def beside(self, key: str) -> str:
        """The hot key that comes next."""
        return self._kinds[_kind_of(key)].beside(key)

    def retire(self, key: str) -> None:
        """Another one comes in its place."""
        self._kinds[_kind_of(key)].retire(key)


def _kind_of(key: str) -> str:
    return key.rpartition("-")[0]


class KeyRotation:
    """Hands out keys. The lock guards which are active and how much is left of each.

    Args:
        name: What a key's name begins with; a number follows.
        active: How many keys are hot at a time.
        random: Decides how long each key lives.
    """

    def __init__(self, name: str, active: int, random: Random) -> None:
        self._name = name
        self._random = random
        self._lock = threading.Lock()
        self.used: list[str] = []
        self._left: dict[str, int] = {}
        self._active = [self._new() for _ in range(active)]

    def _new(self) -> str:
        key = f"{self._name}{len(self.used)}"
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

    def beside(self, key: str) -> str:
        """The active key after this one; the first, if this one is active no more."""
        with self._lock:
            place = self._active.index(key) + 1 if key in self._active else 0
            return self._active[place % len(self._active)]

    def retire(self, key: str) -> None:
        """Use this key no more: nobody can say what became of it."""
        with self._lock:
            if key in self._active:
                self._active[self._active.index(key)] = self._new()
