"""Sets whose elements are keys of one shard: a scan of the tag reads a set in one moment."""

import itertools
from random import Random

from raftkv.chaos.operation import Operation, Outcome, ok
from raftkv.chaos.store import Store
from raftkv.chaos.workloads.keys import KeyRotation

MODEL = "set"


class SetWorkload:
    """Several hot sets of numbers, each number added once."""

    def __init__(self, random: Random, active: int) -> None:
        self._keys = KeyRotation("set-", active, random, make=lambda name: f"{{{name}}}/")
        self._numbers = itertools.count(1)

    def next(self, process: int, random: Random) -> Operation:
        """Mostly additions: each read is as long as its set."""
        del process
        key = self._keys.take(random)
        return read(key) if random.random() < 0.3 else add(key, next(self._numbers))  # noqa: PLR2004 -- as said

    def final_reads(self) -> list[Operation]:
        """One read of every set that was ever used."""
        return [read(key) for key in list(self._keys.used)]


def add(key: str, element: int) -> Operation:
    """Put the key of one element."""

    def run(store: Store) -> Outcome:
        store.put(f"{key}{element}", b"")
        return ok()

    return Operation(MODEL, "add", key, element, run)


def read(key: str) -> Operation:
    """Scan the keys of all elements."""

    def run(store: Store) -> Outcome:
        return ok([int(entry.key.decode().removeprefix(key)) for entry in store.scan(key)])

    return Operation(MODEL, "read", key, None, run, reads=True)
