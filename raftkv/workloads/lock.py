"""Locks made of single keys: put if absent to acquire, delete at that revision to release."""

from raftkv.client.types import Delete, Get, KeyValue, Put, PutResult
from raftkv.workloads.steps import Context, Pause, Process, Steps, Write, value_of

MODEL = "lock"
RELEASES_MAX = 3
HELD_S_MAX = 0.1
"""A lock that is given back at once shows little: whoever has it as well had it later, perhaps."""


def lock(process: Process, context: Context) -> Steps:
    """Take a lock by creating its key, and give it back by deleting that revision."""
    key = context.keys.take("lock", process.random)
    owner = value_of(process)
    opened = context.recorder.begin(MODEL, "acquire", key, owner=owner)
    outcome = yield Write(Put(key, owner, if_absent=True))
    if isinstance(outcome.answer, PutResult):
        opened.ok()
        yield Pause(process.random.uniform(0.0, HELD_S_MAX))
        yield from _release(context, key, owner, outcome.answer.revision)
    else:
        opened.not_ok(outcome)
        if outcome.status != "fail":  # or a lock that was taken all the same would stay taken
            yield from _release(context, key, owner, None)


def _release(context: Context, key: str, owner: str, revision: int | None) -> Steps:
    """Give it back; where that or holding it is not certain, look whether there is something to."""
    for _ in range(RELEASES_MAX):
        opened = context.recorder.begin(MODEL, "release", key, owner=owner)
        if revision is None:
            seen = yield Get(key)
            if not seen.is_ok:
                opened.not_ok(seen)
                continue
            entry = seen.answer
            if not isinstance(entry, KeyValue) or entry.value != owner.encode():
                opened.refused("not held")
                return
            revision = entry.revision
        outcome = yield Write(Delete(key, if_revision=revision))
        if outcome.is_ok:
            opened.ok()
            return
        opened.not_ok(outcome)
        revision = None
