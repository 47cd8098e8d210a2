"""What goes to standard error: one line each, for people or for programs."""

import io
import json
import logging
import time
from collections.abc import Iterator

import pytest

from raftkv.rpc import logs
from raftkv.rpc.logs import BURST, BURST_S, Format, RepeatFilter


@pytest.fixture(autouse=True)
def _root_as_it_was() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


def written(form: Format, level: str = "info") -> tuple[logging.Logger, io.StringIO]:
    """Set logging up into memory."""
    stream = io.StringIO()
    logs.set_up("n1", form, level, stream)
    return logging.getLogger("raftkv.test"), stream


def test_json() -> None:
    """Each line is one object, with the record's facts and the trace of an exception."""
    logger, stream = written("json")
    logger.info("group %d leads", 3, extra={"facts": {"shard": 3, "message": "not this"}})
    try:
        int("bad\nnews")
    except ValueError:
        logger.exception("failed")
    first, second = map(json.loads, stream.getvalue().splitlines())
    assert first.pop("at").endswith("Z")
    assert first == {
        "level": "info",
        "node": "n1",
        "logger": "raftkv.test",
        "message": "group 3 leads",
        "shard": 3,
    }
    assert "ValueError: invalid literal" in second["trace"]


def test_console() -> None:
    """A line for people says who, where, what, and then the facts."""
    logger, stream = written("console")
    logger.warning("slow", extra={"facts": {"total_ms": 7.5, "stages_ms": {"wal": 2.0}}})
    line = stream.getvalue()
    assert line.endswith(' n1 WARNING raftkv.test: slow total_ms=7.5 stages_ms={"wal":2.0}\n')


@pytest.mark.parametrize(
    ("zone", "written_as"),
    [("UTC", "2026-09-21T14:13:20.250+00:00"), ("XST-5:30", "2026-09-21T19:43:20.250+05:30")],
)
def test_a_line_has_its_offset_from_utc(
    zone: str, written_as: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lines of machines in other time zones, or of the hour that comes twice, can be compared."""
    record = _record(logging.INFO, "up")
    record.created = 1_790_000_000.25
    with monkeypatch.context() as patch:
        patch.setenv("TZ", zone)
        time.tzset()
        line = logs.ConsoleFormatter("n1").format(record)
    time.tzset()
    assert line == f"{written_as} n1 INFO raftkv.test: up"


def test_level() -> None:
    """What is below the level is not written."""
    logger, stream = written("console", "warning")
    logger.info("quiet")
    assert stream.getvalue() == ""


def _record(level: int, text: str = "link to %s", *arguments: object) -> logging.LogRecord:
    return logging.LogRecord("raftkv.test", level, "f", 1, text, arguments, None)


def test_repeats_are_left_out_and_counted() -> None:
    """Of one kind of warning a few are written at a time; the next one says what was left out."""
    now = 0.0
    repeats = RepeatFilter(lambda: now)
    passed = [repeats.filter(_record(logging.WARNING, "link to %s", n)) for n in range(BURST + 5)]
    assert passed == [True] * BURST + [False] * 5
    assert repeats.filter(_record(logging.WARNING, "something else"))
    now += BURST_S
    later = _record(logging.WARNING)
    assert repeats.filter(later)
    assert later.__dict__["facts"] == {"left_out": 5}


@pytest.mark.parametrize("level", [logging.INFO, logging.CRITICAL])
def test_elections_and_alarms_are_never_left_out(level: int) -> None:
    """Only warnings and errors come thousands of times."""
    repeats = RepeatFilter(lambda: 0.0)
    assert all(repeats.filter(_record(level)) for _ in range(10 * BURST))
