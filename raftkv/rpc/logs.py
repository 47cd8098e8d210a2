"""What a node's processes write to standard error: lines for people, or one JSON object each.

Messages never hold values, tokens or secrets. A record may bring ``extra={"facts": {...}}``:
members of the object, or ``name=value`` behind the line. Warnings and errors that repeat are left
out beyond a few and counted, so that a fault that comes a thousand times a second does not hide
everything else; what happens rarely (elections) is never left out.
"""

import json
import logging
import sys
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Literal, TextIO

Format = Literal["console", "json"]

BURST = 10
BURST_S = 10.0
"""Of one kind of warning so many are written in so many seconds."""

_KINDS_MAX = 1000


class ConsoleFormatter(logging.Formatter):
    """One line: when, which node, how bad, who says it, what; then facts as ``name=value``."""

    def __init__(self, node: str) -> None:
        super().__init__(f"%(asctime)s {node} %(levelname)s %(name)s: %(message)s")

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:  # noqa: N802 - same
        """Local time with its offset from UTC, as logs of several machines are compared."""
        del datefmt
        moment = datetime.fromtimestamp(record.created, UTC).astimezone()
        return moment.isoformat(timespec="milliseconds")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        """Put the facts behind the message."""
        line = super().formatMessage(record)
        said = [f"{name}={_shown(value)}" for name, value in _facts(record).items()]
        return " ".join([line, *said])


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
            "message": record.getMessage(),
        }
        document |= {name: value for name, value in _facts(record).items() if name not in document}
        if record.exc_info:
            document["trace"] = self.formatException(record.exc_info)
        return json.dumps(document, default=str)


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


def set_up(node: str, form: Format, level: str, stream: TextIO | None = None) -> None:
    """Log to ``stream`` (standard error by default) from now on, and nowhere else."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter(node) if form == "json" else ConsoleFormatter(node))
    handler.addFilter(RepeatFilter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)


def _facts(record: logging.LogRecord) -> Mapping[str, Any]:
    facts = record.__dict__.get("facts")
    return facts if isinstance(facts, Mapping) else {}


def _shown(value: object) -> str:
    if isinstance(value, Mapping):
        return json.dumps(value, separators=(",", ":"), default=str)
    return str(value)
