"""What a seed decides before a run: its options and its plan of faults."""

from dataclasses import fields, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raftkv.sim import faults
from raftkv.sim.options import FAULTS, WORKLOADS, Options
from raftkv.sim.plan import FIRST_S, plan
from raftkv.workloads import WORKLOADS as WORKLOAD_FUNCTIONS

SEEDS = st.integers(0, 10_000)

ALONE = {"bit_flip", "lose_disk"}
"""Done by the operator, with the cluster to themselves."""


@given(SEEDS)
def test_a_seed_decides_the_same_every_time(seed: int) -> None:
    """Options and plan are functions of the seed."""
    assert Options.of(seed) == Options.of(seed)
    assert plan(Options.of(seed)) == plan(Options.of(seed))


@given(SEEDS)
def test_every_seed_is_a_cluster_that_can_be(seed: int) -> None:
    """Enough nodes for the replicas, elections slower than heartbeats, some faults and work."""
    options = Options.of(seed)
    assert 1 <= options.replicas <= options.nodes
    assert options.election_ms > 3 * options.heartbeat_ms
    assert 1 <= len(options.faults) <= len(set(options.faults))
    assert set(options.faults) <= set(FAULTS)
    assert len(options.workloads) >= 2
    assert set(options.workloads) <= set(WORKLOADS)


def test_seeds_differ() -> None:
    """Together, a hundred of them use every fault, every workload and every size of groups."""
    many = [Options.of(seed) for seed in range(100)]
    assert {fault for options in many for fault in options.faults} == set(FAULTS)
    assert {kind for options in many for kind in options.workloads} == set(WORKLOADS)
    assert {options.replicas for options in many} == {1, 2, 3, 5}
    assert len(set(many)) == 100


def test_every_name_has_its_function() -> None:
    """What options can name can be done, and nothing that can be done is left out."""
    assert set(faults.FAULTS) | ALONE == set(FAULTS)
    assert set(WORKLOAD_FUNCTIONS) == set(WORKLOADS)


def test_changes_come_on_top_of_what_the_seed_decides() -> None:
    """One option is another, all others stay."""
    usual, changed = Options.of(3, 2.0), Options.of(3, 2.0, clients=77)
    assert changed.clients == 77
    assert replace(changed, clients=usual.clients) == usual


def test_options_describe_themselves_completely() -> None:
    """One line for each, with its value."""
    options = Options.of(5, 2.5, faults=("kill", "power"))
    lines = options.describe().splitlines()
    assert [line.split(" = ")[0].strip() for line in lines] == [f.name for f in fields(Options)]
    assert "  minutes = 2.5" in lines
    assert "  faults = kill,power" in lines


@given(SEEDS, st.floats(0.1, 30))
def test_faults_come_in_order_within_the_run(seed: int, minutes: float) -> None:
    """Numbered from 0, after the cluster has come up, of the kinds that are switched on."""
    options = Options.of(seed, minutes)
    found = plan(options)
    assert [fault.number for fault in found] == list(range(len(found)))
    assert [fault.at_s for fault in found] == sorted(fault.at_s for fault in found)
    assert all(FIRST_S < fault.at_s <= minutes * 60 for fault in found)
    assert all(fault.kind in options.faults for fault in found)
    assert all(0 < fault.duration_s < 240 for fault in found)
    assert len({fault.seed for fault in found}) == len(found)


def test_faults_are_about_as_frequent_as_asked_for() -> None:
    """In 1,000 minutes with one in 10 s there are about 6,000, of all kinds."""
    found = plan(Options.of(1, 1000.0, fault_every_s=10.0, faults=FAULTS))
    assert len(found) == pytest.approx(6000, rel=0.1)
    assert {fault.kind for fault in found} == set(FAULTS)


def test_without_kinds_there_are_no_faults() -> None:
    """An empty list of kinds is no error."""
    assert plan(Options.of(1, faults=())) == []


@given(SEEDS, st.sets(st.integers(0, 20)))
def test_dropping_faults_leaves_the_others_what_they_were(seed: int, keep: set[int]) -> None:
    """Time, kind, duration and seed: what shrinking depends on."""
    every = plan(Options.of(seed))
    kept = plan(Options.of(seed, keep=tuple(keep)))
    assert kept == [fault for fault in every if fault.number in keep]


@given(SEEDS, st.floats(0.1, 5))
def test_a_shorter_run_has_the_same_beginning(seed: int, minutes: float) -> None:
    """The plan of fewer minutes is a prefix of that of more."""
    longer, shorter = plan(Options.of(seed, 5.0)), plan(Options.of(seed, minutes))
    assert longer[: len(shorter)] == shorter


def test_a_fault_shows_what_when_and_how_long() -> None:
    """The line of a trace or a report."""
    fault = plan(Options.of(1, 5.0, faults=("kill",), fault_every_s=1.0))[2]
    assert str(fault) == f"2: kill at {fault.at_s:.3f} s for {fault.duration_s:.1f} s"
