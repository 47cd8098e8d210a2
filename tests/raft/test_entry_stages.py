"""Where the time of a write goes: stamps per entry, in order, and none for what is lost."""

from raftkv.raft.stages import EntryStages, StageDurations


class Clock:
    """Time that the test moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        """Return it."""
        return self.now

    def boottime(self) -> float:
        """Return it."""
        return self.now

    def time_us(self) -> int:
        """Return it as microseconds."""
        return int(self.now * 1e6)


def _stages() -> tuple[Clock, StageDurations, EntryStages]:
    clock, durations = Clock(), StageDurations()
    return clock, durations, EntryStages(clock, durations)


def test_an_entrys_way() -> None:
    """Each stage is measured from where it begins; the disk works beside the followers."""
    clock, durations, stages = _stages()
    clock.now = 1.0
    stages.proposed(5, 2, offered=0.75)
    clock.now = 1.5
    stages.durable(5)
    clock.now = 3.0
    entry = stages.reached(5, 2)
    assert entry is not None
    clock.now = 3.25
    stages.applied(entry)
    assert entry.seconds() == {"queue": 0.25, "wal": 0.5, "replication": 2.0, "apply": 0.25}
    assert all(sum(counts.histogram().counts) == 1 for counts in durations.by_stage.values())
    assert not stages.following


def test_a_majority_without_this_disk() -> None:
    """An entry may be committed before the leader's own disk has it: then that stage is open."""
    _, durations, stages = _stages()
    stages.proposed(5, 2, offered=0.0)
    entry = stages.reached(5, 2)
    assert entry is not None
    stages.applied(entry)
    assert "wal" not in entry.seconds()
    assert sum(durations.by_stage["wal"].histogram().counts) == 0


def test_lost_entries_are_not_counted() -> None:
    """What another leader's entry replaced, or the end of a leadership left behind, is no time."""
    _, durations, stages = _stages()
    stages.proposed(5, 2, offered=0.0)
    stages.proposed(6, 2, offered=0.0)
    assert stages.reached(5, 3) is None
    assert [entry.index for entry in stages.following] == [6]
    stages.forget()
    assert stages.reached(6, 2) is None
    assert sum(durations.by_stage["queue"].histogram().counts) == 0


def test_a_writes_own_entry() -> None:
    """Of entries applied together a write's is the first that was proposed after it came."""
    clock, _, stages = _stages()
    for index in (5, 6):
        clock.now += 1
        stages.proposed(index, 2, offered=clock.now)
    for index in (5, 6):
        entry = stages.reached(index, 2)
        assert entry is not None
        stages.applied(entry)
    found = stages.of_write(1.5)
    assert found is not None
    assert found.index == 6
    assert stages.of_write(2.5) is None
