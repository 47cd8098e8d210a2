"""What goes to standard error: one line each, for people or for programs."""

import contextlib
import fcntl
import io
import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from raftkv.rpc import logs
from raftkv.rpc.logs import (
    BURST,
    BURST_S,
    ConsoleFormatter,
    Format,
    QueueHandler,
    RepeatFilter,
)


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


@pytest.fixture
def unread_pipe() -> Iterator[tuple[int, int]]:
    """Both ends of a pipe that holds a page."""
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4096)
    yield reading, writing
    for fd in (reading, writing):
        with contextlib.suppress(OSError):
            os.close(fd)


def queued(fd: int, bytes_max: int = 100_000) -> tuple[logging.Logger, QueueHandler]:
    """A logger that writes here and nowhere else."""
    handler = QueueHandler(fd, bytes_max)
    handler.setFormatter(ConsoleFormatter("n1"))
    logger = logging.getLogger(f"raftkv.test.{fd}")
    logger.propagate = False
    logger.setLevel("INFO")
    logger.handlers.clear()
    logger.addHandler(handler)
    return logger, handler


def lines_of(reading: int, last: str) -> list[str]:
    """Read until a line ends so."""
    text = ""
    while not text.endswith(f"{last}\n"):
        text += os.read(reading, 65536).decode()
    return text.splitlines()


@pytest.mark.timeout(20)
def test_nobody_waits_for_who_reads_the_log(unread_pipe: tuple[int, int]) -> None:
    """The queue is bounded; what was dropped is counted, and said where it is missing."""
    reading, writing = unread_pipe
    logger, handler = queued(writing)
    for number in range(5000):
        logger.info("line %04d of a log that nobody reads", number)
    assert 0 < handler.dropped < 5000
    lines = lines_of(reading, "line 4999 of a log that nobody reads")
    noted = [line for line in lines if "were dropped here" in line]
    assert sum(int(line.rpartition("=")[2]) for line in noted) == handler.dropped
    assert len(lines) - len(noted) + handler.dropped == 5000


LOGS_MUCH = """
import logging
from raftkv.rpc import logs
logs.set_up("n1", "console", "info")
for number in range(5000):
    logging.info("line %d of a log that nobody reads", number)
print(logs.dropped() == 0, flush=True)
logging.shutdown()
"""


@pytest.mark.timeout(30)
def test_a_process_whose_log_nobody_reads_goes_on_and_ends(unread_pipe: tuple[int, int]) -> None:
    """Standard error is a pipe that is full: the work is done, and its end comes in time."""
    process = subprocess.run(  # noqa: S603 -- our own
        [sys.executable, "-c", LOGS_MUCH],
        stdout=subprocess.PIPE,
        stderr=unread_pipe[1],
        timeout=20,
        check=True,
    )
    assert process.stdout == b"True\n", "5,000 lines fit into the queue"


@pytest.mark.timeout(20)
def test_a_line_longer_than_the_queue_is_whole(unread_pipe: tuple[int, int]) -> None:
    """It is written bit by bit as it is read."""
    reading, writing = unread_pipe
    logger, _ = queued(writing, 1000)
    logger.info("%s.", "x" * 50_000)
    (line,) = lines_of(reading, ".")
    assert line.endswith("x" * 50_000 + ".")


@pytest.mark.timeout(20)
def test_a_descriptor_that_does_not_block_is_waited_for(unread_pipe: tuple[int, int]) -> None:
    """Whoever shares it may have made it so."""
    reading, writing = unread_pipe
    os.set_blocking(writing, False)
    logger, handler = queued(writing)
    for number in range(200):
        logger.info("line %d of many.", number)
    assert len(lines_of(reading, "line 199 of many.")) == 200
    assert handler.dropped == 0


def test_a_sink_that_is_closed_costs_lines_only(unread_pipe: tuple[int, int]) -> None:
    """EPIPE harms nobody."""
    reading, writing = unread_pipe
    os.close(reading)
    logger, handler = queued(writing)
    logger.info("one")
    logger.info("two")
    handler.flush()
    assert handler.dropped == 2


def test_a_full_disk_costs_lines_only(tmp_path: Path) -> None:
    """ENOSPC harms nobody, and once there is room the log says what is missing."""
    log = tmp_path / "log"
    full, file = os.open("/dev/full", os.O_WRONLY), os.open(log, os.O_WRONLY | os.O_CREAT)
    logger, handler = queued(full)
    logger.info("lost")
    handler.flush()
    assert handler.dropped == 1
    os.dup2(file, full)
    logger.info("found")
    handler.flush()
    noted, found = log.read_text().splitlines()
    assert noted.endswith("did not take them dropped=1")
    assert found.endswith("found")
    os.close(full)
    os.close(file)


def test_the_end_waits_for_the_last_lines_and_not_for_ever(
    unread_pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A flush ends once all is written, or after its time."""
    monkeypatch.setattr(logs, "FLUSH_S", 0.05)
    reading, writing = unread_pipe
    logger, handler = queued(writing)
    logger.info("first")
    handler.flush()
    assert os.read(reading, 4096).endswith(b"first\n")
    logger.info("x" * 10_000)
    handler.flush()
    assert len(os.read(reading, 4096)) == 4096


def test_a_record_that_cannot_be_formatted_is_shown(unread_pipe: tuple[int, int]) -> None:
    """With the mistake of whoever logged it."""
    logger, handler = queued(unread_pipe[1])
    logger.info("%d", "no number")
    handler.flush()
    assert b"cannot be shown: Traceback" in os.read(unread_pipe[0], 4096)


def test_threads_and_finalizers_are_logged(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python's own way would wait for standard error."""
    for module, hook in ((threading, "excepthook"), (sys, "unraisablehook")):
        monkeypatch.setattr(module, hook, getattr(module, hook))
    _, stream = written("console")
    logs.speak_for_python()
    logging.captureWarnings(capture=False)
    thread = threading.Thread(target=lambda: 1 / 0, name="worker")
    thread.start()
    thread.join()
    assert "ERROR raftkv.rpc.logs: thread worker ended with an exception" in stream.getvalue()
    assert "ZeroDivisionError" in stream.getvalue()

    class Bad:
        def __del__(self) -> None:
            raise ValueError("no end")

    Bad()
    assert "ValueError: no end" in stream.getvalue()


STRANGER = "x\n2026-01-01T00:00:00.000 n1 ERROR raftkv: forged\x1b]0;driven\x07\x9b\u202e"


@pytest.mark.parametrize("form", ["console", "json"])
def test_text_from_outside_is_neither_a_line_nor_a_command(form: Format) -> None:
    """In a message, in facts, in a name of a fact and in an exception, in both forms."""
    logger, stream = written(form)
    logger.warning("refused: %s", STRANGER, extra={"facts": {STRANGER: [STRANGER], "b": STRANGER}})
    first = stream.getvalue()
    assert first.endswith("\n")
    assert first[:-1].isprintable()
    logger.error("failed", exc_info=ValueError(STRANGER))
    lines = stream.getvalue()[len(first) : -1].split("\n")
    assert all(map(str.isprintable, lines))
    assert all(line.startswith("    ") for line in lines[1:])
    if form == "json":
        for line in [first, *lines]:
            assert json.loads(line)["message"].isprintable()
