"""What a run leaves behind while it goes on: the history of its clients, and what was done to it.

Both files use one clock, ``time.monotonic_ns()`` of this process.
"""

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from raftkv.check.history import Event, HistoryWriter
from raftkv.workloads.steps import Outcome

ENDS = ("ok", "condition not met", "refused", "unknown")
"""How operations end, as it is counted: a refusal and an unknown outcome are errors."""


def end_of(status: str, fields: Mapping[str, Any]) -> str:
    """Which of :data:`ENDS` it is; a history calls both a refusal and a condition ``fail``."""
    if status == "fail":
        return "refused" if "error" in fields else "condition not met"
    return "ok" if status == "ok" else "unknown"


class Recorder:
    """Writes down both ends of every operation. The lock guards the counts and the keys."""

    def __init__(
        self, history: HistoryWriter, clock_ns: Callable[[], int] = time.monotonic_ns
    ) -> None:
        self._history = history
        self._clock_ns = clock_ns
        self._lock = threading.Lock()
        self._keys: dict[str, dict[str, None]] = {}
        self.counts: Counter[str] = Counter()
        """How many operations ended in which of :data:`ENDS`."""
        self.under_way = 0
        self.under_way_max = 0
        """The most operations that were under way at one moment."""

    def process(self, number: int, **fields: Any) -> "ProcessRecorder":
        """What one process records; ``fields`` are more members of its invocations."""
        return ProcessRecorder(self, number, fields)

    def keys(self, model: str) -> list[str]:
        """The keys of a model of which an operation ended ``ok``."""
        with self._lock:
            return list(self._keys.get(model, ()))

    def begin(self, opened: "Opened", fields: Mapping[str, Any]) -> None:
        """An operation begins."""
        with self._lock:
            self.under_way += 1
            self.under_way_max = max(self.under_way_max, self.under_way)
        self._write(opened, "invoke", opened.value, fields)

    def end(self, opened: "Opened", status: str, value: Any, fields: Mapping[str, Any]) -> None:
        """An operation ends."""
        self._write(opened, status, value, fields)
        with self._lock:
            self.under_way -= 1
            self.counts[end_of(status, fields)] += 1
            if status == "ok":
                self._keys.setdefault(opened.model, {})[opened.key] = None

    def _write(self, opened: "Opened", kind: str, value: Any, more: Mapping[str, Any]) -> None:
        fields = {"model": opened.model, **more}
        event = Event(opened.process, kind, opened.f, opened.key, value, self._clock_ns(), fields)
        self._history.write(event)


class ProcessRecorder:
    """Writes down what one process does.

    Attributes:
        last: How its last operation ended: the status and the members of that event.
    """

    def __init__(self, recorder: Recorder, process: int, fields: Mapping[str, Any]) -> None:
        self._recorder = recorder
        self._process = process
        self._fields = fields
        self.last: tuple[str, Mapping[str, Any]] = ("", {})

    def begin(self, model: str, f: str, key: str, value: Any = None, **fields: Any) -> "Opened":
        """An operation begins."""
        opened = Opened(self, model, self._process, f, key, value=value)
        self._recorder.begin(opened, {**fields, **self._fields})
        return opened

    def end(self, opened: "Opened", status: str, value: Any, fields: Mapping[str, Any]) -> None:
        """It ends."""
        self.last = status, fields
        self._recorder.end(opened, status, value, fields)

    def keys(self, model: str) -> list[str]:
        """The keys of a model of which an operation of any process ended ``ok``."""
        return self._recorder.keys(model)


class Opened:
    """An operation that has begun."""

    def __init__(
        self, owner: ProcessRecorder, model: str, process: int, f: str, key: str, *, value: Any
    ) -> None:
        self._owner = owner
        self.model = model
        self.process = process
        self.f = f
        self.key = key
        self.value = value

    def ok(self, value: Any = None, **fields: Any) -> None:
        """It took effect."""
        self._owner.end(self, "ok", value, fields)

    def fail(self, **fields: Any) -> None:
        """It certainly did not."""
        self._owner.end(self, "fail", None, fields)

    def refused(self, why: str) -> None:
        """It was not tried, as the state of the store was against it; nothing is wrong."""
        self.fail(reason=why)

    def not_ok(self, outcome: Outcome) -> None:
        """It did not, or nobody knows. A condition that does not hold is no error."""
        if outcome.condition_failed:
            self.fail(
                reason="the condition does not hold", observed_revision=outcome.observed_revision
            )
        else:
            self._owner.end(self, outcome.status, None, {"error": outcome.detail})


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
