"""What is kept of one run: the clients' history and the faults, judged, as after a run of chaos.

::

    DIR/history.jsonl   what the clients asked and were told, in simulated time
    DIR/events.jsonl    the faults, by the same clock
    DIR/report.html     all of it to look at
    DIR/again           the command that makes this run again
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from raftkv.check.checker import check_mixed
from raftkv.check.event import Event
from raftkv.check.history import HistoryWriter, read_history
from raftkv.check.models import MODELS
from raftkv.check.report import FaultEvent, write_report
from raftkv.sim.operator import BegunFault
from raftkv.sim.recorder import NS_PER_US
from raftkv.sim.run import Record

CHECK_BUDGET_S = 60.0


def archive(
    record: Record, directory: Path, *, title: str, command: str, findings: Sequence[str] = ()
) -> Path:
    """Write everything into ``directory``, which is there, and return the report's path.

    Args:
        record: Of the run.
        directory: Where to.
        title: What was run.
        command: That runs it again.
        findings: What was wrong, a line each.

    Raises:
        OSError: Something cannot be written.
        HistoryError: The histories cannot be judged: a client was told what no client may be.
    """
    (directory / "again").write_text(command + "\n", encoding="utf-8")
    history = directory / "history.jsonl"
    with HistoryWriter(history) as writer:
        for event in _events(record):
            writer.write(event)
    faults = [event for fault in record.faults for event in _fault_events(fault)]
    lines = [json.dumps({"kind": "fault", **asdict(fault)}) + "\n" for fault in faults]
    (directory / "events.jsonl").write_text("".join(lines), encoding="utf-8")
    operations = read_history(history)
    write_report(
        directory / "report.html",
        operations,
        check_mixed(operations, MODELS["register"], budget_s=CHECK_BUDGET_S),
        events=faults,
        title=title,
        facts={"run again": command},
        findings=findings,
    )
    return directory / "report.html"


def _events(record: Record) -> list[Event]:
    """The histories of all models as one."""
    events = [
        replace(event, fields={**event.fields, "model": model})
        for model, found in record.events.items()
        for event in found
    ]
    return sorted(events, key=lambda event: event.time_ns)


def _fault_events(fault: BegunFault) -> Iterator[FaultEvent]:
    """Its begin, and its end if it came to that."""
    planned, seen = fault.planned, fault.effect.times > 0
    begun = FaultEvent(
        time_ns=fault.begun_us * NS_PER_US,
        f=planned.kind,
        phase="start",
        id=planned.number,
        detail="" if planned.burst is None else f"burst {planned.burst}",
        effective=seen,
    )
    yield begun
    if fault.ended_us is not None:
        yield replace(begun, time_ns=fault.ended_us * NS_PER_US, phase="stop")
