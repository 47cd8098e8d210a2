"""Hazards as pictures: ``testdata`` says who sends what to whom, step by step.

``python tests/raft/test_pictures.py`` writes the files anew from what happens now: look at the
difference.
"""

from pathlib import Path

import pytest

from tests.raft.pictures import TESTDATA, played

FILES = sorted(TESTDATA.glob("*.txt"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_it_happens_as_it_is_drawn(path: Path) -> None:
    """Step by step, to the letter."""
    assert played(path) == path.read_text()


def test_the_hazards_are_drawn() -> None:
    """At least twelve of them, and none ends in harm."""
    assert len({path.stem.split("_")[0] for path in FILES}) >= 12
    for path in FILES:
        assert path.read_text().endswith("harm\n----\nnone\n"), path.name


if __name__ == "__main__":
    for file in FILES:
        file.write_text(played(file))
