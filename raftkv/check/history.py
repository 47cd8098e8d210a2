"""Histories: what clients asked and were told, read from files and written to them.

docs/histories.md describes the file. ``pair`` makes operations of events.
"""

import itertools
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from raftkv.check import foreign
from raftkv.check.event import (
    FAIL,
    INFO,
    INVOKE,
    OK,
    Event,
    HistoryError,
    check,
    from_line,
    to_line,
)

__all__ = [
    "FAIL",
    "INFO",
    "INVOKE",
    "OK",
    "Event",
    "Format",
    "HistoryError",
    "HistoryWriter",
    "Operation",
    "guess_format",
    "pair",
    "read_history",
]

Format = Literal["raftkv", "jepsen-etcd", "kv"]

LINE_BYTES_MAX = 64 * 2**20
HISTORY_BYTES_MAX = 2**30
"""More events than can be judged; a device or a pipe that never ends is no history."""


@dataclass(slots=True)
class Operation:
    """An operation from begin to end."""

    index: int
    """Its place among the operations of the history, ordered by their begin."""
    process: int
    f: str
    key: str | None
    value: Any
    """The value of its begin."""
    status: str
    """``ok``, ``fail`` or ``info``."""
    result: Any
    """The value of its end; None if the outcome is unknown."""
    invoked_ns: int
    completed_ns: int | None
    """None if the outcome is unknown."""
    fields: dict[str, Any]
    """Other members of both events; where both have one, that of the end."""
    invoked_at: int = 0
    """The place of its begin among all events: orders those of the same nanosecond."""
    completed_at: int = 0
    """The place of its end."""


def pair(events: Iterable[Event]) -> list[Operation]:
    """Return the operations that ``events`` tell of, ordered by their begin.

    Events are ordered by their time; those of the same time stay in the order given. An operation
    without an end has an unknown outcome.

    Raises:
        HistoryError: a process begins an operation while one of its own is open, or ends another
            one than it began; "event 1" is the first of those given.
    """
    return _pair(enumerate(events, start=1), "event")


def read_history(path: Path, format: Format = "raftkv") -> list[Operation]:  # noqa: A002 -- the word of the command line
    """Return the operations of a file.

    Raises:
        HistoryError: the file is no history of this format; names the file and the line.
        OSError: the file cannot be read.
    """
    try:
        return _pair(_numbered_events(path, format), "line")
    except HistoryError as error:
        raise HistoryError(f"{path}: {error}") from error


def guess_format(path: Path) -> Format:
    """Return the format that a file seems to have, by its first line that is not empty.

    Raises:
        HistoryError: it has no line, however far it is read.
        OSError: the file cannot be read.
    """
    try:
        first = next((line.strip() for _, line in _lines(path)), b"")
    except HistoryError as error:
        raise HistoryError(f"{path}: {error}") from error
    if first.startswith(b"{:"):
        return "kv"
    # Logs begin with a level, and JSON with a brace.
    return "raftkv" if first.startswith(b"{") or b":invoke" not in first else "jepsen-etcd"


class HistoryWriter:
    """Writes events to a file, as they happen and from any thread.

    Every line is handed to the system whole and at once, so that a history is readable up to its
    last event however the process ends.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb", buffering=0)
        self._lock = threading.Lock()  # guards the file: lines must not mix

    def write(self, event: Event) -> None:
        """Append one event.

        Raises:
            ValueError: its value is none that JSON can say.
            OSError: the file cannot be written.
        """
        line = memoryview(to_line(event).encode())
        with self._lock:
            while line:
                line = line[self._file.write(line) :]

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def _numbered_events(path: Path, format: Format) -> Iterator[tuple[int, Event]]:  # noqa: A002 -- as above
    for number, line in _lines(path):
        try:
            event = _event(line.decode().strip(), number, format)
        except ValueError as error:  # HistoryError and UnicodeDecodeError are both
            raise HistoryError(f"line {number}: {error}") from error
        if event is not None:
            yield number, event


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield the lines that are not empty, with their numbers, in bounded memory."""
    size = 0
    with path.open("rb") as file:
        for number in itertools.count(1):
            line = file.readline(LINE_BYTES_MAX + 1)
            size += len(line)
            if len(line) > LINE_BYTES_MAX:
                raise HistoryError(f"line {number}: has more than {LINE_BYTES_MAX} bytes")
            if size > HISTORY_BYTES_MAX:
                raise HistoryError(f"has more than {HISTORY_BYTES_MAX} bytes")
            if not line:
                return
            if line.strip():
                yield number, line


def _event(line: str, number: int, format: Format) -> Event | None:  # noqa: A002 -- as above
    if format == "raftkv":
        return from_line(line)
    event = (
        foreign.jepsen_line(line, number)
        if format == "jepsen-etcd"
        else foreign.kv_line(line, number)
    )
    if event is not None:
        check(event)
    return event


def _pair(numbered: Iterable[tuple[int, Event]], unit: str) -> list[Operation]:
    operations: list[Operation] = []
    open_of: dict[int, Operation] = {}
    for number, event in sorted(numbered, key=lambda entry: entry[1].time_ns):
        try:
            if event.type == INVOKE:
                operations.append(_begin(open_of, event, len(operations), number))
            else:
                _end(open_of, event, number)
        except HistoryError as error:
            raise HistoryError(f"{unit} {number}: {error}") from error
    return operations


def _begin(open_of: dict[int, Operation], event: Event, index: int, number: int) -> Operation:
    if event.process in open_of:
        raise HistoryError(
            f"process {event.process} begins {event.f} while its {open_of[event.process].f} is open"
        )
    operation = open_of[event.process] = Operation(
        index=index,
        process=event.process,
        f=event.f,
        key=event.key,
        value=event.value,
        status=INFO,
        result=None,
        invoked_ns=event.time_ns,
        completed_ns=None,
        fields=dict(event.fields),
        invoked_at=number,
    )
    return operation


def _end(open_of: dict[int, Operation], event: Event, number: int) -> None:
    operation = open_of.pop(event.process, None)
    if operation is None:
        raise HistoryError(f"process {event.process} ends {event.f}, and has begun nothing")
    if event.f != operation.f or event.key not in (operation.key, None):
        raise HistoryError(
            f"process {event.process} ends {event.f} of key {event.key!r}, "
            f"and has begun {operation.f} of key {operation.key!r}"
        )
    operation.fields.update(event.fields)
    if event.type == INFO:
        return
    operation.status = event.type
    operation.result = event.value
    operation.completed_ns = event.time_ns
    operation.completed_at = number
