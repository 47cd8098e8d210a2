"""Many random lives of a group; what is checked is in ``random_run.py``.

To repeat a failure, or to look for new ones: ``RandomRun(seed, names).run(steps)``.
"""

from functools import cache

import pytest

from raftkv.raft import snapshot_transfer
from tests.raft.random_run import RandomRun

THREE_REPLICA_SEEDS = range(16)


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Send snapshots in many pieces although the states are small."""
    monkeypatch.setattr(snapshot_transfer, "CHUNK_BYTES", 700)


@cache
def run_of(seed: int, names: str, steps: int) -> RandomRun:
    """A finished run; one that fails raises, each time it is asked for."""
    run = RandomRun(seed, names)
    run.run(steps)
    return run


@pytest.mark.parametrize("seed", THREE_REPLICA_SEEDS)
def test_three_replicas(seed: int) -> None:
    """Three replicas keep every promise whatever happens to them."""
    assert run_of(seed, "abc", 4000).step_number == 4000


@pytest.mark.parametrize("seed", range(5))
def test_five_replicas(seed: int) -> None:
    """So do five."""
    assert run_of(seed, "abcde", 4000).step_number == 4000


@pytest.mark.parametrize("names", ["a", "ab"])
@pytest.mark.parametrize("seed", range(3))
def test_one_or_two_replicas(names: str, seed: int) -> None:
    """A group of one loses nothing either, and one of two needs both."""
    assert run_of(seed, names, 2000).step_number == 2000


def test_the_runs_are_eventful() -> None:
    """The seeds above do meet elections, crashes, snapshots and reads of both kinds."""
    counts: dict[str, int] = {}
    for seed in THREE_REPLICA_SEEDS:
        for what, count in run_of(seed, "abc", 4000).counts.items():
            counts[what] = counts.get(what, 0) + count
    assert counts["acknowledged"] > 1000
    assert counts["crashes"] > 20
    assert counts["leader"] > 20
    assert counts["reads"] > 500
    assert counts["forwarded reads"] > 100
    assert counts["bounded reads"] > 100
    assert counts["snapshots written"] > 50
    assert counts["snapshot_installed"] > 2


def test_the_same_seed_repeats_the_same_run() -> None:
    """A failure can be repeated: equal seeds give equal histories."""

    def history(seed: int) -> list[tuple[bytes, int, int | None]]:
        run = RandomRun(seed, "abc")
        run.run(1000)
        return [(write.key, write.began, write.ended) for write in run.writes]

    assert history(3) == history(3)
    assert history(3) != history(4)
