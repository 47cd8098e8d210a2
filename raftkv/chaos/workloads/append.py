"""Lists in single keys, appended to by read and compare-and-set: a lost update breaks the order."""

import itertools
import json
from random import Random

from raftkv.chaos.operation import Operation, Outcome, ok, refused
from raftkv.chaos.store import Store
from raftkv.chaos.workloads.keys import KeyRotation
from raftkv.client import PreconditionFailedError

MODEL = "append"
ATTEMPTS_MAX = 8


class AppendWorkload:
    """Several hot lists of numbers, each number appended once."""

    def __init__(self, random: Random, active: int) -> None:
        self._keys = KeyRotation("append/", active, random)
        self._numbers = itertools.count(1)

    def next(self, process: int, random: Random) -> Operation:
        """An append or a read."""
        del process
        key = self._keys.take(random)
        return read(key) if random.random() < 0.5 else append(key, next(self._numbers))  # noqa: PLR2004 -- evenly

    def final_reads(self) -> list[Operation]:
        """One read of every list that was ever used."""
        return [read(key) for key in list(self._keys.used)]


def read(key: str) -> Operation:
    """Read a whole list."""

    def run(store: Store) -> Outcome:
        entry = store.get(key)
        return ok([] if entry is None else json.loads(entry.value))

    return Operation(MODEL, "read", key, None, run, reads=True)


def append(key: str, element: int) -> Operation:
    """Append by compare-and-set; tried again only where the last try certainly did nothing."""

    def run(store: Store) -> Outcome:
        for _ in range(ATTEMPTS_MAX):
            entry = store.get(key)
            elements = [] if entry is None else json.loads(entry.value)
            try:
                store.put(
                    key,
                    json.dumps([*elements, element]),
                    if_revision=None if entry is None else entry.revision,
                    if_absent=entry is None,
                )
            except PreconditionFailedError:
                continue
            return ok()
        return refused(f"others were faster {ATTEMPTS_MAX} times")

    return Operation(MODEL, "append", key, element, run)
