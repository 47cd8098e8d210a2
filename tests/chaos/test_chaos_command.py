"""``raftkv chaos`` as a person runs it: what it refuses, and that it leaves nothing behind."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from unittest.mock import ANY

import pytest
from click.testing import CliRunner

from raftkv.bench.processes import descendants_of
from raftkv.chaos import disks, raftkv_target
from raftkv.chaos.errors import ChaosError
from raftkv.chaos.etcd_target import EtcdTarget
from raftkv.chaos.plan import FAULTS
from raftkv.chaos.run import Progress, Run, planned, run_chaos
from raftkv.chaos.settings import Settings
from raftkv.chaos.waiting import wait_until
from raftkv.check.verdict import Verdict
from raftkv.interpreter import PYTHON_M
from raftkv.testing import LocalCluster

CHAOS = (*PYTHON_M, "raftkv", "chaos")
WAIT_S = 240.0
PAUSE_FIRST_SEED = 5
ALL_FAULTS_SEED = 29
"""Its plan for half a minute has every kind of fault."""


def run(*arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run the command to its end."""
    return subprocess.run(  # noqa: S603 -- our own command
        [*CHAOS, *arguments], capture_output=True, text=True, check=False, timeout=WAIT_S
    )


def test_the_help_names_every_fault() -> None:
    """Without a cluster being started."""
    done = run("--help")
    assert done.returncode == 0
    assert all(kind in done.stdout for kind in FAULTS)


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (["--faults", "meteor"], "--faults meteor"),
        (["--faults", "partition", "--target", "etcd"], "--faults partition"),
        (["--faults", "slow", "--nodes", "1"], "--faults slow"),
        (["--replicas", "5"], "--replicas 5"),
        (["--faults", "kill", "--endpoints", "http://127.0.0.1:1"], "--faults kill"),
        (["--endpoints", "http://127.0.0.1:1"], "http://127.0.0.1:1"),
        (["--endpoints", "nonsense"], "nonsense"),
        (["--endpoints", ""], "--endpoints: '' is not a URL"),
    ],
)
def test_what_cannot_run_is_one_line_and_code_3(
    arguments: Sequence[str], names: str, tmp_path: Path
) -> None:
    """It names the option; code 3 is no verdict."""
    done = run("--out", str(tmp_path / "out"), "--duration", "1", *arguments)
    assert done.returncode == 3, done.stderr
    *_, line = done.stderr.splitlines()
    assert line.startswith("raftkv: ")
    assert names in line
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists(), "the same command must be possible again"


def test_a_directory_in_use_is_left_alone(tmp_path: Path) -> None:
    """The history in it may be the only one."""
    (tmp_path / "history.jsonl").write_text("precious")
    done = run("--out", str(tmp_path), "--duration", "1")
    assert done.returncode == 3
    assert "not empty" in done.stderr
    assert (tmp_path / "history.jsonl").read_text() == "precious"


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"workload": "bank", "faults": (), "clients": 3},
        {"nodes": 5, "replicas": 5, "snapshot_after_entries": 20},
        {"system": "etcd", "faults": ("kill",)},
        {"endpoints": ("http://127.0.0.1:1", "http://127.0.0.1:2"), "faults": ()},
    ],
)
def test_the_command_to_run_it_again_asks_for_the_same(
    change: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is written down is what the command line understands."""
    from raftkv.cli import chaos  # noqa: PLC0415 -- parsed here, not run

    settings = Settings(out=Path("x"), seed=5, **change)  # type: ignore[arg-type]
    _, _, *arguments = settings.arguments()
    seen: list[Settings] = []

    def keep(asked: Settings) -> int:
        seen.append(asked)
        return 0

    monkeypatch.setattr(chaos, "_run", keep)
    monkeypatch.setattr(chaos, "_end_like_ctrl_c", lambda: None)
    monkeypatch.setattr(chaos, "private_mounts", lambda: None)
    with pytest.raises(SystemExit):
        chaos.chaos_command.main([*arguments, "--out", "/x"])
    assert seen[0].arguments() == settings.arguments()


def asked_for(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> tuple[Settings, str]:
    """What the command would run, and what it says before."""
    from raftkv.cli import chaos  # noqa: PLC0415 -- parsed here, not run

    seen: list[Settings] = []

    def keep(asked: Settings) -> int:
        asked.check()
        seen.append(asked)
        return 0

    monkeypatch.setattr(chaos, "_run", keep)
    monkeypatch.setattr(chaos, "_end_like_ctrl_c", lambda: None)
    monkeypatch.setattr(chaos, "private_mounts", lambda: None)
    done = CliRunner().invoke(chaos.chaos_command, [*arguments, "--out", "/x"])
    assert done.exit_code == 0, done.output
    return seen[0], done.stderr


@pytest.mark.parametrize("arguments", [(), ("--faults", "all")])
def test_what_the_machine_cannot_do_is_left_out_in_one_line(
    arguments: Sequence[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An ordinary user without libfaketime has all other faults, and is told of these two."""
    monkeypatch.setattr(disks, "can_mount", lambda: False)
    monkeypatch.setattr(raftkv_target, "FAKETIME", ())
    settings, said = asked_for(monkeypatch, *arguments)
    assert settings.faults == tuple(kind for kind in FAULTS if kind not in {"clock", "disk"})
    assert said == (
        "left out: clock (needs libfaketime: apt-get install libfaketime); "
        "disk (needs root that may mount)\n"
    )


def test_a_machine_that_can_do_all_leaves_nothing_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """And says nothing; one node has no links, and nobody to refuse it."""
    monkeypatch.setattr(disks, "can_mount", lambda: True)
    monkeypatch.setattr(raftkv_target, "FAKETIME", (Path("/"),))
    assert asked_for(monkeypatch) == (Settings(Path("/x"), seed=ANY, faults=FAULTS), "")
    alone, said = asked_for(monkeypatch, "--nodes", "1")
    left_out = {"partition", "slow", "lossy", "reset", "forwarder", "wipe"}
    assert set(alone.faults) == set(FAULTS) - left_out
    assert said == (
        "left out: forwarder, wipe (there are no other nodes: use --nodes 3); "
        "partition, slow, lossy, reset (one node has no links: use --nodes 3)\n"
    )


@pytest.mark.parametrize("kind", ["disk", "clock"])
def test_a_fault_that_was_named_is_not_left_out(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who names it is told why it cannot be."""
    monkeypatch.setattr(disks, "can_mount", lambda: False)
    monkeypatch.setattr(raftkv_target, "FAKETIME", ())
    with pytest.raises(ChaosError, match=f"--faults {kind}: needs .*, or leave it out"):
        Settings(Path("x"), seed=1, faults=("kill", kind)).check()


def test_not_every_root_may_mount(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor is a user who may not one who finds out in the middle of a run."""
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(shutil, "which", lambda _: "/bin/false")

    def refuse(_directory: Path, _size: str) -> None:
        raise ChaosError("permission denied")

    monkeypatch.setattr(disks, "mount", refuse)
    assert not disks.can_mount()


# --- real runs --------------------------------------------------------------------------------


def mounts() -> list[str]:
    """What is mounted, as this process sees it."""
    return sorted(line.split()[1] for line in Path("/proc/mounts").read_text().splitlines())


def shared_memory() -> list[str]:
    """What libfaketime may have left."""
    return sorted(path.name for path in Path("/dev/shm").glob("*faketime*"))


def events(out: Path) -> list[dict[str, object]]:
    """Faults as written down so far, whole lines only."""
    file = out / "events.jsonl"
    text = file.read_text() if file.exists() else ""
    found = [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
    return [event for event in found if event["kind"] == "fault"]


def is_alive(pid: int) -> bool:
    """Whether a process runs (a zombie does not)."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


@pytest.mark.machine_wide("compares mounts and shared memory before and after")
@pytest.mark.cluster
@pytest.mark.timeout(900)
def test_a_run_with_every_fault_is_valid(tmp_path: Path) -> None:
    """Every fault of the plan is seen to take effect, and nothing is left behind."""
    before = (mounts(), shared_memory())
    out = tmp_path / "out"
    settings = Settings(out=out, seed=ALL_FAULTS_SEED, duration_s=32, election_timeout_ms=500)
    rounds = planned(settings, ("n1", "n2", "n3"))
    wanted = [step.kind for one in rounds for step in one.steps]
    assert set(wanted) == set(FAULTS), "take another seed"
    done = subprocess.run(  # noqa: S603 -- our own command
        [*CHAOS, *settings.arguments()[2:], "--out", str(out)],
        capture_output=True,
        text=True,
        check=False,
        timeout=800,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    summary = json.loads((out / "run.json").read_text())
    assert summary["verdict"] == "valid"
    assert summary["faults"] == {kind: wanted.count(kind) for kind in wanted}
    assert summary["effective"] == summary["faults"]
    assert summary["operations"]["ok"] > 300
    assert (out / "plan").read_text().splitlines()[1:] == [str(one) for one in rounds]
    assert "</html>" in (out / "report.html").read_text()
    assert sorted(path.name for path in (out / "logs").glob("*.log")) == [
        "n1.log",
        "n2.log",
        "n3.log",
    ]
    assert not (out / "cluster").exists()
    assert (mounts(), shared_memory()) == before


@pytest.mark.machine_wide("compares mounts and shared memory before and after")
@pytest.mark.cluster
@pytest.mark.timeout(900)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_run_leaves_nothing_behind(tmp_path: Path, number: signal.Signals) -> None:
    """Not a process, not a mount, not a piece of shared memory, however it was ended.

    It is interrupted while a node is frozen, which cannot notice anything by itself.
    """
    before = (mounts(), shared_memory())
    out = tmp_path / "out"
    faults = ["pause", "slow", "clock", *(["disk"] if disks.can_mount() else [])]
    settings = Settings(out=out, seed=PAUSE_FIRST_SEED, duration_s=300, faults=faults)
    assert planned(settings, ("n1", "n2", "n3"))[0].steps[0].kind == "pause", "take another seed"
    command = [*CHAOS, *settings.arguments()[2:], "--out", str(out)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)  # noqa: S603 -- our own
    try:
        assert wait_until(lambda: _is_paused(out), WAIT_S), "no node was frozen"
        family = descendants_of(process.pid)
        assert len(family) > 3, "three nodes and a proxy"
        process.send_signal(number)
        process.wait(WAIT_S)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == (-number if number == signal.SIGKILL else 3)
    assert wait_until(lambda: not any(map(is_alive, family)), WAIT_S), "processes are left"
    assert (mounts(), shared_memory()) == before


def _is_paused(out: Path) -> bool:
    paused = [event["phase"] for event in events(out) if event["f"] == "pause"]
    return paused[-1:] == ["start"]


def chaos(
    out: Path, progress: Callable[[Progress], None] = lambda _: None, **change: object
) -> Run:
    """A short run in this process."""
    asked = {"seed": 3, "duration_s": 6.0, "clients": 6, "faults": (), **change}
    return run_chaos(Settings(out=out, **asked), progress)  # type: ignore[arg-type]


@pytest.mark.cluster
@pytest.mark.timeout(900)
def test_a_cluster_that_runs_already_is_used_and_not_hurt(
    raftkv_cluster: LocalCluster, tmp_path: Path
) -> None:
    """Clients only; a second run on the same keys is refused."""
    pids = [raftkv_cluster.pid(name) for name in raftkv_cluster.names]
    told: list[Progress] = []
    done = chaos(tmp_path / "one", told.append, endpoints=raftkv_cluster.urls)
    assert done.verdict is Verdict.VALID, done.judgement.reasons
    assert done.counts["ok"] > 20
    assert {now.phase for now in told} >= {"running", "reading all keys", "judging"}
    assert max(now.elapsed_s for now in told) >= 5.5
    with pytest.raises(ChaosError, match="has keys that begin with"):
        chaos(tmp_path / "two", endpoints=raftkv_cluster.urls)
    assert [raftkv_cluster.pid(name) for name in raftkv_cluster.names] == pids


@pytest.mark.cluster
@pytest.mark.timeout(900)
def test_etcd_passes(tmp_path: Path) -> None:
    """The same clients, faults and judge find nothing wrong with a system known well."""
    done = chaos(tmp_path / "out", system="etcd", faults=tuple(EtcdTarget.supported))
    assert done.verdict is Verdict.VALID, done.judgement.reasons
    assert done.faults
    assert done.counts["ok"] > 20


@pytest.mark.cluster
@pytest.mark.timeout(900)
def test_nodes_that_are_run_otherwise_than_usual(tmp_path: Path) -> None:
    """The command of the nodes can be given, which is how a bug gets into them in a test."""
    mark = tmp_path / "started"
    script = tmp_path / "nodes.py"
    script.write_text(
        "import pathlib, sys\n"
        f"pathlib.Path({str(mark)!r}).open('a').write(' '.join(sys.argv[1:]) + '\\n')\n"
        "from raftkv.cli.main import main\n"
        "main()\n"
    )
    done = chaos(tmp_path / "out", command=(sys.executable, str(script)), workload="register")
    assert done.verdict is Verdict.VALID, done.judgement.reasons
    assert mark.read_text().count("serve ") == 3
