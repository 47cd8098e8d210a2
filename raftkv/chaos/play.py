"""Drives a workload by a thread that waits for a store, and says what each answer allows to claim.

The rule: an error that is definite means ``fail``, a success means ``ok``, and everything else
(a lost answer, a time-out, an error that nobody expected) means ``info``: it may have taken effect
or may still do so.
"""

import time

from raftkv.chaos.errors import ChaosError
from raftkv.chaos.store import Store
from raftkv.client import Delete, Get, PreconditionFailedError, Put, RaftkvError, RangeResult
from raftkv.client.errors import DefiniteError
from raftkv.workloads.steps import Answer, Ask, Outcome, Pause, Scan, Steps, Txn, Write

ERROR_CHARS_MAX = 200


def play(steps: Steps, store: Store) -> None:
    """Go through a workload's steps; raises nothing that a store may raise."""
    try:
        ask = next(steps)
        while True:
            ask = steps.send(asked(ask, store))
    except StopIteration:
        return


def outcome_of(error: RaftkvError, *, reads: bool) -> Outcome:
    """What an error allows to be said of the operation that it ended."""
    detail = f"{type(error).__name__}: {error}"[:ERROR_CHARS_MAX]
    if isinstance(error, PreconditionFailedError):
        revision = error.current_revision
        return Outcome("fail", detail=detail, condition_failed=True, observed_revision=revision)
    definite = reads or isinstance(error, DefiniteError)
    return Outcome("fail" if definite else "info", detail=detail)


def asked(ask: Ask, store: Store) -> Outcome:
    """Take one step, and say what came of it."""
    try:
        return Outcome("ok", _answer(ask, store))
    except RaftkvError as error:
        return outcome_of(error, reads=not isinstance(ask, Write))


def _answer(ask: Ask, store: Store) -> Answer:
    match ask:
        case Pause(seconds):
            time.sleep(seconds)
            return None
        case Get(key):
            return store.get(key)
        case Scan(prefix):
            return RangeResult(tuple(store.scan(prefix)), more=False)
        case Write(Put(key, value, if_revision, if_absent)):
            return store.put(key, value, if_revision=if_revision, if_absent=if_absent)
        case Write(Delete(key, if_revision)):
            return store.delete(key, if_revision=if_revision)
        case Write(Txn(compare, then, otherwise)):
            return store.txn(compare, _plain(then), _plain(otherwise))
    raise ChaosError(f"a workload asked for what not every store has: {type(ask).__name__}")


def _plain(parts: tuple[object, ...]) -> list[Put | Delete | Get]:
    plain = [part for part in parts if isinstance(part, Put | Delete | Get)]
    if len(plain) < len(parts):
        raise ChaosError("a workload asked for a range in a transaction, which not every store has")
    return plain
