"""What the report works out before it draws: slices, percentiles, axes, moments, words."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raftkv.check.history import Operation
from raftkv.check.report.parts import parts_of, placement_ns
from raftkv.check.report.text import cut, duration, key_name, shown
from raftkv.check.report.timeline import SLICES_MAX, Slice, Span, slices, span_of, steps
from raftkv.check.verdict import PartResult, Result, Verdict
from tests.check_report.report_histories import START_NS, judged, operation

INTERVALS = st.lists(
    st.tuples(
        st.integers(0, 200), st.integers(0, 60), st.floats(0, 1), st.sampled_from(["ok", "info"])
    ),
    min_size=1,
    max_size=30,
)
"""Begin, length, where within it takes effect, outcome."""


def linearized(intervals: list[tuple[int, int, float, str]]) -> tuple[list[Operation], list[int]]:
    """Return operations and the order in which they took effect."""
    operations, moments = [], {}
    for index, (begin, length, share, status) in enumerate(sorted(intervals)):
        end = begin + length if status == "ok" else None
        operations.append(operation(index, invoked_ns=begin, completed_ns=end, status=status))
        moments[index] = begin + share * length
    return operations, sorted(moments, key=lambda index: (moments[index], index))


@given(INTERVALS)
def test_moments_grow_along_the_order_and_stay_within_their_operations(
    intervals: list[tuple[int, int, float, str]],
) -> None:
    """The line that is drawn through the lanes is a true linearization."""
    operations, order = linearized(intervals)
    part = PartResult("k", Verdict.VALID, len(order), 0.0, tuple(order), None, "")
    moments = placement_ns(parts_of(operations, Result.of("register", (part,)))[0])
    assert list(moments) == order
    assert all(before <= after for before, after in pairwise(moments.values()))
    for index, moment in moments.items():
        assert operations[index].invoked_ns <= moment
        assert moment <= (operations[index].completed_ns or moment)


def test_operations_that_share_a_time_are_drawn_apart() -> None:
    """Points on one spot could not be read."""
    operations = [operation(at, invoked_ns=0, completed_ns=1_000) for at in range(4)]
    moments = placement_ns(parts_of(operations, judged(operations))[0])
    assert list(moments.values()) == [200, 400, 600, 800]


@given(st.lists(st.tuples(st.integers(0, 10**12), st.integers(0, 10**10)), max_size=40))
def test_every_operation_is_counted_in_one_slice(times: list[tuple[int, int]]) -> None:
    """However long or short the run is, the slices cover it and are few."""
    operations = [
        operation(at, invoked_ns=begin, completed_ns=begin + length)
        for at, (begin, length) in enumerate(times)
    ]
    span = span_of(operations, ())
    found = slices(operations, span)
    assert len(found) <= SLICES_MAX
    assert sum(part.ok for part in found) == len(operations)
    assert all(before.end_ns == after.start_ns for before, after in pairwise(found))
    assert found[0].start_ns <= span.start_ns
    assert span.end_ns < found[-1].end_ns


def test_only_what_was_ok_has_a_latency() -> None:
    """A refusal is fast and a time-out slow; neither says how long operations take."""
    failed = operation(0, status="fail")
    unknown = operation(1, status="info", completed_ns=None)
    (found,) = slices([failed, unknown], Span(START_NS + 1_000_000, START_NS + 1_000_000))
    assert (found.fail, found.info, found.latency_ns(50)) == (1, 1, None)


def test_percentiles_are_nearest_rank() -> None:
    """P50 of 1 to 100 is 50, p99 is 99; of one number it is that number."""
    part = Slice(0, 1, latencies_ns=list(range(1, 101)))
    assert (part.latency_ns(50), part.latency_ns(99)) == (50, 99)
    assert Slice(0, 1, latencies_ns=[7]).latency_ns(99) == 7


@given(st.floats(0.001, 1e15))
def test_an_axis_has_a_few_round_steps(highest: float) -> None:
    """It begins at zero, does not pass the highest, and is neither empty nor crowded."""
    found = list(steps(highest, 5))
    assert found[0] == 0
    assert found[-1] <= highest * 1.000001
    assert 2 <= len(found) <= 7


@pytest.mark.parametrize(
    ("time_ns", "text"),
    [
        (0, "0"),
        (7, "7 ns"),
        (1_500, "1.5 µs"),
        (20_000_000, "20 ms"),
        (999_600_000, "1,000 ms"),
        (1_000_000_000, "1 s"),
        (7_200_000_000_000, "7,200 s"),
    ],
)
def test_a_duration_has_a_fitting_unit(time_ns: int, text: str) -> None:
    """Three digits say enough."""
    assert duration(time_ns) == text


def test_what_cannot_be_printed_is_spelled_out() -> None:
    """Nothing in a key may turn the direction of what stands beside it, or hide."""
    assert cut("a\u202eb\x00\x7f") == r"a\u202eb\u0000\u007f"
    assert shown(" \ud800") == r'" \ud800"'
    assert key_name("") == '""'
    assert key_name(" k") == '" k"'
    assert key_name("k\n") == r'"k\n"'


def test_a_long_text_is_cut() -> None:
    """The page shows that there was more."""
    assert cut("x" * 201) == "x" * 199 + "…"
    assert cut("x" * 200) == "x" * 200
