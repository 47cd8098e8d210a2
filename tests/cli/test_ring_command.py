"""``raftkv ring``: numbers for people, for scripts, and as a picture."""

import json
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from click.testing import CliRunner

from raftkv.cli.ring import measure, ring_command
from raftkv.core.ring import Modulo, Ring, position_of

SVG = "{http://www.w3.org/2000/svg}"


def run(*arguments: str, exit_code: int = 0) -> str:
    """Run the command and return what it prints."""
    result = CliRunner().invoke(ring_command, arguments)
    assert result.exit_code == exit_code, result.output
    return result.output


def test_json_has_spread_and_movement_of_both_partitioners() -> None:
    """Scripts get every number of the table."""
    facts = json.loads(run("--json", "--shards", "4", "--keys", "20000", "--vnodes", "256"))
    assert (facts["shards"], facts["keys"], facts["vnodes"]) == (4, 20_000, 256)
    ring, modulo = facts["partitioners"]
    assert (ring["partitioner"], modulo["partitioner"]) == ("ring", "modulo")
    for spread in (ring, modulo):
        assert sum(spread["keys_per_shard"].values()) == 20_000
        assert spread["emptiest_to_mean"] <= 1 <= spread["fullest_to_mean"] < 1.25
    assert ring["moved_to_new_share"] == 1
    assert ring["moved_share"] == pytest.approx(1 / 5, abs=0.05)
    assert modulo["moved_share"] == pytest.approx(4 / 5, abs=0.02)


def test_the_table_names_every_shard_and_what_moves() -> None:
    """People get the same as a table."""
    printed = run("--shards", "3", "--keys", "3000")
    assert "3,000 keys over 3 shards" in printed
    assert "from 3 to 4 shards" in printed
    assert all(word in printed for word in ("ring", "modulo", "fullest", "keys that move"))


def test_one_shard_and_few_keys_work() -> None:
    """The smallest numbers are no special case."""
    facts = json.loads(run("--json", "--shards", "1", "--keys", "1"))
    assert facts["partitioners"][0]["keys_per_shard"] == {"0": 1}


def test_the_picture_is_well_formed_and_drawn_to_scale(tmp_path: Path) -> None:
    """A bar per shard and partitioner; the dashes of the ring fill the circle once."""
    path = tmp_path / "ring.svg"
    run("--shards", "5", "--keys", "5000", "--svg", str(path))
    root = ET.fromstring(path.read_text(encoding="utf-8"))  # noqa: S314 -- our own file
    bars = [r for r in root.iter(f"{SVG}rect") if "keys" in (r.findtext(f"{SVG}title") or "")]
    assert len(bars) == 10
    drawn = 0.0
    circles = list(root.iter(f"{SVG}circle"))
    assert len(circles) == 5
    for circle in circles:
        lengths = [float(length) for length in circle.attrib["stroke-dasharray"].split()]
        assert min(lengths) >= 0
        drawn += sum(lengths[::2])
    assert drawn == pytest.approx(2 * 3.14159265 * float(circles[0].attrib["r"]), rel=0.01)
    assert all(float(rect.attrib["width"]) >= 0 for rect in root.iter(f"{SVG}rect"))
    assert all(float(rect.get("x", "0")) >= 0 for rect in root.iter(f"{SVG}rect"))


def test_a_file_that_cannot_be_written_is_a_clear_error(tmp_path: Path) -> None:
    """One line that names it, and an exit code."""
    path = tmp_path / "missing" / "ring.svg"
    assert str(path) in run("--keys", "10", "--svg", str(path), exit_code=1)


def test_measure_counts_moves_that_help_nobody() -> None:
    """Keys that move between old shards are told from those that go to the new one."""
    positions = [position_of(b"%d" % number) for number in range(5_000)]
    modulo = measure("modulo", Modulo(range(2)), Modulo(range(3)), positions)
    assert modulo.moved_share == pytest.approx(2 / 3, abs=0.03)
    assert modulo.moved_to_new_share == pytest.approx(1 / 2, abs=0.05)
    assert measure("ring", Ring([0, 1]), Ring([0, 1, 7]), positions).moved_to_new_share == 1
