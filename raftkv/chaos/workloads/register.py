"""Single keys: read, write, compare-and-set and delete, with the revisions of all of them."""

import itertools
import json
from collections import defaultdict, deque
from random import Random
from typing import Any

from raftkv.chaos.operation import Operation, Outcome, ok
from raftkv.chaos.store import Store
from raftkv.chaos.workloads.keys import KeyRotation

MODEL = "register"
SEEN_MAX = 4
OUTDATED_SHARE = 0.2


class RegisterWorkload:
    """Several hot keys; each value is written once only, so that every read names its write."""

    def __init__(self, random: Random, active: int) -> None:
        self._keys = KeyRotation("register/", active, random)
        self._numbers = itertools.count(1)
        self._seen: dict[str, deque[int | None]] = defaultdict(lambda: deque([None], SEEN_MAX))
        """The revisions of each key that clients saw last."""

    def next(self, process: int, random: Random) -> Operation:
        """A read in four of ten, else a write of some kind."""
        del process
        key = self._keys.take(random)
        kind = random.choices(("read", "write", "cas", "delete"), (4, 3, 3, 0.5))[0]
        if kind == "read":
            return self.read(key)
        if kind == "write":
            return self._write(key)
        expected = self._expectation(key, random)
        return self._cas(key, expected) if kind == "cas" else self._delete(key, expected)

    def _expectation(self, key: str, random: Random) -> int | None:
        """A condition that mostly may hold, and sometimes certainly must not."""
        seen = list(self._seen[key])
        return random.choice(seen) if random.random() < OUTDATED_SHARE else seen[-1]

    def final_reads(self) -> list[Operation]:
        """One read of every key that was ever used."""
        return [self.read(key) for key in list(self._keys.used)]

    def read(self, key: str) -> Operation:
        """Read value and revision."""

        def run(store: Store) -> Outcome:
            entry = store.get(key)
            if entry is None:
                return ok(None, revision=None)
            return ok(json.loads(entry.value), revision=entry.revision)

        return self._operation("read", key, None, run, reads=True)

    def _write(self, key: str) -> Operation:
        value = next(self._numbers)

        def run(store: Store) -> Outcome:
            return ok(revision=store.put(key, json.dumps(value)).revision)

        return self._operation("write", key, value, run)

    def _cas(self, key: str, expected: int | None) -> Operation:
        value = next(self._numbers)

        def run(store: Store) -> Outcome:
            put = store.put(
                key, json.dumps(value), if_revision=expected, if_absent=expected is None
            )
            return ok(revision=put.revision)

        return self._operation("cas", key, {"expected_revision": expected, "value": value}, run)

    def _delete(self, key: str, expected: int | None) -> Operation:
        def run(store: Store) -> Outcome:
            gone = store.delete(key, if_revision=expected)
            return ok(deleted=gone.deleted, revision=gone.revision)

        value = None if expected is None else {"expected_revision": expected}
        return self._operation("delete", key, value, run)

    def _operation(
        self, f: str, key: str, value: Any, run: Any, *, reads: bool = False
    ) -> Operation:
        def done(outcome: Outcome) -> None:
            if outcome.status == "ok":
                self._seen[key].append(None if f == "delete" else outcome.fields["revision"])
            elif "observed_revision" in outcome.fields:
                self._seen[key].append(outcome.fields["observed_revision"])

        return Operation(MODEL, f, key, value, run, reads=reads, done=done)
