"""Locks made of single keys: put if absent to acquire, delete at that revision to release."""

import itertools
from dataclasses import dataclass
from random import Random
from typing import Literal

from raftkv.chaos.operation import Operation, Outcome, ok, refused
from raftkv.chaos.store import Store
from raftkv.chaos.workloads.keys import KeyRotation

MODEL = "lock"
_NOT_HELD = "not held"


@dataclass(slots=True)
class _Claim:
    """What one process knows of the lock that it wants; ``unsure`` after an unknown outcome."""

    key: str
    owner: str
    state: Literal["held", "unsure"]


class LockWorkload:
    """Several hot locks; each attempt to acquire one is an owner of its own."""

    def __init__(self, random: Random, active: int) -> None:
        self._keys = KeyRotation("lock/", active, random)
        self._owners = itertools.count(1)
        self._claims: dict[int, _Claim] = {}

    def next(self, process: int, random: Random) -> Operation:
        """Release what this process holds or may hold, else acquire something."""
        claim = self._claims.get(process)
        if claim is not None:
            return self._release(process, claim)
        return self._acquire(process, self._keys.take(random))

    def final_reads(self) -> list[Operation]:
        """None: what a lock promises is seen while it is fought for."""
        return []

    def _acquire(self, process: int, key: str) -> Operation:
        owner = f"{process}-{next(self._owners)}"

        def run(store: Store) -> Outcome:
            return ok(revision=store.put(key, owner, if_absent=True).revision)

        def done(outcome: Outcome) -> None:
            if outcome.status != "fail":
                state: Literal["held", "unsure"] = "held" if outcome.status == "ok" else "unsure"
                self._claims[process] = _Claim(key, owner, state)

        return Operation(MODEL, "acquire", key, None, run, fields={"owner": owner}, done=done)

    def _release(self, process: int, claim: _Claim) -> Operation:
        def run(store: Store) -> Outcome:
            entry = store.get(claim.key)
            if entry is None or entry.value != claim.owner.encode():
                return refused(_NOT_HELD)
            return ok(deleted=store.delete(claim.key, if_revision=entry.revision).deleted)

        def done(outcome: Outcome) -> None:
            # After an unknown outcome it is looked at again, and released if it is still held.
            if outcome.status == "info":
                claim.state = "unsure"
            elif outcome.status == "ok" or outcome.fields.get("reason") == _NOT_HELD:
                self._claims.pop(process, None)

        return Operation(
            MODEL, "release", claim.key, None, run, fields={"owner": claim.owner}, done=done
        )
