"""The same seed does the same: in this process, in others, anywhere."""

import gc
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from raftkv.sim.options import Options
from raftkv.sim.run import Report, run

BUSY = {"fault_every_s": 2.0, "operations_per_s": 10.0}


def start(seed: int, hash_seed: str, directory: Path) -> "subprocess.Popen[bytes]":
    """A fresh process that traces a run, with many faults in little time."""
    directory.mkdir()
    changes = [word for name, value in BUSY.items() for word in ("--set", f"{name}={value}")]
    command = [sys.executable, "-m", "raftkv.cli.main", "sim", "--seed", str(seed), "--trace"]
    return subprocess.Popen(  # noqa: S603 - our own command
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


def replay(seed: int) -> tuple[Report, list[str]]:
    """A run in this process, with its trace."""
    lines: list[str] = []
    return run(Options.of(seed, 0.2, **BUSY), lines.append), lines


def test_a_run_does_not_depend_on_what_ran_before() -> None:
    """Nothing of one run is left for the next one in the same process."""
    first, lines = replay(5)
    other, _ = replay(6)
    again, same_lines = replay(5)
    assert lines == same_lines
    assert (first.digest, first.events) == (again.digest, again.events)
    assert first.digest != other.digest
    assert first.violation is other.violation is None


def test_looking_does_not_change_what_is_looked_at() -> None:
    """A run without a trace has the same digest as one with it."""
    traced, _ = replay(5)
    assert run(Options.of(5, 0.2, **BUSY)).digest == traced.digest


def test_a_run_leaves_the_process_as_it_was() -> None:
    """Logging and the garbage collector are switched back on."""
    replay(5)
    assert gc.isenabled()
    assert logging.root.manager.disable == logging.NOTSET
