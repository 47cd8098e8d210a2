"""The report as a document: what it says without a script, and what it cannot be made to do."""

import base64
import hashlib
from pathlib import Path

import pytest

from raftkv.check.report import FaultEvent, LeaderEvent, write_report
from raftkv.check.report.charts import LEFT, RIGHT
from raftkv.check.report.embedded import NEAR_MAX
from raftkv.check.verdict import Result, Verdict
from tests.check_report.report_histories import (
    FACTS,
    HOSTILE,
    SECOND_NS,
    START_NS,
    Run,
    hostile_run,
    judged,
    operation,
    run,
)
from tests.check_report.report_html import Element, carried, data_of, read_page

SIZE_MAX_BYTES = 15_000_000


def page_of(path: Path, made: Run) -> Element:
    """Write the report of a run and read it back."""
    write_report(path, made.operations, made.result, events=made.events, title="a run", facts=FACTS)
    return read_page(path)


@pytest.fixture(scope="module")
def broken() -> Run:
    """A run with a stale read."""
    return run(stale_read=True)


@pytest.fixture(scope="module")
def page(broken: Run, tmp_path_factory: pytest.TempPathFactory) -> Element:
    """Its report."""
    return page_of(tmp_path_factory.mktemp("report") / "report.html", broken)


@pytest.mark.parametrize(
    ("verdict", "sign", "word"),
    [
        (Verdict.VALID, "✓ Valid", "1 of 1 key is linearizable"),
        (Verdict.VIOLATION, "✗ Violation", "1 of 1 key is not linearizable: no order"),
        (Verdict.UNKNOWN, "? Unknown", "That is not a pass"),
    ],
)
def test_the_verdict_comes_first_in_words(
    tmp_path: Path, verdict: Verdict, sign: str, word: str
) -> None:
    """It is told by a sign, a word and a sentence, and not by colour alone."""
    operations = [
        operation(0),
        operation(1),
        operation(2, status="fail"),
        operation(3, status="info", completed_ns=None),
    ]
    offending = 1 if verdict is Verdict.VIOLATION else None
    write_report(tmp_path / "r.html", operations, judged(operations, verdict, offending))
    (main,) = read_page(tmp_path / "r.html").all("main")
    first = next(iter(main))
    assert first.attributes["id"] == "verdict"
    assert verdict.value in first.classes
    assert sign in first.text
    assert word in first.text
    assert "model register: 4 operations, 2 ok, 1 failed, 1 of unknown outcome" in first.text


def test_a_finding_beside_the_history_is_a_violation(tmp_path: Path) -> None:
    """Replicas that differ are no pass, although the clients saw nothing of it."""
    operations = [operation(0)]
    findings = ["replicas of shard 3 differ at index 9", "node n2 died"]
    write_report(tmp_path / "r.html", operations, judged(operations), findings=findings)
    told = read_page(tmp_path / "r.html").by_id("verdict")
    assert told.classes == {"verdict", "violation"}
    assert [p.text for p in told.all("p")][:4] == [
        "✗ Violation",
        *findings,
        "1 of 1 key is linearizable.",
    ]


def test_a_history_without_times_is_told_by_its_order(tmp_path: Path) -> None:
    """Line numbers in the place of times would give throughput and latency that mean nothing."""
    operations = [operation(at, invoked_ns=at, completed_ns=at + 1) for at in range(9)]
    write_report(tmp_path / "r.html", operations, judged(operations, Verdict.VIOLATION, 7))
    page = read_page(tmp_path / "r.html")
    assert "only an order" in page.by_id("timeline").text
    assert not page.all("svg")
    (row,) = page.all("tr", "offending")
    assert [cell.text for cell in row.all("td")][-2:] == ["7", "8"]
    assert data_of(page)["timed"] is False


def test_facts_follow_in_the_order_given(page: Element) -> None:
    """The reader can run it again: seed and command stand there as they are."""
    facts = page.by_id("facts")
    assert [name.text for name in facts.all("dt")] == list(FACTS)
    assert [told.text for told in facts.all("dd")] == list(FACTS.values())


def test_the_page_needs_nothing_beside_it(page: Element) -> None:
    """No address of anything else; its policy allows its own script and style by hash, no more."""
    links = [e.attributes[name] for e in page for name in ("src", "href") if name in e.attributes]
    assert all(link.startswith("#") for link in links)
    policy = next(e.attributes["content"] for e in page if "http-equiv" in e.attributes)
    (style,) = page.all("style")
    script = next(e for e in page.all("script") if "type" not in e.attributes)
    hashes = [
        base64.b64encode(hashlib.sha256(e.text.encode()).digest()).decode() for e in (style, script)
    ]
    assert policy == (
        f"default-src 'none'; style-src 'sha256-{hashes[0]}'; script-src 'sha256-{hashes[1]}'"
    )


def test_a_violation_is_told_with_the_operations_around_it(page: Element, broken: Run) -> None:
    """The reason, the offending operation marked once, and those last placed, with their places."""
    found = broken.result.parts[0]
    told = page.by_id("violation-0")
    assert found.reason in told.text
    assert f"places {len(found.linearization)} of {found.operations} operations" in told.text
    (link,) = told.all("a", "jump")
    (row,) = told.all("tr", "offending")
    assert link.attributes["href"] == "#" + row.attributes["id"]
    cells = [cell.text for cell in row.all("td")]
    assert cells[:2] == [str(found.offending), "✗"]
    assert cells[3:7] == ["read", "null", "✓ ok", '"v8"']
    places = {int(cells[0]): cells[1] for cells in told.rows()}
    last = list(found.linearization)[-12:]
    assert [places[index] for index in last] == [
        str(place) for place in range(len(found.linearization) - 11, len(found.linearization) + 1)
    ]


def test_faults_are_bands_that_say_target_and_effect(page: Element) -> None:
    """Each kind has a label, a colour and its own row; each fault its words."""
    chart = page.by_id("timeline-chart")
    bars, bands = chart.all("rect", "fault"), chart.all("rect", "band")
    assert len(bars) == len(bands) == 8
    words = {text.text for text in chart.all("text")}
    assert words >= {"kill", "pause", "partition", "slow disk", "shard 0", "shard 3"}
    told = [bar.text.split("\n") for bar in bars]
    assert told[0][0].startswith("kill n")
    assert told[0][1:3] == ["from 5 s for 4.3 s", "seen to take effect"]
    assert told[2][2] == "not known whether it took effect"
    assert told[3][2] == "not seen to take effect"
    assert ["unseen" in bar.classes for bar in bars] == [False, False, False, True] * 2
    colours = [next(c for c in bar.classes if c.startswith("fault-")) for bar in bars]
    assert colours[:4] == colours[4:]
    assert len(set(colours)) == 4


def test_a_fault_is_as_wide_as_it_was_long(tmp_path: Path) -> None:
    """On the one axis of time; one that was too short to see is drawn all the same."""
    operations = [operation(0, completed_ns=START_NS + 10 * SECOND_NS)]
    begin_ns, tenth = START_NS + 2 * SECOND_NS, (RIGHT - LEFT) / 10
    events = [
        FaultEvent(begin_ns, "pause", "start", 1),
        FaultEvent(begin_ns + 5 * SECOND_NS, "pause", "stop", 1),
        FaultEvent(begin_ns, "kill", "start", 2),
        FaultEvent(begin_ns, "kill", "stop", 2),
    ]
    write_report(tmp_path / "r.html", operations, judged(operations), events=events)
    chart = read_page(tmp_path / "r.html").by_id("timeline-chart")
    for shapes in (chart.all("rect", "fault"), chart.all("rect", "band")):
        extents = [[float(shape.attributes[name]) for name in ("x", "width")] for shape in shapes]
        assert extents[0] == pytest.approx([LEFT + 2 * tenth, 5 * tenth], abs=0.1)
        assert extents[1] == pytest.approx([LEFT + 2 * tenth, 2], abs=0.1)


def test_the_charts_say_their_numbers(page: Element, broken: Run) -> None:
    """Pointing at a slice tells counts and percentiles; all slices together are the history."""
    hints = [hint.text.split("\n") for hint in page.by_id("timeline-chart").all("rect", "hint")]
    ok = sum(int(lines[1].split()[1].replace(",", "")) for lines in hints)
    assert ok == sum(operation.status == "ok" for operation in broken.operations)
    assert any(lines[3].startswith("p50 ") and "p99" in lines[3] for lines in hints)
    assert any(line.startswith("during kill n") for lines in hints for line in lines)


def test_leader_changes_are_marks_and_a_table(page: Element) -> None:
    """A shard without a leader looks different, and its time is summed."""
    marks = page.by_id("timeline-chart").all("path", "leader")
    assert len(marks) == 4 + 2 * 8
    assert sum("none" in mark.classes for mark in marks) == 8
    rows = page.by_id("leaders").rows()
    assert [row[:4] for row in rows[:2]] == [["0", "4", "1", "7"], ["1", "4", "1", "8"]]
    assert {row[5] for row in rows} == {"1.6 s"}


def test_the_fault_table_counts_what_was_seen(page: Element) -> None:
    """Started, seen, not seen, not known, and seconds in all."""
    assert page.by_id("faults").rows() == [
        ["kill", "2", "2", "0", "0", "8.6"],
        ["pause", "2", "2", "0", "0", "8.6"],
        ["partition", "2", "0", "0", "2", "8.6"],
        ["slow disk", "2", "0", "2", "0", "8.6"],
    ]


def test_keys_with_violations_come_first(tmp_path: Path) -> None:
    """Then unknown ones, then those that were not judged, and the rest by name."""
    verdicts = {"a": Verdict.VALID, "b": Verdict.UNKNOWN, "c": Verdict.VALID}
    operations = [operation(at, key=key) for at, key in enumerate("cbaxd")]
    parts = [
        judged([operation_], verdicts.get(operation_.key or "", Verdict.VIOLATION)).parts[0]
        for operation_ in operations
        if operation_.key != "x"
    ]
    result = Result.of("register", tuple(parts))
    write_report(tmp_path / "r.html", operations, result)
    page = read_page(tmp_path / "r.html")
    found = [(row[0], row[1]) for row in page.by_id("keys").rows()]
    assert found == [
        ("d", "✗ violation"),
        ("b", "? unknown"),
        ("x", "- not judged"),
        ("a", "✓ valid"),
        ("c", "✓ valid"),
    ]
    assert [part["name"] for part in data_of(page)["parts"]] == ["d", "b", "x", "a", "c"]


def test_a_history_that_is_judged_whole_is_one_part(tmp_path: Path) -> None:
    """Operations keep together whatever their keys are, if the model is not divided by key."""
    operations = [operation(0, key="a"), operation(1, key="b")]
    whole = judged([operation(0, key=None)]).parts
    write_report(tmp_path / "r.html", operations, Result.of("bank", whole))
    (part,) = data_of(read_page(tmp_path / "r.html"))["parts"]
    assert part["name"] == "(whole history)"
    assert len(part["operations"]) == 2


def test_a_history_without_operations_has_a_report(tmp_path: Path) -> None:
    """A run that failed before the first operation still tells so."""
    write_report(tmp_path / "r.html", [], Result.of("register", ()))
    page = read_page(tmp_path / "r.html")
    assert "0 operations, 0 ok" in page.by_id("verdict").text
    assert "There are none." in page.by_id("lanes-section").text


def written(path: Path, text: str) -> Element:
    """Write the report of a hostile run, its title and facts included."""
    made = hostile_run(text)
    write_report(
        path, made.operations, made.result, events=made.events, title=text, facts={text: text}
    )
    return read_page(path)


def test_text_from_the_history_stays_text(tmp_path: Path) -> None:
    """Hostile keys, values and names leave the document as harmless ones do, element by element."""
    tame, hostile = written(tmp_path / "t.html", "tame"), written(tmp_path / "h.html", HOSTILE)
    assert [(e.tag, set(e.attributes)) for e in hostile] == [
        (e.tag, set(e.attributes)) for e in tame
    ]
    assert not {name for e in hostile for name in e.attributes if name.startswith("on")}
    assert "<img src=x onerror=alert(1)>" in hostile.by_id("violation-0").text
    assert "<img src=x onerror=alert(1)>" in data_of(hostile)["parts"][0]["name"]


def test_the_data_holds_no_markup(tmp_path: Path) -> None:
    """Not only ``</script``: no character that begins or ends markup stands in the data."""
    data = written(tmp_path / "h.html", HOSTILE).by_id("data").text
    assert not set("<>&") & set(data)


def test_a_large_history_gives_a_page_that_opens(tmp_path: Path) -> None:
    """Long hostile values, many keys, many faults: bounded, and what was left out is said."""
    long = "<" * 5_000
    hot = [
        operation(at, key="hot", f=long, value=long, result=long, fields={"error": long})
        for at in range(60_000)
    ]
    wide = [operation(at, key=f"{at}{long}", value=long) for at in range(60_000, 63_000)]
    result = Result.of(
        "register",
        judged(hot, Verdict.VIOLATION, 40_000).parts + judged(wide, Verdict.UNKNOWN).parts,
    )
    begin_ns = hot[0].invoked_ns
    events = [FaultEvent(begin_ns + at, long, "start", at, long, long) for at in range(5_000)] + [
        LeaderEvent(begin_ns + at, at % 500, f"{at}{long}", at) for at in range(9_000)
    ]
    path = tmp_path / "r.html"
    write_report(path, hot + wide, result, events=events)
    assert path.stat().st_size < SIZE_MAX_BYTES
    page = read_page(path)
    assert "of 63,000 operations" in page.by_id("left-out").text
    near = carried(page)
    assert len(near) > 1_000
    assert near == list(range(40_000 - len(near) // 2, 40_000 + (len(near) + 1) // 2))


def test_a_hot_key_is_carried_around_its_violation(tmp_path: Path) -> None:
    """As many operations before as after."""
    operations = [operation(at) for at in range(20_000)]
    write_report(tmp_path / "r.html", operations, judged(operations, Verdict.VIOLATION, 9_000))
    near = carried(read_page(tmp_path / "r.html"))
    assert near == list(range(9_000 - NEAR_MAX // 2, 9_000 + NEAR_MAX // 2))


def test_what_may_have_taken_effect_in_a_violation_is_carried(tmp_path: Path) -> None:
    """An unknown write from long before is nearer to a violation than its time says."""
    operations = [operation(at) for at in range(20_000)]
    operations[3].status, operations[3].completed_ns = "info", None
    write_report(tmp_path / "r.html", operations, judged(operations, Verdict.VIOLATION, 19_000))
    near = carried(read_page(tmp_path / "r.html"))
    assert near[0] == 3
    assert near[1] > 16_000


def test_a_small_history_is_carried_whole(page: Element, broken: Run) -> None:
    """Then nothing is said to be left out."""
    parts = data_of(page)["parts"]
    assert sum(len(part["operations"]) for part in parts) == len(broken.operations)
    assert "left-out" not in {e.attributes.get("id") for e in page}
