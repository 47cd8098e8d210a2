"""What a history may claim of an operation that ended with an error."""

import itertools
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from memory_store import MemoryStore

from raftkv.chaos.operation import Operation, Outcome, ok, outcome_of, perform, refused
from raftkv.chaos.recorder import EventLog, Recorder
from raftkv.chaos.store import Store
from raftkv.check.history import HistoryWriter, read_history
from raftkv.check.report import FaultEvent, LeaderEvent, read_events
from raftkv.client import (
    AccessError,
    BusyError,
    DiskFullError,
    PreconditionFailedError,
    RaftkvError,
    ServerError,
    UnavailableError,
    UnknownOutcomeError,
)


def raising(error: Exception) -> Callable[[Store], Outcome]:
    """An operation's body that only fails."""

    def run(_store: Store) -> Outcome:
        raise error

    return run


@pytest.mark.parametrize("kind", [UnavailableError, BusyError, DiskFullError, AccessError])
def test_a_definite_error_is_a_failure(kind: type[RaftkvError]) -> None:
    """It was not applied and never will be."""
    outcome = outcome_of(kind("no"), reads=False)
    assert (outcome.status, outcome.is_error) == ("fail", True)


@pytest.mark.parametrize("error", [UnknownOutcomeError("lost"), RaftkvError("anything else")])
def test_whatever_is_not_definite_is_unknown(error: RaftkvError) -> None:
    """It may have been applied, or may still be."""
    assert outcome_of(error, reads=False).status == "info"


def test_a_failed_read_is_definite() -> None:
    """It changes nothing, whatever became of it."""
    assert outcome_of(UnknownOutcomeError("lost"), reads=True).status == "fail"


@pytest.mark.parametrize("revision", [17, None])
def test_a_failed_condition_is_an_observation_and_no_error(revision: int | None) -> None:
    """The refusal says what the key was at that moment."""
    error = PreconditionFailedError("no", current_revision=revision)
    outcome = outcome_of(error, reads=False)
    assert (outcome.status, outcome.is_error) == ("fail", False)
    assert outcome.fields["observed_revision"] == revision


def test_what_a_store_may_not_raise_is_not_taken_for_an_outcome() -> None:
    """A mistake of the harness must be seen, not recorded as a failure of the store."""
    operation = Operation("register", "write", "k", 1, raising(KeyError("bug")))
    with pytest.raises(KeyError):
        perform(operation, MemoryStore())


def test_the_workload_hears_how_its_operation_ended() -> None:
    """Also of one that failed."""
    heard: list[Outcome] = []
    failing = raising(ServerError("broken"))
    perform(Operation("set", "add", "k", 1, failing, done=heard.append), MemoryStore())
    assert [outcome.status for outcome in heard] == ["fail"]


def test_a_history_has_both_ends_of_every_operation(tmp_path: Path) -> None:
    """With the workload's model, further members, and times in order."""
    file, ticks = tmp_path / "history.jsonl", itertools.count(100)
    with HistoryWriter(file) as history:
        recorder = Recorder(history, clock_ns=lambda: next(ticks))
        recorder.perform(
            3,
            Operation(
                "lock", "acquire", "k", None, lambda _: ok(revision=9), fields={"owner": "a"}
            ),
            MemoryStore(),
        )
        recorder.perform(
            3, Operation("set", "add", "k", 1, raising(UnknownOutcomeError("lost"))), MemoryStore()
        )
    acquired, added = read_history(file)
    assert (acquired.invoked_ns, acquired.completed_ns, acquired.status) == (100, 101, "ok")
    assert acquired.fields == {"model": "lock", "owner": "a", "revision": 9}
    assert (added.status, added.completed_ns) == ("info", None)
    assert recorder.counts == {"ok": 1, "unknown": 1}


@pytest.mark.parametrize(
    ("outcome", "end"),
    [
        (ok(), "ok"),
        (refused("the condition does not hold"), "condition not met"),
        (refused("the account is empty", owner="a"), "condition not met"),
        (outcome_of(BusyError("too much"), reads=False), "refused"),
        (outcome_of(UnknownOutcomeError("lost"), reads=True), "refused"),
        (outcome_of(UnknownOutcomeError("lost"), reads=False), "unknown"),
    ],
)
def test_what_a_condition_explains_is_counted_apart(
    tmp_path: Path, outcome: Outcome, end: str
) -> None:
    """A history calls both ``fail``; only a refusal says something of the system under test."""
    with HistoryWriter(tmp_path / "history.jsonl") as history:
        recorder = Recorder(history)
        recorder.perform(1, Operation("set", "add", "k", 1, lambda _: outcome), MemoryStore())
    assert recorder.counts == {end: 1}


def test_the_event_log_is_what_the_report_reads(tmp_path: Path) -> None:
    """Faults with both ends and whether they were seen; leaders with their terms."""
    file, ticks = tmp_path / "events.jsonl", itertools.count(100)
    with EventLog(file, clock_ns=lambda: next(ticks)) as events:
        fault = events.fault_started("kill", "n1", "one", began_ns=50)
        assert list(events.running.values()) == ["kill n1"]
        events.leader(2, "n3", 7)
        events.fault_stopped(fault, "one", effective=True)
    assert (events.started, events.effective, events.running) == ({"kill": 1}, {"kill": 1}, {})
    began, led, ended = read_events(file)
    assert isinstance(began, FaultEvent)
    assert isinstance(ended, FaultEvent)
    assert isinstance(led, LeaderEvent)
    assert began.time_ns == 50
    assert [json.loads(line)["time_ns"] for line in file.read_text().splitlines()] == [50, 100, 101]
