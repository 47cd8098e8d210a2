"""events.jsonl: what is read from it, what is refused, and how starts and stops are paired."""

import json
from pathlib import Path

import pytest

from raftkv.check.report import EventsError, FaultEvent, LeaderEvent, read_events
from raftkv.check.report.events import faults_of, leaders_of

START = {
    "time_ns": 5,
    "kind": "fault",
    "f": "kill",
    "phase": "start",
    "id": 7,
    "target": "n2",
    "detail": "kill -9",
    "effective": None,
}
LEADER = {"time_ns": 9, "kind": "leader", "shard": 3, "node": "n1", "term": 4}


def written(directory: Path, *records: object) -> Path:
    """Write events as a run does."""
    path = directory / "events.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def fault(
    time_ns: int, phase: str, number: int = 0, *, effective: bool | None = None
) -> FaultEvent:
    """Return the start or the stop of a pause."""
    return FaultEvent(
        time_ns, "pause", "start" if phase == "start" else "stop", number, "n1", phase, effective
    )


def test_faults_and_leaders_are_read(tmp_path: Path) -> None:
    """Every member of an event comes through."""
    nobody = {**LEADER, "node": None}
    assert read_events(written(tmp_path, START, LEADER, nobody)) == [
        FaultEvent(5, "kill", "start", 7, "n2", "kill -9", None),
        LeaderEvent(9, 3, "n1", 4),
        LeaderEvent(9, 3, None, 4),
    ]


def test_other_kinds_and_empty_lines_are_passed_over(tmp_path: Path) -> None:
    """A run may note more than the report knows."""
    path = written(tmp_path, {"kind": "note", "time_ns": 1, "text": "warm"}, LEADER)
    path.write_text("\n" + path.read_text(encoding="utf-8") + "\n", encoding="utf-8")
    assert len(read_events(path)) == 1


def test_a_separator_inside_a_text_does_not_split_a_line(tmp_path: Path) -> None:
    """JSON allows U+2028 in strings; only a newline ends a line of the file."""
    path = tmp_path / "events.jsonl"
    record = json.dumps({**START, "detail": "a\u2028b"}, ensure_ascii=False)
    path.write_text(record + "\n", encoding="utf-8")
    (event,) = read_events(path)
    assert isinstance(event, FaultEvent)
    assert event.detail == "a\u2028b"


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({**START, "time_ns": "5"}, '"time_ns" must be of type int'),
        ({**START, "id": True}, '"id" must be of type int'),
        ({**START, "phase": "middle"}, '"phase" must be "start" or "stop"'),
        ({**START, "effective": 1}, '"effective" must be of type bool'),
        ({**LEADER, "node": 1}, '"node" must be of type str'),
        ({"time_ns": 1}, '"kind" must be of type str'),
        ([1], "an event is a JSON object"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, record: object, reason: str) -> None:
    """The error says file, line and member, on one line."""
    path = written(tmp_path, LEADER, record)
    with pytest.raises(EventsError) as caught:
        read_events(path)
    assert f"{path}:2: {reason}" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_torn_line_and_a_wrong_encoding_are_named(tmp_path: Path) -> None:
    """Neither is taken for an event, nor passed over."""
    path = tmp_path / "events.jsonl"
    path.write_text('{"kind": "lea', encoding="utf-8")
    with pytest.raises(EventsError, match=r"events.jsonl:1: "):
        read_events(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(EventsError, match="not UTF-8"):
        read_events(path)


def test_starts_and_stops_are_paired_by_id() -> None:
    """Two faults of one kind at once stay two."""
    events = [fault(1, "start", 1), fault(2, "start", 2), fault(5, "stop", 1), fault(9, "stop", 2)]
    faults = faults_of(events, start_ns=0, end_ns=10)
    assert [(f.start_ns, f.end_ns) for f in faults] == [(1, 5), (2, 9)]
    assert faults[0].detail == "start, stop"


def test_a_run_that_was_cut_leaves_no_fault_out() -> None:
    """Without its stop a fault lasts to the end, without its start it began with the run."""
    cut = faults_of([fault(4, "start", 1), fault(3, "stop", 2)], start_ns=0, end_ns=10)
    assert [(f.start_ns, f.end_ns) for f in cut] == [(0, 3), (4, 10)]


@pytest.mark.parametrize(
    ("told", "seen"),
    [((None, True), True), ((True, False), True), ((None, False), False), ((None, None), None)],
)
def test_an_effect_seen_once_was_seen(
    told: tuple[bool | None, bool | None], *, seen: bool | None
) -> None:
    """Whichever of start and stop tells it; and nobody's word is not a no."""
    events = [fault(1, "start", effective=told[0]), fault(2, "stop", effective=told[1])]
    assert faults_of(events, start_ns=0, end_ns=9)[0].effective is seen


def test_a_leader_seen_again_is_no_change() -> None:
    """Polling tells the same many times; a new term of the same node is a change."""
    told = [(1, "n1", 1), (2, "n1", 1), (3, "n1", 2), (4, None, 2), (5, None, 2)]
    events = [LeaderEvent(at, 0, node, term) for at, node, term in reversed(told)]
    assert [change.time_ns for change in leaders_of(events)[0]] == [1, 3, 4]
