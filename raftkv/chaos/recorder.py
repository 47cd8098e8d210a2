"""What a run leaves behind while it goes on: the history of its clients, and what was done to it.

Both files use one clock, ``time.monotonic_ns()`` of this process.
"""

import json
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from raftkv.chaos.operation import Operation, Outcome, perform
from raftkv.chaos.store import Store
from raftkv.check.history import Event, HistoryWriter


class Recorder:
    """Performs operations and writes down both ends of each. The lock guards the counts."""

    def __init__(
        self, history: HistoryWriter, clock_ns: Callable[[], int] = time.monotonic_ns
    ) -> None:
        self._history = history
        self._clock_ns = clock_ns
        self._lock = threading.Lock()
        self.counts: Counter[str] = Counter()
        """How many operations ended in which of :data:`~raftkv.chaos.operation.ENDS`."""
        self.under_way = 0
        self.under_way_max = 0
        """The most operations that were under way at one moment."""

    def perform(self, process: int, operation: Operation, store: Store, **fields: Any) -> Outcome:
        """Perform one operation of a process; ``fields`` are more members of its invocation."""
        with self._lock:
            self.under_way += 1
            self.under_way_max = max(self.under_way_max, self.under_way)
        self._write(process, "invoke", operation, operation.value, {**operation.fields, **fields})
        outcome = perform(operation, store)
        self._write(process, outcome.status, operation, outcome.value, outcome.fields)
        with self._lock:
            self.under_way -= 1
            self.counts[outcome.end] += 1
        return outcome

    def _write(self, process: int, kind: str, operation: Operation, value: Any, more: Any) -> None:
        fields = {"model": operation.model, **more}
        event = Event(process, kind, operation.f, operation.key, value, self._clock_ns(), fields)
        self._history.write(event)


@dataclass(frozen=True, slots=True)
class RunningFault:
    """A fault that was begun; ``id`` pairs its two events."""

    id: int
    kind: str
    target: str


class EventLog:
    """``events.jsonl``: faults and changes of leaders. The lock guards the file and the counts."""

    def __init__(self, path: Path, clock_ns: Callable[[], int] = time.monotonic_ns) -> None:
        self._file = path.open("w", encoding="utf-8")
        self._clock_ns = clock_ns
        self._lock = threading.Lock()
        self._next_id = 1
        self.started: Counter[str] = Counter()
        """Faults by kind that were begun."""
        self.effective: Counter[str] = Counter()
        """Those of them whose effect was seen."""
        self.running: dict[int, str] = {}
        """What goes on now, by id."""
        self.leader_changes = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()

    def fault_started(self, kind: str, target: str, detail: str, began_ns: int) -> RunningFault:
        """Write that a fault has begun, at a time by the clock of this log."""
        with self._lock:
            fault = RunningFault(self._next_id, kind, target)
            self._next_id += 1
            self.started[kind] += 1
            self.running[fault.id] = f"{kind} {target}"
            self._fault(fault, "start", detail, effective=None, time_ns=began_ns)
            return fault

    def fault_stopped(self, fault: RunningFault, detail: str, *, effective: bool) -> None:
        """Write that a fault is over, and whether its effect was seen."""
        with self._lock:
            self.running.pop(fault.id, None)
            self.effective[fault.kind] += effective
            self._fault(fault, "stop", detail, effective=effective)

    def leader(self, shard: int, node: str | None, term: int) -> None:
        """Write that a shard has another leader, or none."""
        with self._lock:
            self.leader_changes += 1
            self._write(
                {
                    "time_ns": self._clock_ns(),
                    "kind": "leader",
                    "shard": shard,
                    "node": node,
                    "term": term,
                }
            )

    def _fault(
        self,
        fault: RunningFault,
        phase: str,
        detail: str,
        *,
        effective: bool | None,
        time_ns: int | None = None,
    ) -> None:
        self._write(
            {
                "time_ns": self._clock_ns() if time_ns is None else time_ns,
                "kind": "fault",
                "f": fault.kind,
                "phase": phase,
                "id": fault.id,
                "target": fault.target,
                "detail": detail,
                "effective": effective,
            }
        )

    def _write(self, event: dict[str, Any]) -> None:
        if not self._file.closed:
            self._file.write(json.dumps(event) + "\n")
            self._file.flush()
