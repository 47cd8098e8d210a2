"""Shorter ways that are taken for what comes often do what the general way does.

Each has a comment that begins with ``Fast path of`` and names what it is equal to. Here the general
way is written out in its place, and any history must give the same answers, digests and snapshot.
"""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from test_state_machine_model import GENERATION, HISTORIES, LIMITS, owns

import raftkv.core.shard
from raftkv.core.operations import Batch, KeyValue, Put, PutResult, Refused, WriteResult
from raftkv.core.shard.changes import Change
from raftkv.core.shard.keyspace import Keyspace
from raftkv.core.shard.machine import CLOCK_US_MAX, StateMachine


class ByApply(StateMachine):
    """Every command goes the way of those that are rare."""

    __slots__ = ()

    def apply(self, batch: Batch, changes: list[Change] | None = None) -> list[WriteResult]:
        """Apply one command after another."""
        if batch.generation != self.generation:
            return [Refused("moved")] * len(batch.commands)
        self._floor, self._format = min(batch.clock_us, CLOCK_US_MAX), batch.format
        self.keyspace.changes = changes
        return [self._apply(command) for command in batch.commands]


class ByNextRevision(StateMachine):
    """A put gets its revision where all others get theirs."""

    __slots__ = ()

    def _put_over(self, put: Put, old: KeyValue | None) -> PutResult | Refused:
        if (put.if_absent and old is not None) or (
            put.if_revision is not None and (old is None or old.mod_revision != put.if_revision)
        ):
            return Refused("precondition", None if old is None else old.mod_revision)
        self.last_revision = self._next_revision()
        return PutResult(self.last_revision, self._put_entry(put, old, self.last_revision))


class DropAndAdd(Keyspace):
    """An overwritten key goes, and comes back."""

    __slots__ = ()

    def put(self, put: Put, old: KeyValue | None, revision: int) -> int:
        """Take the old entry out of everything, and the new one in."""
        entry = KeyValue(put.key, put.value, revision, revision, 1)
        if old is not None:
            entry = KeyValue(put.key, put.value, old.create_revision, revision, old.version + 1)
            self._drop(old)
        self._add(entry)
        if self.changes is not None:
            self.changes.append(Change(put.key, revision, old, entry))
        return entry.version


class ByDropAndAdd(StateMachine):
    """A state whose keyspace knows one way of changing."""

    __slots__ = ()

    def __init__(self) -> None:
        super().__init__(GENERATION, owns, LIMITS)
        self.keyspace = DropAndAdd()
        self._find, self._put_entry = self.keyspace.find, self.keyspace.put


class BySections(StateMachine):
    """The digest is asked of one section after another."""

    __slots__ = ()

    @property
    def digest(self) -> int:
        """Of whatever sections there are."""
        return self._digest_of(section.hash for section in self.sections)


GENERAL: dict[str, Callable[[], StateMachine]] = {
    "_apply": lambda: ByApply(GENERATION, owns, LIMITS),
    "_next_revision": lambda: ByNextRevision(GENERATION, owns, LIMITS),
    "_drop": ByDropAndAdd,
    "_digest_of": lambda: BySections(GENERATION, owns, LIMITS),
}
"""States that go the general way, by the first name that the comment says."""


@pytest.mark.parametrize("name", GENERAL)
@settings(max_examples=60, deadline=None)
@given(history=HISTORIES)
def test_a_fast_path_does_what_the_general_way_does(name: str, history: list[Batch]) -> None:
    """Answers, changes, digest after every batch, and the snapshot in the end."""
    fast, general = StateMachine(GENERATION, owns, LIMITS), GENERAL[name]()
    changes: list[Change] = []
    general_changes: list[Change] = []
    for batch in history:
        assert fast.apply(batch, changes) == general.apply(batch, general_changes)
        assert fast.digest == general.digest
    assert changes == general_changes
    assert fast.bytes_total == general.bytes_total
    assert list(fast.snapshot_records()) == list(general.snapshot_records())


def test_every_fast_path_is_tested() -> None:
    """The comments are the list."""
    files = Path(raftkv.core.shard.__file__).parent.glob("*.py")
    marked = [
        name for file in files for name in re.findall(r"# Fast path of `(\w+)`", file.read_text())
    ]
    assert sorted(marked) == sorted(GENERAL)
