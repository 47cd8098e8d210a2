"""Many random lives of a group; what is checked is in ``random_run.py``.

To repeat a failure, or to look for new ones: ``RandomRun(seed, names).run(steps)``.
"""

import pytest
from random_run import RandomRun

from raftkv.raft import snapshot_transfer


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Send snapshots in many pieces although the states are small."""
    monkeypatch.setattr(snapshot_transfer, "CHUNK_BYTES", 700)


@pytest.mark.parametrize("seed", range(24))
def test_three_replicas(seed: int) -> None:
    """Three replicas keep every promise whatever happens to them."""
    RandomRun(seed, "abc").run(4000)


@pytest.mark.parametrize("seed", range(8))
def test_five_replicas(seed: int) -> None:
    """So do five."""
    RandomRun(seed, "abcde").run(4000)


@pytest.mark.parametrize("seed", range(4))
def test_one_replica(seed: int) -> None:
    """A group of one loses nothing either."""
    RandomRun(seed, "a").run(2000)


@pytest.mark.parametrize("seed", range(4))
def test_two_replicas(seed: int) -> None:
    """A group of two needs both, and keeps its promises."""
    RandomRun(seed, "ab").run(2000)


def test_the_runs_are_eventful() -> None:
    """The seeds above do meet elections, crashes, transfers, snapshots and reads of both kinds."""
    counts: dict[str, int] = {}
    for seed in range(12):
        run = RandomRun(seed, "abc")
        run.run(4000)
        for what, count in run.counts.items():
            counts[what] = counts.get(what, 0) + count
    assert counts["acknowledged"] > 1000
    assert counts["crashes"] > 20
    assert counts["leader"] > 20
    assert counts["reads"] > 500
    assert counts["bounded reads"] > 100
    assert counts["snapshots written"] > 50
    assert counts["snapshot_installed"] > 2


def test_the_same_seed_repeats_the_same_run() -> None:
    """A failure can be repeated: equal seeds give equal histories."""

    def history(seed: int) -> list[tuple[bytes, int, int | None]]:
        run = RandomRun(seed, "abc")
        run.run(1500)
        return [(write.key, write.began, write.ended) for write in run.writes]

    assert history(3) == history(3)
    assert history(3) != history(4)
