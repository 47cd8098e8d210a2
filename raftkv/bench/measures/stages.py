"""Where the processor time of a request goes: samples of stacks, put down to stages.

A sampling profiler (py-spy, from outside, without stopping the process) says in which function a
process is, a few hundred times a second. Each sample belongs to the stage of the innermost frame
that has one; what is left, native code below the event loop, is the loop's own work and the
kernel's: polling, receiving, and HTTP for a worker. A thread that waits for work or for the disk
uses no processor and does not count.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from raftkv.bench.load.run_load import LoadError

SAMPLES_PER_S = 400

WAITING = ("OwnThread._work", "RealFile.fdatasync")
"""Innermost frames of a thread that waits: for a job, and for the disk."""

LOOP = "event loop and kernel, HTTP in a worker"

STAGES: Sequence[tuple[str, tuple[str, ...]]] = (
    ("sending", ("FrameWriter.flush", "FrameWriter._flush_turn", "_send (raftkv/web")),
    ("answer: rendering", ("raftkv/web/api/responses.py", "raftkv/web/api/problems.py")),
    ("counting", ("raftkv/web/serve/worker_metrics.py", "raftkv/status/durations.py")),
    ("request: parsing, admission", ("raftkv/web/",)),
    ("RPC between worker and engine", ("raftkv/rpc/",)),
    ("links between engines", ("raftkv/engine/links.py", "raftkv/engine/connection.py")),
    (
        "routing",
        (
            "raftkv/engine/router.py",
            "raftkv/engine/partitioning.py",
            "raftkv/engine/local_service.py",
            "raftkv/engine/requests.py",
            "raftkv/engine/deadlines.py",
            "raftkv/engine/gather.py",
            "raftkv/engine/engine.py",
            "raftkv/core/ring.py",
            "raftkv/core/cluster_map.py",
        ),
    ),
    ("codec of entries", ("raftkv/core/batches.py",)),
    (
        "apply",
        ("raftkv/core/", "sortedcontainers/", "raftkv/raft/digests.py", "Group.apply_entry"),
    ),
    ("queue of proposals", ("raftkv/raft/proposals.py",)),
    ("confirming reads", ("raftkv/raft/reads.py",)),
    (
        "write-ahead log",
        (
            "raftkv/storage/",
            "raftkv/engine/jobs.py",
            "raftkv/raft/journal.py",
            "GroupHost._synced",
            "GroupHost._sync",
        ),
    ),
    ("Raft", ("raftkv/raft/", "pysyncobj/")),
    ("turns of the loop", ("raftkv/engine/group_host.py",)),
)
"""Stage, and what the name or the file of a frame of it contains; the first that fits counts."""


def stage_of(stack: str) -> str:
    """Return the stage of a stack: frames from the outermost to the innermost, with semicolons."""
    for frame in reversed(stack.split(";")):
        for stage, marks in STAGES:
            if any(mark in frame for mark in marks):
                return stage
    return LOOP


def shares(lines: Iterable[str]) -> dict[str, float]:
    """Return each stage's share of the samples, from py-spy's raw format (``stack count``)."""
    counts: Counter[str] = Counter()
    for line in lines:
        stack, _, count = line.rpartition(" ")
        if not any(mark in stack.rpartition(";")[2] for mark in WAITING):
            counts[stage_of(stack)] += int(count)
    total = sum(counts.values())
    return {stage: count / total for stage, count in counts.most_common()} if total else {}


def find_profiler() -> str:
    """Return the path of py-spy, beside this Python or elsewhere.

    Raises:
        LoadError: It is not installed.
    """
    beside_python = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    program = shutil.which("py-spy", path=beside_python)
    if program is None:
        raise LoadError("py-spy is not installed: in a checkout, pip install '.[bench]'")
    return program


class Profilers:
    """py-spy on several processes at once, for a while."""

    def __init__(self, processes: Mapping[str, int], seconds: float) -> None:
        """Begin to sample ``processes`` (name and process id).

        Raises:
            LoadError: py-spy is not installed.
        """
        program = find_profiler()
        self._directory = tempfile.TemporaryDirectory(prefix="raftkv-profile-")
        self._running: dict[str, tuple[subprocess.Popen[bytes], Path]] = {}
        for name, pid in processes.items():
            path = Path(self._directory.name, name.replace(" ", "-"))
            command = [
                *(program, "record", "--pid", str(pid), "--duration", str(round(seconds))),
                *("--rate", str(SAMPLES_PER_S), "--full-filenames", "--nolineno"),
                *("--format", "raw", "--output", str(path)),
            ]
            process = subprocess.Popen(  # noqa: S603 -- our own command
                command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
            )
            self._running[name] = (process, path)

    def shares(self) -> dict[str, dict[str, float]]:
        """Wait for all, and return each process's shares.

        Raises:
            LoadError: py-spy is not there, or may not look at the processes.
        """
        found = {}
        for name, (process, path) in self._running.items():
            _, complaint = process.communicate()
            if process.returncode != 0 or not path.exists():
                reason = complaint.decode(errors="replace").strip().splitlines()[-1:]
                raise LoadError(f"py-spy cannot profile the {name}: {' '.join(reason)}")
            found[name] = shares(path.read_text().splitlines())
        return found

    def close(self) -> None:
        """End what still runs."""
        for process, _ in self._running.values():
            if process.poll() is None:
                process.kill()
                process.communicate()
        self._directory.cleanup()
