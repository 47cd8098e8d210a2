"""What a node's processes write to standard error: lines for people, or one JSON object each.

Messages never hold values, tokens or secrets. Text from outside shows what it holds and never is
a line of its own (:mod:`raftkv.core.visible`). A record may bring ``extra={"facts": {...}}``:
members of the object, or ``name=value`` behind the line. Warnings and errors that repeat are left
out beyond a few and counted, so that a fault that comes a thousand times a second does not hide
everything else; what happens rarely (elections) is never left out.

Nobody waits for standard error. A pipe that nobody reads, a closed one and a full disk cost lines,
which are counted, and nothing else.
"""

import json
import logging
import os
import select
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Literal, TextIO

from raftkv.core.visible import visible, visible_facts, visible_json, visible_lines

Format = Literal["console", "json"]

BURST = 10
BURST_S = 10.0
"""Of one kind of warning so many are written in so many seconds."""

QUEUE_BYTES_MAX = 4 * 2**20
"""So much waits for a slow standard error; beyond, the oldest lines are dropped."""

FLUSH_S = 1.0
"""How long the end of a process, however urgent, waits for its last lines to be written."""

_KINDS_MAX = 1000
_STANDARD_ERROR = 2
_RETRY_MS = 1000

_logger = logging.getLogger(__name__)


class ConsoleFormatter(logging.Formatter):
    """One line: when, which node, how bad, who says it, what; then facts as ``name=value``.

    The lines of a trace are indented: what an exception says may come from outside as well, and is
    not to look like a line of its own.
    """

    def __init__(self, node: str) -> None:
        super().__init__(f"%(asctime)s {node} %(levelname)s %(name)s: %(message)s")

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:  # noqa: N802 -- same
        """Local time with its offset from UTC, as logs of several machines are compared."""
        del datefmt
        moment = datetime.fromtimestamp(record.created, UTC).astimezone()
        return moment.isoformat(timespec="milliseconds")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 -- logging's name
        """Put the facts behind the message."""
        line = super().formatMessage(record)
        said = [f"{name}={_shown(value)}" for name, value in _facts(record).items()]
        return visible(" ".join([line, *said]))

    def formatException(self, ei: Any) -> str:  # noqa: N802 -- logging's name
        """Indent the trace."""
        return "    " + visible_lines(super().formatException(ei)).replace("\n", "\n    ")


class JsonFormatter(logging.Formatter):
    """One JSON object a line: ``at`` (RFC 3339, UTC), ``level``, ``node``, ``logger``, ``message``.

    Then the record's facts, and ``trace`` with an exception.
    """

    def __init__(self, node: str) -> None:
        super().__init__()
        self._node = node

    def format(self, record: logging.LogRecord) -> str:
        """Make the line."""
        seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        document = {
            "at": f"{seconds}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "node": self._node,
            "logger": record.name,
            "message": visible(record.getMessage()),
        }
        facts = visible_facts(_facts(record))
        document |= {name: value for name, value in facts.items() if name not in document}
        if record.exc_info:
            document["trace"] = visible_lines(self.formatException(record.exc_info))
        return visible_json(json.dumps(document, default=str))


class RepeatFilter(logging.Filter):
    """Lets through a few of each kind of warning and error, and then says how many it left out.

    A kind is a logger with a message before its arguments are put in.
    """

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._monotonic = monotonic
        self._kinds: dict[tuple[str, str], _Kind] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Decide about one record; notes on it how many like it were left out before."""
        if not logging.WARNING <= record.levelno < logging.CRITICAL:
            return True
        name = (record.name, str(record.msg))
        now = self._monotonic()
        if len(self._kinds) >= _KINDS_MAX and name not in self._kinds:
            self._kinds.clear()
        kind = self._kinds.setdefault(name, _Kind(now))
        if now - kind.began >= BURST_S:
            if kind.left_out:
                record.__dict__["facts"] = {**_facts(record), "left_out": kind.left_out}
            kind.began, kind.written, kind.left_out = now, 0, 0
        if kind.written >= BURST:
            kind.left_out += 1
            return False
        kind.written += 1
        return True


class _Kind:
    """How often one kind of record came in its present span."""

    __slots__ = ("began", "left_out", "written")

    def __init__(self, began: float) -> None:
        self.began = began
        self.written = 0
        self.left_out = 0


class QueueHandler(logging.Handler):
    """Writes lines to a descriptor on a thread of its own, from a queue that is bounded in bytes.

    What the queue cannot hold and what cannot be written is dropped, the oldest first, and
    counted; a line says so where they are missing, as soon as one can be written. The standard
    library's ``QueueHandler`` drops the newest, so also the last words, and its listener's end
    waits for a sink that never takes anything.

    ``_changed`` guards the queue and the counts. A forked child has no such thread: it must not
    log.

    Args:
        fd: Where to write. Not a stream: the thread would hold its lock while it waits.
        bytes_max: How much the queue holds; one longer line is held all the same.
    """

    def __init__(self, fd: int, bytes_max: int = QUEUE_BYTES_MAX) -> None:
        super().__init__()
        self.dropped = 0
        """How many lines were dropped so far."""
        self._fd = fd
        self._bytes_max = bytes_max
        self._changed = threading.Condition()
        self._lines: deque[bytes] = deque()
        self._bytes = 0
        self._writing = False
        self._said = 0  # so many of the dropped were told of
        self._torn = False  # the last line was written in part
        # A daemon: a sink that takes nothing must not keep the process.
        threading.Thread(target=self._work, name="log", daemon=True).start()

    def emit(self, record: logging.LogRecord) -> None:
        """Queue one line; never wait, never raise."""
        try:
            line = self.format(record)
        except Exception:  # noqa: BLE001 -- the mistake of whoever logs; it is shown instead
            trace = visible_lines(traceback.format_exc())
            line = f"a record of {record.name} cannot be shown: {trace}"
        self.put(line)

    def put(self, line: str) -> None:
        """Queue one line as it is."""
        encoded = f"{line}\n".encode(errors="backslashreplace")
        with self._changed:
            self._lines.append(encoded)
            self._bytes += len(encoded)
            while self._bytes > self._bytes_max and len(self._lines) > 1:
                self._bytes -= len(self._lines.popleft())
                self.dropped += 1
            self._changed.notify_all()

    def flush(self) -> None:
        """Wait until all is written, for :data:`FLUSH_S` at most."""
        with self._changed:
            self._changed.wait_for(lambda: not self._lines and not self._writing, FLUSH_S)

    def _work(self) -> None:
        while True:
            line, dropped = self._next()
            if dropped > self._said and self._write(self._note(dropped - self._said)):
                self._said = dropped
            if not self._write(line):
                with self._changed:
                    self.dropped += 1

    def _next(self) -> tuple[bytes, int]:
        with self._changed:
            self._writing = False
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._lines)
            line = self._lines.popleft()
            self._bytes -= len(line)
            self._writing = True
            return line, self.dropped

    def _note(self, dropped: int) -> bytes:
        record = _logger.makeRecord(
            _logger.name,
            logging.WARNING,
            __file__,
            0,
            "lines of the log were dropped here: standard error did not take them",
            (),
            None,
            extra={"facts": {"dropped": dropped}},
        )
        return f"{self.format(record)}\n".encode()

    def _write(self, line: bytes) -> bool:
        """Write a line whole, waiting as long as it takes; False if the sink fails."""
        rest = memoryview(b"\n" + line if self._torn else line)
        try:
            while rest:
                try:
                    rest = rest[os.write(self._fd, rest) :]
                    self._torn = bool(rest)
                except BlockingIOError:  # whoever gave us the descriptor made it so
                    _until_writable(self._fd)
        except OSError:  # closed by who read it, or a full disk: the next line may do
            return False
        return True


def _until_writable(fd: int) -> None:
    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    poll.poll(_RETRY_MS)


def set_up(node: str, form: Format, level: str, stream: TextIO | None = None) -> None:
    """Log to standard error from now on, and nowhere else; nobody waits for it.

    A ``stream`` is written to at once instead.
    """
    handler = logging.StreamHandler(stream) if stream else QueueHandler(_STANDARD_ERROR)
    handler.setFormatter(_formatter(node, form))
    handler.addFilter(RepeatFilter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)


def change(node: str, form: Format, level: str) -> None:
    """Log in another form, or more or less, from now on; what waits is written as it is."""
    root = logging.getLogger()
    root.setLevel(level.upper())
    for handler in root.handlers:
        handler.setFormatter(_formatter(node, form))


def speak_for_python() -> None:
    """Log what Python itself says: warnings, and exceptions in threads and finalizers.

    By its own way it would wait for standard error.
    """
    logging.captureWarnings(capture=True)
    threading.excepthook = _note_thread
    sys.unraisablehook = _note_unraisable


def say(line: str) -> None:
    """Write a line for the operator, behind what is logged, and wait for it a while."""
    line = visible(line)
    queues = [h for h in logging.getLogger().handlers if isinstance(h, QueueHandler)]
    for queue in queues:
        queue.put(line)
        queue.flush()
    if not queues:
        sys.stderr.write(f"{line}\n")


def dropped() -> int:
    """How many lines of this process's log were dropped so far."""
    return sum(h.dropped for h in logging.getLogger().handlers if isinstance(h, QueueHandler))


def _note_thread(what: threading.ExceptHookArgs) -> None:
    name = what.thread.name if what.thread else "?"
    _logger.error("thread %s ended with an exception", name, exc_info=what.exc_value)


def _note_unraisable(what: "sys.UnraisableHookArgs") -> None:
    message = what.err_msg or "an exception that cannot be raised"
    _logger.error("%s: %r", message, what.object, exc_info=what.exc_value)


def _formatter(node: str, form: Format) -> logging.Formatter:
    return JsonFormatter(node) if form == "json" else ConsoleFormatter(node)


def _facts(record: logging.LogRecord) -> Mapping[str, Any]:
    facts = record.__dict__.get("facts")
    return facts if isinstance(facts, Mapping) else {}


def _shown(value: object) -> str:
    if isinstance(value, Mapping):
        return json.dumps(value, separators=(",", ":"), default=str)
    return str(value)
