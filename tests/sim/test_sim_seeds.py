"""Whole simulated lives of clusters, of a few fixed seeds; ``raftkv sim`` runs thousands."""

from typing import Any

import pytest

from raftkv.core.operations import KeyValue, Put
from raftkv.core.shard.machine import StateMachine
from raftkv.engine.snapshot_keeper import SnapshotKeeper
from raftkv.sim.options import Options
from raftkv.sim.run import run


@pytest.mark.parametrize("seed", range(8))
def test_nothing_is_wrong_in_five_minutes_with_faults(seed: int) -> None:
    """No invariant is broken, no history is wrong, everybody agrees and is answered in the end."""
    options = Options.of(seed)
    report = run(options)
    assert report.violation is None, f"{report.violation}\n{options.describe()}"
    assert report.simulated_s >= options.minutes * 60
    assert report.outcomes["ok"] > report.operations / 2


@pytest.mark.parametrize("seed", [1, 11, 20])
@pytest.mark.parametrize("members", [1, 2])
def test_nothing_is_wrong_in_small_groups(members: int, seed: int) -> None:
    """Also where one is a majority, and where both are needed for one."""
    report = run(Options.of(seed, 2.5, nodes=members, replicas=members))
    assert report.violation is None, report.violation
    assert report.outcomes["ok"] > report.operations / 2


def test_a_log_that_is_never_cut_is_found_in_one_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bound is far below what clients write in the minutes of a run."""
    monkeypatch.setattr(SnapshotKeeper, "check", lambda _: None)
    report = run(Options.of(1, shards=1, snapshot_after_entries=8, operations_per_s=4.0))
    assert report.violation is not None
    assert "the log of group" in report.violation


def test_what_is_lost_after_its_last_use_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything is read again in the end, also what all replicas have lost alike."""
    put = StateMachine._put_over

    def forgetful(self: Any, asked: Put, held: KeyValue | None) -> Any:
        if asked.key.startswith(b"r2-"):
            for old in filter(None, map(self.keyspace.find, (b"r0-0", b"r0-1"))):
                self.keyspace._drop(old)
        return put(self, asked, held)

    monkeypatch.setattr(StateMachine, "_put_over", forgetful)
    shape = {"nodes": 3, "replicas": 3, "shards": 1, "sessions_max": 10**6, "free_keys_max": 10**6}
    report = run(Options.of(0, 2.5, workloads=("register",), faults=("kill",), **shape))
    assert report.violation is not None
    assert report.violation.startswith("register r0-")
