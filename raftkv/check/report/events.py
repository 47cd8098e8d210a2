"""What happened to the cluster during a run: faults and leader changes, from ``events.jsonl``.

One JSON object a line, on the same clock as the history beside it::

    {"time_ns": 1, "kind": "fault", "f": "kill", "phase": "start", "id": 7, "target": "n2",
     "detail": "kill -9", "effective": null}
    {"time_ns": 9, "kind": "fault", "f": "kill", "phase": "stop", "id": 7, "target": "n2",
     "detail": "", "effective": true}
    {"time_ns": 5, "kind": "leader", "shard": 0, "node": "n1", "term": 3}

``id`` pairs the start of a fault with its stop. Lines of another ``kind`` are passed over, so that
a run may note more than this report knows.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

_T = TypeVar("_T")
Phase = Literal["start", "stop"]


class EventsError(ValueError):
    """The file is not what this module describes; one line that says where and why."""


@dataclass(frozen=True, slots=True)
class RunEvent:
    """Something that happened at ``time_ns``, on the clock of the history."""

    time_ns: int


@dataclass(frozen=True, slots=True)
class FaultEvent(RunEvent):
    """A fault of kind ``f`` starts or stops. ``effective``: was its effect seen (None: unknown)."""

    f: str
    phase: Phase
    id: int
    target: str = ""
    detail: str = ""
    effective: bool | None = None


@dataclass(frozen=True, slots=True)
class LeaderEvent(RunEvent):
    """From now on ``node`` leads ``shard`` in ``term``; a node of None: nobody does."""

    shard: int
    node: str | None
    term: int


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault from its start to its stop."""

    f: str
    target: str
    detail: str
    start_ns: int
    end_ns: int
    effective: bool | None


def read_events(path: Path) -> list[RunEvent]:
    """Read the events of a run.

    Raises:
        EventsError: A line cannot be read; the message names it.
        OSError: The file cannot be read.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise EventsError(f"{path}: not UTF-8 text: {error}") from error
    events: list[RunEvent] = []
    for number, line in enumerate(lines, start=1):
        try:
            events += _events(json.loads(line)) if line.strip() else []
        except (ValueError, RecursionError) as error:
            raise EventsError(f"{path}:{number}: {error}") from error
    return events


def faults_of(events: Iterable[RunEvent], *, start_ns: int, end_ns: int) -> list[Fault]:
    """Pair starts and stops, in the order of the starts.

    A fault whose stop was not noted lasts until ``end_ns``, one whose start was not noted began at
    ``start_ns``: either way the run was cut, and its report matters all the more.
    """
    pairs: dict[int, dict[Phase, FaultEvent]] = {}
    for event in events:
        if isinstance(event, FaultEvent):
            pairs.setdefault(event.id, {})[event.phase] = event
    faults = [_fault(pair, start_ns, end_ns) for pair in pairs.values()]
    return sorted(faults, key=lambda fault: fault.start_ns)


def leaders_of(events: Iterable[RunEvent]) -> dict[int, list[LeaderEvent]]:
    """Return each shard's leader changes in order; an observation of the same again is none."""
    shards: dict[int, list[LeaderEvent]] = {}
    leaders = (event for event in events if isinstance(event, LeaderEvent))
    for event in sorted(leaders, key=lambda event: event.time_ns):
        changes = shards.setdefault(event.shard, [])
        if not changes or (changes[-1].node, changes[-1].term) != (event.node, event.term):
            changes.append(event)
    return dict(sorted(shards.items()))


def _fault(pair: dict[Phase, FaultEvent], start_ns: int, end_ns: int) -> Fault:
    told = list(pair.values())
    begin, end = pair.get("start"), pair.get("stop")
    return Fault(
        f=told[0].f,
        target=next((event.target for event in told if event.target), ""),
        detail=", ".join(dict.fromkeys(event.detail for event in told if event.detail)),
        start_ns=begin.time_ns if begin else start_ns,
        end_ns=end.time_ns if end else end_ns,
        effective=_any_seen(told),
    )


def _any_seen(told: Sequence[FaultEvent]) -> bool | None:
    """Return whether an effect was seen: seen once is seen; unknown only if nobody could tell."""
    answers = {event.effective for event in told}
    return True if True in answers else False if False in answers else None


def _events(record: object) -> list[RunEvent]:
    """Return the event of one line, or nothing for a kind that is not known here."""
    if not isinstance(record, dict):
        raise EventsError("an event is a JSON object")
    kind = _member(record, "kind", str)
    if kind == "fault":
        return [_fault_event(record)]
    if kind == "leader":
        return [
            LeaderEvent(
                time_ns=_member(record, "time_ns", int),
                shard=_member(record, "shard", int),
                node=_optional(record, "node", str),
                term=_member(record, "term", int),
            )
        ]
    return []


def _fault_event(record: dict[str, Any]) -> FaultEvent:
    return FaultEvent(
        time_ns=_member(record, "time_ns", int),
        f=_member(record, "f", str),
        phase=_phase(record.get("phase")),
        id=_member(record, "id", int),
        target=_optional(record, "target", str) or "",
        detail=_optional(record, "detail", str) or "",
        effective=_optional(record, "effective", bool),
    )


def _phase(value: object) -> Phase:
    if value == "start":
        return "start"
    if value == "stop":
        return "stop"
    raise EventsError(f'"phase" must be "start" or "stop", and is {value!r:.60}')


def _optional(record: dict[str, Any], name: str, kind: type[_T]) -> _T | None:
    return None if record.get(name) is None else _member(record, name, kind)


def _member(record: dict[str, Any], name: str, kind: type[_T]) -> _T:
    value = record.get(name)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise EventsError(f'"{name}" must be of type {kind.__name__}, and is {value!r:.60}')
    return value
