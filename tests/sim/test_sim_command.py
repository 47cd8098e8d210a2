"""``raftkv sim``: what it refuses, what it says about a failure, and how a failure replays."""

import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from raftkv.check.event import Event
from raftkv.check.report.events import FaultEvent, faults_of, read_events
from raftkv.cli import sim
from raftkv.cli.check import check_command
from raftkv.cli.sim import command_of, sim_command
from raftkv.sim import campaign
from raftkv.sim.archive import archive
from raftkv.sim.operator import BegunFault
from raftkv.sim.options import FAULTS, WORKLOADS, Options
from raftkv.sim.plan import PlannedFault, plan
from raftkv.sim.run import Record, Report
from raftkv.sim.stage import Effect

Runs = list[Options]


def call(*arguments: str, exit_code: int = 0) -> str:
    """Run the command and return what it prints, on both streams."""
    result = CliRunner().invoke(sim_command, arguments)
    assert result.exit_code == exit_code, result.output
    return result.output


def fake_run(fails: Callable[[Options], bool], runs: Runs) -> Callable[..., Report]:
    """A simulation that fails for a reason that the test knows."""

    def run(options: Options, write: Callable[[str], None] | None = None) -> Report:
        runs.append(options)
        if write is not None:
            write("the trace")
        failed = fails(options)
        return Report(
            options,
            violation="the register lied" if failed else None,
            simulated_s=60.0 if failed else 300.0,
            cpu_s=2.0,
            operations=100,
            outcomes={"ok": 90, "fail": 10},
            faults={"kill": 2},
            refused={"WalDamaged": 1},
            elections=3,
            events=1000,
            digest="0badcafe",
        )

    return run


@pytest.fixture
def simulate(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Options], bool]], Runs]:
    """Put a fake simulation in place; returns the list of what it was asked to run."""

    def put(fails: Callable[[Options], bool]) -> Runs:
        runs: Runs = []
        for module in (sim, campaign):
            monkeypatch.setattr(module, "run", fake_run(fails, runs))
        return runs

    return put


Simulate = Callable[[Callable[[Options], bool]], Runs]

# --- what it refuses -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), "say either --seeds FIRST:END or --seed N"),
        (("--seeds", "0:2", "--seed", "1"), "say either --seeds FIRST:END or --seed N"),
        (("--seeds", "0:2", "--trace"), "--trace is for one --seed"),
        (("--trace",), "say either --seeds"),
        (("--seeds", "0:2", "--out", "never-made"), "--out is for one --seed"),
        (("--seed", "1", "--out", "/dev/null/x"), "--out /dev/null/x: Not a directory"),
        (("--seed", "1", "--out", "/"), "--out /: is there and not empty"),
        (("--seeds", "5"), "'5' is not FIRST:END, such as 0:1000"),
        (("--seeds", "5:5"), "'5:5' is not FIRST:END"),
        (("--seeds", "7:5"), "'7:5' is not FIRST:END"),
        (("--seeds", "-1:5"), "'-1:5' is not FIRST:END"),
        (("--seeds", "a:b"), "'a:b' is not FIRST:END"),
        (("--seeds", "1:2:3"), "'1:2:3' is not FIRST:END"),
        (("--seed", "-1"), "-1"),
        (("--seed", "1", "--minutes-per-seed", "0"), "0"),
        (("--seed", "1", "--jobs", "0"), "0"),
        (("--seed", "1", "--set", "colour=red"), "'colour' is not one of nodes, shards"),
        (("--seed", "1", "--set", "seed=2"), "'seed' is not one of nodes"),
        (("--seed", "1", "--set", "nodes"), "nodes: "),
        (("--seed", "1", "--set", "nodes=many"), "nodes: "),
        (("--seed", "1", "--set", "keep=1,x"), "keep: "),
        (("--seed", "1", "--set", "faults=kill,fire"), "'fire' is not one of kill, power"),
        (("--seed", "1", "--set", "workloads=chess"), "'chess' is not one of register, append"),
    ],
)
def test_bad_input_is_refused_with_a_reason(
    simulate: Simulate, arguments: tuple[str, ...], says: str
) -> None:
    """Exit code 2, one line that says what is wrong, and nothing is run."""
    runs = simulate(lambda _: False)
    assert says in call(*arguments, exit_code=2)
    assert runs == []


# --- one seed --------------------------------------------------------------------------------


def test_one_seed_says_what_it_was_and_how_it_went(simulate: Simulate) -> None:
    """Every option, the figures, and that nothing was wrong."""
    runs = simulate(lambda _: False)
    printed = call("--seed", "7", "--minutes-per-seed", "2")
    assert runs == [Options.of(7, 2.0)]
    assert runs[0].describe() in printed
    assert "100 operations" in printed
    assert "digest 0badcafe" in printed
    assert printed.endswith("no violation\n")


def test_options_can_be_set(simulate: Simulate) -> None:
    """Each by its own type."""
    runs = simulate(lambda _: False)
    changes = ("nodes=5", "operations_per_s=2.5", "faults=kill,power", "workloads=bank", "keep=1,4")
    call("--seed", "7", *(word for change in changes for word in ("--set", change)))
    (options,) = runs
    assert (options.nodes, options.operations_per_s) == (5, 2.5)
    assert (options.faults, options.workloads) == (("kill", "power"), ("bank",))
    assert options.keep == (1, 4)


def test_a_trace_is_alone_on_standard_output(simulate: Simulate) -> None:
    """So that two of them can be compared; all else goes to standard error."""
    simulate(lambda _: False)
    result = CliRunner().invoke(sim_command, ["--seed", "7", "--trace"])
    assert result.stdout == "the trace\n"
    assert "seed = 7" in result.stderr


def needs(options: Options) -> bool:
    """A bug that two faults of the plan bring out, whatever the clients do."""
    return {1, 4} <= {fault.number for fault in plan(options)} and options.minutes >= 1


SICK = ("--seed", "7", "--set", "fault_every_s=5.0")


def test_a_failure_is_said_with_the_command_that_replays_it(simulate: Simulate) -> None:
    """Exit code 1, the options, and the promise that was broken."""
    simulate(needs)
    printed = call(*SICK, exit_code=1)
    assert "VIOLATION at 60.000 s: the register lied" in printed
    assert "again with: raftkv sim --seed 7 --set fault_every_s=5.0\n" in printed
    assert "  fault_every_s = 5.0\n" in printed


def test_a_failure_is_made_smaller(simulate: Simulate) -> None:
    """The command of the smallest run that still fails, and the faults that it needs."""
    runs = simulate(needs)
    printed = call(*SICK, exit_code=1)
    (smaller,) = re.findall(r"^smaller: (.*)$", printed, re.MULTILINE)
    shrunk = replayed(smaller, runs)
    assert shrunk.keep == (1, 4)
    assert needs(shrunk)
    assert (len(shrunk.workloads), shrunk.clients) == (1, 1)
    for fault in plan(shrunk):
        assert f"  {fault}\n" in printed
    assert len(plan(shrunk)) == 2


def test_shrinking_can_be_left_out(simulate: Simulate) -> None:
    """One run, and no more."""
    runs = simulate(needs)
    assert "smaller" not in call(*SICK, "--no-shrink", exit_code=1)
    assert len(runs) == 1


def replayed(command: str, runs: Runs) -> Options:
    """The options that a printed command runs."""
    name, subcommand, *arguments = command.split(" ")
    assert (name, subcommand) == ("raftkv", "sim")
    runs.clear()
    call(*arguments, "--no-shrink", exit_code=1)
    (options,) = runs
    return options


OPTIONS = st.builds(
    Options.of,
    st.integers(0, 10_000),
    st.floats(0.01, 100),
    clients=st.integers(1, 10),
    operations_per_s=st.floats(0.1, 100),
    keep=st.none() | st.lists(st.integers(0, 99), max_size=3).map(tuple),
    faults=st.lists(st.sampled_from(FAULTS), unique=True).map(tuple),
    workloads=st.lists(st.sampled_from(WORKLOADS), unique=True, min_size=1).map(tuple),
)


@settings(max_examples=30)
@given(OPTIONS)
def test_a_printed_command_replays_exactly_what_was_run(options: Options) -> None:
    """To the last digit: another length of the run would be another run."""
    runs: Runs = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sim, "run", fake_run(lambda _: True, runs))
        assert replayed(command_of(options), runs) == options


def test_a_command_says_only_what_is_unusual() -> None:
    """What the seed decides, and the usual length, need not be said."""
    assert command_of(Options.of(3)) == "raftkv sim --seed 3"
    assert command_of(Options.of(3, 0.5)) == "raftkv sim --seed 3 --minutes-per-seed 0.5"


# --- many seeds ------------------------------------------------------------------------------


def test_all_seeds_of_the_range_are_run(simulate: Simulate) -> None:
    """The end is not included; the sums are shown."""
    runs = simulate(lambda _: False)
    printed = call("--seeds", "3:8", "--jobs", "1")
    assert [options.seed for options in runs] == [3, 4, 5, 6, 7]
    assert re.search(r"operations\s+│ 500 ", printed)
    assert re.search(r"speed\s+│ 150 times real time", printed)
    assert re.search(r"refused starts\s+│ WalDamaged 5 ", printed)


def test_the_first_failure_ends_the_campaign(simulate: Simulate) -> None:
    """Unless it is told to keep going; either way the exit code says that one failed."""
    runs = simulate(lambda options: options.seed in (4, 6))
    arguments = ("--seeds", "3:8", "--jobs", "1", "--no-shrink")
    printed = call(*arguments, exit_code=1)
    assert [options.seed for options in runs] == [3, 4]
    assert "again with: raftkv sim --seed 4\n" in printed
    runs.clear()
    printed = call(*arguments, "--keep-going", exit_code=1)
    assert len(runs) == 5
    assert "raftkv sim --seed 4\n" in printed
    assert "raftkv sim --seed 6\n" in printed


def test_sums_are_written_as_json(simulate: Simulate, tmp_path: Path) -> None:
    """Every figure of the table, and a command for each failure."""
    simulate(lambda options: options.seed == 1)
    path = tmp_path / "sums.json"
    call(
        "--seeds", "0:3", "--jobs", "1", "--keep-going", "--no-shrink", "--json", str(path),
        exit_code=1,
    )  # fmt: skip
    sums: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    assert sums == {
        "seeds": 3, "simulated_s": 660.0, "cpu_s": 6.0, "speed": 110.0,
        "operations": 300, "elections": 9, "outcomes": {"ok": 270, "fail": 30},
        "faults": {"kill": 6}, "without_effect": {}, "refused": {"WalDamaged": 3},
        "failed": [{"command": "raftkv sim --seed 1", "violation": "the register lied"}],
    }  # fmt: skip


def test_sums_without_failures_are_json_too(simulate: Simulate, tmp_path: Path) -> None:
    """An empty list, and exit code 0."""
    simulate(lambda _: False)
    path = tmp_path / "sums.json"
    call("--seeds", "0:2", "--jobs", "1", "--json", str(path))
    assert json.loads(path.read_text(encoding="utf-8"))["failed"] == []


def test_processes_share_the_seeds() -> None:
    """Real runs on two processes: each seed once, with the result that it has alone."""
    runs = [Options.of(seed, 0.05, nodes=3, replicas=3, shards=1) for seed in range(3)]
    alone = {report.options.seed: report.digest for report in campaign.run_seeds(runs, 1)}
    shared = list(campaign.run_seeds(runs, 2))
    assert sorted(report.options.seed for report in shared) == [0, 1, 2]
    assert {report.options.seed: report.digest for report in shared} == alone
    assert len(set(alone.values())) == 3


# --- what is kept ----------------------------------------------------------------------------


def test_a_seed_is_kept_as_a_history_and_a_report(tmp_path: Path) -> None:
    """The judge reads what was written, and finds what the run found; faults lie beside it."""
    out = tmp_path / "kept"
    said = call("--seed", "7", "--minutes-per-seed", "0.5", "--out", str(out))
    assert f"report: {out / 'report.html'}" in said
    judged = CliRunner().invoke(check_command, [str(out / "history.jsonl"), "--json"])
    document = json.loads(judged.stdout)
    operations = re.search(r"^(\d+) operations", said, re.MULTILINE)
    assert operations is not None
    assert (document["verdict"], document["operations"]) == ("valid", int(operations[1]))
    faults = faults_of(read_events(out / "events.jsonl"), start_ns=0, end_ns=10**12)
    seen = Counter(fault.f for fault in faults if fault.effective)
    assert f"faults that took effect {dict(seen)}" in said
    assert all(0 < fault.start_ns < fault.end_ns < 10**12 for fault in faults)
    assert "seed 7" in (out / "report.html").read_text(encoding="utf-8")
    assert (out / "again").read_text() == "raftkv sim --seed 7 --minutes-per-seed 0.5\n"


def test_what_is_kept_is_the_same_again(tmp_path: Path) -> None:
    """A seed decides everything, byte for byte; keeping it changes nothing."""
    arguments = ("--seed", "3", "--minutes-per-seed", "0.2")
    digests = set()
    for out in ("one", "other", None):
        said = call(*arguments, *(("--out", str(tmp_path / out)) if out else ()))
        digests.update(re.findall(r"digest (\w+)", said))
    assert len(digests) == 1
    for name in ("history.jsonl", "events.jsonl"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "other" / name).read_bytes()


def test_a_violation_is_in_the_report(tmp_path: Path) -> None:
    """Also one that no history shows."""
    event = Event(1, "invoke", "read", "k", None, 5)
    fault = BegunFault(PlannedFault(4, 0.1, "kill", 1.0, "x"), Effect(), begun_us=100)
    record = Record({"register": [event]}, [fault])
    command = "raftkv sim --seed 4"
    page = archive(record, tmp_path, title="it", command=command, findings=["n1 forgot a vote"])
    assert "n1 forgot a vote" in page.read_text(encoding="utf-8")
    assert 'class="verdict violation"' in page.read_text(encoding="utf-8")
    (kept,) = read_events(tmp_path / "events.jsonl")
    assert kept == FaultEvent(100_000, "kill", "start", 4, effective=False)
