"""The parts of the measuring commands that only compute; no speed is asserted anywhere."""

import io
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from raftkv.bench.load.paced import key_of
from raftkv.bench.load.summary import Summary, percentile, summarize
from raftkv.bench.measures.large_shard import Memory, quiet_windows
from raftkv.bench.measures.probe import GET, PUT, WAKE_UP, Sample, Window, latencies, within
from raftkv.bench.processes import WORKER, descendants_of, workers_of
from raftkv.bench.report import Figure, Machine, Occasion, publish, shown

OCCASION = Occasion("2026-11-22T00:00:00+00:00", Machine(2, "Linux", "3.11", 0.5))


@pytest.mark.parametrize(
    ("share", "expected"), [(0, 1), (0.2, 1), (0.21, 2), (0.5, 3), (0.99, 5), (1, 5)]
)
def test_a_percentile_is_a_sample(share: float, expected: float) -> None:
    """Nearest rank: the smallest sample that the share does not exceed."""
    assert percentile([5, 3, 1, 4, 2], share) == expected


def test_no_percentile_of_nothing() -> None:
    """Nothing measured has no percentile, and no share lies outside of 0 to 1."""
    with pytest.raises(ValueError, match="no samples"):
        percentile([], 0.5)
    with pytest.raises(ValueError, match="between"):
        percentile([1], 99)


def test_a_summary() -> None:
    """Count, median, 99th percentile and worst; of nothing, only that it is nothing."""
    assert summarize([float(n) for n in range(1, 201)]) == Summary(200, 100.0, 198.0, 200.0)
    assert summarize([]) == Summary(0)


def test_a_target_is_met_or_missed() -> None:
    """The target itself is good enough; what could not be measured meets none."""
    assert Figure("f", 2.0, "s", at_most=2.0).met is True
    assert Figure("f", 2.1, "s", at_most=2.0).met is False
    assert Figure("f", None, "s", at_most=2.0).met is False
    assert Figure("f", 2.0, "s").met is None


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.0351, "s", "35.1 ms"),
        (12.34, "s", "12.3 s"),
        (2.9, "%", "2.90 %"),
        (488.6, "bytes", "489 bytes"),
        (1200.0, "", "1,200"),
        (None, "s", "-"),
    ],
)
def test_numbers_for_people(value: float | None, unit: str, text: str) -> None:
    """Each unit as a person reads it."""
    assert shown(value, unit) == text  # type: ignore[arg-type] # parametrized as str


def test_a_report_as_table_and_json(tmp_path: Path) -> None:
    """The table says what was missed; the file holds everything, samples included."""
    report = OCCASION.report(
        "a measurement",
        "raftkv bench some",
        [Figure("fast", 0.01, "s", 0.1), Figure("slow", 0.2, "s", 0.1), Figure("free", 7)],
        notes=["all samples in ms: 1, 2"],
        details={"samples": [1, 2]},
    )
    out = io.StringIO()
    publish(report, tmp_path / "out.json", Console(file=out, width=100))
    lines = out.getvalue().splitlines()
    (fast,) = (line for line in lines if "fast" in line)
    (slow,) = (line for line in lines if "slow" in line)
    assert "10.0 ms" in fast
    assert "met" in fast
    assert "<= 100.0 ms" in slow
    assert "missed" in slow
    assert "all samples in ms: 1, 2" in lines
    document = json.loads((tmp_path / "out.json").read_text())
    assert document["details"] == {"samples": [1, 2]}
    assert document["figures"][1] == {"name": "slow", "value": 0.2, "unit": "s", "at_most": 0.1}
    assert document["machine"]["cores"] == 2


def test_keys_are_distinct_and_not_in_order() -> None:
    """Sixteen bytes each, one for each number, neighbours far apart."""
    keys = [key_of(number) for number in range(1000)]
    assert {len(key) for key in keys} == {16}
    assert len(set(keys)) == 1000
    assert keys != sorted(keys)


def test_memory_of_a_key_beyond_itself() -> None:
    """What grew, shared among the keys, without key and value."""
    assert Memory(empty=1000, filled=1000 + 10 * (16 + 100 + 300)).per_key(10, 100) == 300


def test_a_sample_belongs_to_each_window_that_it_touches() -> None:
    """A request that was under way when a snapshot began was beside that snapshot."""
    windows = [Window(10, 20), Window(30, 40)]
    samples = [
        Sample("n1", PUT, 9.0, 0.5),  # answered before
        Sample("n1", PUT, 9.9, 0.2),  # touches the first
        Sample("n1", GET, 15.0, 0.1),
        Sample("n1", GET, 15.0, 20.0),  # touches both, counts once
        Sample("n1", GET, 20.5, 0.1),  # between
    ]
    assert within(samples, windows) == samples[1:4]


def test_wake_ups_are_no_requests() -> None:
    """A summary of puts and gets leaves out what only judges the machine."""
    samples = [Sample("n1", PUT, 0, 0.1), Sample("", WAKE_UP, 0, 9.0), Sample("n2", GET, 0, 0.3)]
    assert latencies(samples, PUT, GET) == Summary(2, 0.1, 0.3, 0.3)


@pytest.mark.parametrize(
    ("busy", "quiet"),
    [
        ([], [(0, 100)]),
        ([(10, 20)], [(0, 10), (20, 100)]),
        ([(10, 30), (20, 25)], [(0, 10), (30, 100)]),
        ([(50, 60), (-5, 5)], [(5, 50), (60, 100)]),
        ([(90, 120)], [(0, 90)]),
        ([(-5, 200)], []),
        ([(110, 120)], [(0, 100)]),
    ],
)
def test_what_is_left_is_quiet(
    busy: list[tuple[float, float]], quiet: list[tuple[float, float]]
) -> None:
    """Quiet is what no busy window covers, however they overlap and in whatever order."""
    whole = Window(0, 100)
    assert quiet_windows(whole, [Window(*pair) for pair in busy]) == [Window(*p) for p in quiet]


def test_workers_are_told_from_children_that_write_snapshots() -> None:
    """Those end soon, and a load that watched one would fail when it is gone."""
    sleeping = [sys.executable, "-c", "import time; time.sleep(60)"]
    with (
        subprocess.Popen(sleeping) as snapshot,  # noqa: S603 -- our own command
        subprocess.Popen([*sleeping, WORKER]) as worker,  # noqa: S603 -- our own command
    ):
        try:
            assert {snapshot.pid, worker.pid} <= set(descendants_of(os.getpid()))
            deadline = time.monotonic() + 10
            while worker.pid not in workers_of(os.getpid()):
                assert time.monotonic() < deadline
                time.sleep(0.01)
            assert snapshot.pid not in workers_of(os.getpid())
        finally:
            snapshot.kill()
            worker.kill()
