"""What a history may claim of an operation that ended with an error."""

import itertools
import json
from pathlib import Path
from typing import NoReturn

import pytest

from raftkv.chaos.errors import ChaosError
from raftkv.chaos.play import outcome_of, play
from raftkv.chaos.recorder import EventLog, Recorder, end_of
from raftkv.check.history import HistoryWriter, read_history
from raftkv.check.report import FaultEvent, LeaderEvent, read_events
from raftkv.client import (
    AccessError,
    BusyError,
    DiskFullError,
    Get,
    PreconditionFailedError,
    Put,
    RaftkvError,
    ServerError,
    UnavailableError,
    UnknownOutcomeError,
)
from raftkv.workloads.steps import Ask, Batch, Outcome, Span, StaleGet, Steps, Txn, Write
from tests.chaos.memory_store import MemoryStore


@pytest.mark.parametrize("kind", [UnavailableError, BusyError, DiskFullError, AccessError])
def test_a_definite_error_is_a_failure(kind: type[RaftkvError]) -> None:
    """It was not applied and never will be."""
    outcome = outcome_of(kind("no"), reads=False)
    assert (outcome.status, outcome.condition_failed) == ("fail", False)


@pytest.mark.parametrize("error", [UnknownOutcomeError("lost"), RaftkvError("anything else")])
def test_whatever_is_not_definite_is_unknown(error: RaftkvError) -> None:
    """It may have been applied, or may still be."""
    assert outcome_of(error, reads=False).status == "info"


def test_a_failed_read_is_definite() -> None:
    """It changes nothing, whatever became of it."""
    assert outcome_of(UnknownOutcomeError("lost"), reads=True).status == "fail"


@pytest.mark.parametrize("revision", [17, None])
def test_a_failed_condition_is_an_observation_and_no_error(
    revision: int | None, tmp_path: Path
) -> None:
    """The refusal says what the key was at that moment."""
    error = PreconditionFailedError("no", current_revision=revision)
    outcome = outcome_of(error, reads=False)
    assert (outcome.status, outcome.condition_failed) == ("fail", True)
    assert outcome.observed_revision == revision
    with HistoryWriter(tmp_path / "history.jsonl") as history:
        recorder = Recorder(history)
        recorder.process(0).begin("register", "cas", "k", {}).not_ok(outcome)
    assert recorder.counts == {"condition not met": 1}


class Raising(MemoryStore):
    """A store whose writes only fail."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self._error = error

    def put(self, *_: object, **__: object) -> NoReturn:
        """Fail."""
        raise self._error


def asking(told: list[Outcome]) -> Steps:
    """A workload that writes a key and keeps what it is told."""
    told.append((yield Write(Put("k", b"v"))))


def test_what_a_store_may_not_raise_is_not_taken_for_an_outcome() -> None:
    """A mistake of the harness must be seen, not recorded as a failure of the store."""
    with pytest.raises(KeyError):
        play(asking([]), Raising(KeyError("bug")))


def test_the_workload_hears_how_its_operation_ended() -> None:
    """Also of one that failed."""
    heard: list[Outcome] = []
    play(asking(heard), Raising(ServerError("broken")))
    assert [outcome.status for outcome in heard] == ["fail"]


@pytest.mark.parametrize(
    "ask", [Batch([Get("k")]), Write(Txn((), (Span(b"a", b"b", 1),))), StaleGet("k", None)]
)
def test_what_not_every_store_has_is_not_asked_of_any(ask: Ask) -> None:
    """A workload that does is a mistake of the harness."""

    def asking_too_much() -> Steps:
        yield ask

    with pytest.raises(ChaosError, match="not every store has"):
        play(asking_too_much(), MemoryStore())


def test_a_history_has_both_ends_of_every_operation(tmp_path: Path) -> None:
    """With the workload's model, further members, and times in order."""
    file, ticks = tmp_path / "history.jsonl", itertools.count(100)
    with HistoryWriter(file) as history:
        recorder = Recorder(history, clock_ns=lambda: next(ticks))
        process = recorder.process(3)
        process.begin("lock", "acquire", "k", owner="a").ok(revision=9)
        lost = outcome_of(UnknownOutcomeError("lost"), reads=False)
        process.begin("set", "add", "k", 1).not_ok(lost)
    acquired, added = read_history(file)
    assert (acquired.invoked_ns, acquired.completed_ns, acquired.status) == (100, 101, "ok")
    assert acquired.fields == {"model": "lock", "owner": "a", "revision": 9}
    assert (added.status, added.completed_ns) == ("info", None)
    assert recorder.counts == {"ok": 1, "unknown": 1}
    assert process.last == ("info", {"error": "UnknownOutcomeError: lost"})
    assert (recorder.keys("lock"), recorder.keys("set")) == (["k"], []), "of those that ended ok"


@pytest.mark.parametrize(
    ("status", "fields", "end"),
    [
        ("ok", {}, "ok"),
        ("fail", {}, "condition not met"),
        ("fail", {"error": "BusyError: too much"}, "refused"),
        ("info", {"error": "UnknownOutcomeError: lost"}, "unknown"),
    ],
)
def test_what_a_condition_explains_is_counted_apart(
    status: str, fields: dict[str, str], end: str
) -> None:
    """A history calls both ``fail``; only a refusal says something of the system under test."""
    assert end_of(status, fields) == end


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
