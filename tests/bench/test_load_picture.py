"""The picture of a load: what is in it, read back as XML."""

from xml.etree import ElementTree as ET

import pytest

from raftkv.bench.load.run_load import Cost, Latency, LoadResult, Second
from raftkv.cli.load_picture import draw

SVG = "{http://www.w3.org/2000/svg}"
SOME = Latency(0.004, 0.01, 0.02, 0.05, 0.1)


def result(*seconds: Second) -> LoadResult:
    """A load that was like this, second by second."""
    accepted = sum(second.accepted for second in seconds)
    failed = sum(second.failed for second in seconds)
    return LoadResult(
        seconds=len(seconds),
        requests_per_s=accepted / max(1, len(seconds)),
        operations_per_s=accepted / max(1, len(seconds)),
        failed=failed,
        statuses={"200": accepted, "503": failed},
        latency=SOME,
        per_second=list(seconds),
        generator=Cost(20.0, 0.1),
        generator_processes=1,
        servers={},
        late_s_max=0.0,
        errors=[],
    )


def drawn(*seconds: Second) -> ET.Element:
    """The picture as a tree."""
    return ET.fromstring(draw("a <load>", result(*seconds)))  # noqa: S314 -- our own


def texts(picture: ET.Element) -> list[str]:
    """All that is written in it."""
    return [element.text or "" for element in picture.iter(f"{SVG}text")]


def columns(picture: ET.Element) -> dict[str, float]:
    """What each column says when it is pointed at, and how tall it is."""
    return {
        title.text or "": float(bar.attrib["height"])
        for bar in picture.iter(f"{SVG}rect")
        if (title := bar.find(f"{SVG}title")) is not None
    }


def test_columns_are_as_tall_as_what_came_of_their_second() -> None:
    """One column for what was accepted, one for what failed; none for nothing."""
    tall = columns(drawn(Second(100, 50, SOME), Second(200, 0, SOME)))
    assert set(tall) == {
        "second 1: 100 accepted",
        "second 1: 50 failed",
        "second 2: 200 accepted",
    }
    assert tall["second 1: 100 accepted"] == pytest.approx(tall["second 2: 200 accepted"] / 2)
    assert tall["second 1: 50 failed"] == pytest.approx(tall["second 2: 200 accepted"] / 4)


def test_failures_stand_on_what_was_accepted() -> None:
    """The whole column is all that was offered in its second."""
    accepted, failed = (
        bar.attrib
        for bar in drawn(Second(100, 50, SOME)).iter(f"{SVG}rect")
        if bar.find(f"{SVG}title") is not None
    )
    assert float(failed["y"]) + float(failed["height"]) == pytest.approx(float(accepted["y"]))


def test_the_whole_run_is_written_beside_it() -> None:
    """Title, throughput, failures, and each percentile with its value."""
    said = texts(drawn(Second(100, 50, SOME), Second(300, 0, SOME)))
    assert said[0] == "a <load>"
    assert {"200/s", "50 failed", "4.0 ms", "10.0 ms", "20.0 ms", "50.0 ms", "100.0 ms"} <= set(
        said
    )


def test_higher_latency_is_drawn_higher_up() -> None:
    """The lines are those of the percentiles, from the worst down to the median."""
    picture = drawn(Second(9, 0, SOME), Second(9, 0, SOME))
    heights = [
        float(line.attrib["points"].split()[0].split(",")[1])
        for line in picture.iter(f"{SVG}polyline")
    ]
    assert len(heights) == 5
    assert heights == sorted(heights)


def test_a_second_without_answers_interrupts_the_lines() -> None:
    """No line is drawn across what was not measured; a second alone is a dot."""
    silent = Second(0, 9, Latency())
    picture = drawn(Second(9, 0, SOME), Second(9, 0, SOME), silent, Second(9, 0, SOME))
    assert len(list(picture.iter(f"{SVG}polyline"))) == 5
    assert len(list(picture.iter(f"{SVG}circle"))) == 5


def test_a_load_of_which_nothing_was_accepted_can_be_drawn() -> None:
    """There are failures to see, and no latency."""
    picture = drawn(Second(0, 9, Latency()))
    assert set(columns(picture)) == {"second 1: 9 failed"}
    assert not list(picture.iter(f"{SVG}polyline"))


def test_nothing_cannot_be_drawn() -> None:
    """A load without a second has no picture."""
    with pytest.raises(ValueError, match="nothing was measured"):
        draw("none", result())
