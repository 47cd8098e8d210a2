"""The same seed does the same: in this process, in others, anywhere."""

import gc
import logging
import os
import subprocess
from pathlib import Path

import pytest

from raftkv.interpreter import PYTHON_M
from raftkv.sim.options import Options
from raftkv.sim.run import Report, run

BUSY = {"fault_every_s": 2.0, "shards": 1, "nodes": 3, "replicas": 3}
"""Many faults in little time, on clusters that are cheap to run."""

Traced = tuple[Report, list[str]]


def start(seed: int, hash_seed: str, directory: Path) -> "subprocess.Popen[bytes]":
    """A fresh process that traces a run, with many faults in little time."""
    directory.mkdir()
    changes = [word for name, value in BUSY.items() for word in ("--set", f"{name}={value}")]
    command = [*PYTHON_M, "raftkv.cli.main", "sim", "--seed", str(seed), "--trace"]
    return subprocess.Popen(  # noqa: S603 -- our own command
        [*command, "--minutes-per-seed", "0.3", *changes],
        cwd=directory,
        env=os.environ | {"PYTHONHASHSEED": hash_seed},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


@pytest.mark.parametrize("seed", [1, 8, 17])
def test_a_trace_is_the_same_in_any_process(seed: int, tmp_path: Path) -> None:
    """Byte for byte, with another string hash and in another working directory."""
    processes = [start(seed, hash_seed, tmp_path / hash_seed) for hash_seed in ("0", "4242")]
    (one, error), (other, _) = [process.communicate(timeout=100) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], error.decode()
    assert one == other
    assert len(one.splitlines()) > 1000
    assert b" fault " in one
    assert [*tmp_path.rglob("*.*")] == [], "and nothing was written there"


def replay(seed: int) -> Traced:
    """A run in this process, with its trace."""
    lines: list[str] = []
    return run(Options.of(seed, 0.1, **BUSY), lines.append), lines


@pytest.fixture(scope="module")
def five() -> Traced:
    """A run of seed 5."""
    return replay(5)


def test_a_run_does_not_depend_on_what_ran_before(five: Traced) -> None:
    """Nothing of one run is left for the next one in the same process."""
    first, lines = five
    other, _ = replay(6)
    again, same_lines = replay(5)
    assert lines == same_lines
    assert (first.digest, first.events) == (again.digest, again.events)
    assert first.digest != other.digest
    assert first.violation is other.violation is None


def test_looking_does_not_change_what_is_looked_at(five: Traced) -> None:
    """A run without a trace has the same digest as one with it."""
    assert run(Options.of(5, 0.1, **BUSY)).digest == five[0].digest


@pytest.mark.usefixtures("five")
def test_a_run_leaves_the_process_as_it_was() -> None:
    """Logging and the garbage collector are switched back on."""
    assert gc.isenabled()
    assert logging.root.manager.disable == logging.NOTSET
