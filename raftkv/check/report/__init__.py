"""The report of a judged history: one self-contained HTML file."""

from raftkv.check.report.events import (
    EventsError,
    Fault,
    FaultEvent,
    LeaderEvent,
    RunEvent,
    read_events,
)
from raftkv.check.report.page import write_report

__all__ = [
    "EventsError",
    "Fault",
    "FaultEvent",
    "LeaderEvent",
    "RunEvent",
    "read_events",
    "write_report",
]
