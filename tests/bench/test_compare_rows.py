"""Ratios and verdicts of a comparison, from made-up readings, and the table of them."""

import io

import pytest
from rich.console import Console

from raftkv.bench.compare.rows import Compared, Limit, Reading, compare
from raftkv.bench.compare.run import Comparison
from raftkv.bench.compare.table import remarks, table_of

FASTER = Limit("throughput", ">=", 2.0, 3.0)
SHORTER = Limit("p99", "<=", 0.7)


def readings(*values: float, measure: str = "throughput") -> list[Reading]:
    """Runs that found these."""
    return [Reading({measure: value}) for value in values]


def compared(ratios: list[float], limit: Limit | None) -> Compared:
    """One line of a comparison."""
    return Compared("put", "throughput", 100.0, 50.0, ratios, limit)


@pytest.mark.parametrize(
    ("limit", "ratio", "verdicts"),
    [
        (FASTER, 1.99, (False, False)),
        (FASTER, 2.0, (True, False)),
        (FASTER, 3.0, (True, True)),
        (FASTER, None, (False, False)),
        (SHORTER, 0.7, (True, None)),
        (SHORTER, 0.71, (False, None)),
        (SHORTER, None, (False, None)),
    ],
)
def test_a_limit_is_met_or_missed(
    limit: Limit, ratio: float | None, verdicts: tuple[bool, bool | None]
) -> None:
    """The bound itself is good enough; what could not be measured meets nothing."""
    assert (limit.holds(ratio), limit.reaches_aim(ratio)) == verdicts


def test_what_counts_is_the_median_of_the_ratios_of_pairs() -> None:
    """Not the ratio of medians: a machine that slows down does so in both runs of a pair."""
    ours, theirs = readings(100, 300, 20), readings(50, 100, 20)
    (line,) = compare("put", [FASTER], list(zip(ours, theirs, strict=True)))
    assert line.ratios == [2.0, 3.0, 1.0]
    assert line.ratio == 2.0
    assert (line.ours, line.theirs) == (100, 50)
    assert (line.met, line.aim_met) == (True, False)


def test_a_measure_without_a_limit_is_shown_and_not_judged() -> None:
    """Each measure that both have gets a line; a limit goes to its own measure."""
    pair = (
        Reading({"throughput": 4.0, "p99": 1.0, "median": 0.5}),
        Reading({"throughput": 1.0, "p99": 2.0}),
    )
    lines = {line.measure: line for line in compare("put", [FASTER], [pair])}
    assert set(lines) == {"throughput", "p99"}
    assert lines["throughput"].met is True
    assert lines["p99"].met is None
    assert lines["p99"].ratio == 0.5


def test_a_run_of_which_nothing_was_accepted_does_not_take_a_limit_away() -> None:
    """Without answers there is no latency: that is the worst of all, not nothing to look at."""
    stalled = (Reading({"throughput": 0.0}), Reading({"throughput": 5.0, "p99": 0.1}))
    fine = (Reading({"throughput": 9.0, "p99": 0.01}), Reading({"throughput": 5.0, "p99": 0.1}))
    lines = {line.measure: line for line in compare("put", [SHORTER], [fine, stalled, fine])}
    assert lines["p99"].ratio is None
    assert lines["p99"].met is False


def test_a_peer_that_did_nothing_gives_no_ratio() -> None:
    """Nothing is infinitely better than nothing."""
    (line,) = compare("put", [FASTER], list(zip(readings(5), readings(0), strict=True)))
    assert line.ratios == []
    assert line.met is False


def test_no_pairs_no_lines() -> None:
    """What was not run is not there."""
    assert compare("put", [FASTER], []) == []


def test_only_what_must_hold_can_be_missed() -> None:
    """Without a target a line has no verdict."""
    lines = [compared([2.5], FASTER), compared([1.5], FASTER), compared([0.1], None)]
    assert [line.met for line in lines] == [True, False, None]


def test_the_table_has_both_sides_ratio_spread_and_verdicts() -> None:
    """One line says how fast each was, the ratio with its range, and what it was held against."""
    out = io.StringIO()
    line = compared([2.0, 2.5, 4.0], FASTER)
    Console(file=out, width=130).print(table_of(Comparison("etcd", [line], {})))
    (row,) = (text for text in out.getvalue().splitlines() if "put" in text)
    cells = [cell.strip() for cell in row.strip("│ \n").split("│")]
    assert cells == [
        "put",
        "throughput",
        "100/s",
        "50/s",
        "2.50",
        "2.00..4.00",
        ">= 2 met",
        ">= 3 missed",
    ]


def test_remarks_say_who_used_the_machine_and_what_failed() -> None:
    """Medians of the cores used over all runs of a row, and the sum of what failed."""
    pairs = [
        (Reading({}, 1, {"engine": 1.0}), Reading({}, 2, {"etcd": 0.5})),
        (Reading({}, 0, {"engine": 1.2}), Reading({}, 0, {"etcd": 0.7})),
    ]
    (remark,) = remarks(Comparison("etcd", [], {"put": pairs}))
    assert remark == "put: cores used (medians): engine 1.10, etcd 0.60; requests failed: 3"
