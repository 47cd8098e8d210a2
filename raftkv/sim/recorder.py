"""Writes down what clients ask and are told, one history for each model."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from raftkv.check.event import FAIL, INFO, INVOKE, OK, Event
from raftkv.workloads.steps import Outcome

NS_PER_US = 1000


class Recorder:
    """Histories by the name of the model that judges them.

    Every operation is a process of its own: one of unknown outcome stays open for ever.
    """

    def __init__(self, now_us: Callable[[], int], note: Callable[..., None]) -> None:
        self.events: dict[str, list[Event]] = {}
        self.counts: dict[str, int] = {OK: 0, FAIL: 0, INFO: 0}
        self._now_us = now_us
        self._note = note
        self._process = 0

    @property
    def operations(self) -> int:
        """How many operations have ended."""
        return sum(self.counts.values())

    def keys(self, model: str) -> Iterable[str]:
        """The keys of a model's operations so far, each once, in their order."""
        events = self.events.get(model, ())
        return dict.fromkeys(event.key for event in events if event.key is not None)

    def begin(self, model: str, f: str, key: str, value: Any = None, **fields: Any) -> "Open":
        """An operation begins."""
        self._process += 1
        opened = Open(self, model, self._process, f, key, value=value)
        self._write(opened, INVOKE, value, fields)
        return opened

    def end(self, opened: "Open", status: str, value: Any, fields: Mapping[str, Any]) -> None:
        """An operation ends."""
        self.counts[status] += 1
        self._write(opened, status, value, fields)

    def _write(self, opened: "Open", kind: str, value: Any, fields: Mapping[str, Any]) -> None:
        event = Event(
            opened.process, kind, opened.f, opened.key, value, self._now_us() * NS_PER_US, fields
        )
        self.events.setdefault(opened.model, []).append(event)
        self._note(kind, opened.process, opened.f, opened.key, value, *fields.items())


class Open:
    """An operation that has begun."""

    def __init__(
        self, recorder: Recorder, model: str, process: int, f: str, key: str, *, value: Any
    ) -> None:
        self.model = model
        self.process = process
        self.f = f
        self.key = key
        self.value = value
        self._recorder = recorder

    def ok(self, value: Any = None, **fields: Any) -> None:
        """It took effect."""
        self._recorder.end(self, OK, value, fields)

    def fail(self, **fields: Any) -> None:
        """It certainly did not."""
        self._recorder.end(self, FAIL, self.value, fields)

    def refused(self, why: str) -> None:
        """It was not tried, as the state of the store was against it."""
        self.fail(error=why)

    def not_ok(self, outcome: Outcome) -> None:
        """It did not, or nobody knows; whichever the client was told."""
        if outcome.condition_failed:
            self.fail(observed_revision=outcome.observed_revision)
            return
        status = INFO if outcome.status == INFO else FAIL
        self._recorder.end(self, status, self.value, {"error": outcome.detail})
