"""What the systemd unit forbids, a node does not need.

There is no systemd here to start the unit with, so its two restrictions that can break a program
without a word are tried by themselves: no memory that is writable and executable
(``MemoryDenyWriteExecute``), by the kernel's own switch for it, and only the system calls of
``SystemCallFilter``, by comparing it with what strace sees.
"""

import re
import shutil
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from raftkv.interpreter import PYTHON_M
from raftkv.testing import LocalCluster
from tests.deploy.deployment import DEPLOY, run_tool

pytestmark = pytest.mark.cluster

PR_SET_MDWE, PR_MDWE_REFUSE_EXEC_GAIN = 65, 1
DENYING = (
    "import ctypes, os, sys; "
    f"sys.exit(71) if ctypes.CDLL(None).prctl({PR_SET_MDWE}, {PR_MDWE_REFUSE_EXEC_GAIN}, 0, 0, 0) "
    "else os.execv(sys.argv[1], sys.argv[1:])"
)
"""A program that denies itself writable and executable memory, for good, and becomes another."""

KEYS = 40


def unit_lines(option: str) -> list[str]:
    """The values that the unit gives an option."""
    text = (DEPLOY / "systemd" / "raftkv.service").read_text()
    return re.findall(rf"^{option}=(.*)$", text, re.MULTILINE)


def calls_of(name: str) -> set[str]:
    """The system calls of a systemd group, or the one that is named."""
    if not name.startswith("@"):
        return {name}
    shown = run_tool("systemd-analyze", "syscall-filter", name)
    assert shown.returncode == 0, shown.stderr
    members = [line.strip() for line in shown.stdout.splitlines()[1:]]
    return set().union(*(calls_of(one) for one in members if one and not one.startswith("#")))


def allowed_calls() -> set[str]:
    """What the lines of the unit let through, in their order."""
    allowed: set[str] = set()
    for line in unit_lines("SystemCallFilter"):
        groups: set[str] = set().union(*(calls_of(one) for one in line.lstrip("~").split()))
        allowed = allowed - groups if line.startswith("~") else allowed | groups
    return allowed


def denies_executable_memory() -> bool:
    """Whether this kernel has the switch (Linux 6.3)."""
    probe = "import ctypes, sys; sys.exit(ctypes.CDLL(None).prctl(66, 0, 0, 0, 0) < 0)"
    return subprocess.run([sys.executable, "-c", probe], check=False).returncode == 0  # noqa: S603


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A node's whole life under strace, and under the kernel's switch if it has that."""
    directory = tmp_path_factory.mktemp("sandbox")
    file = directory / "trace"
    denying = [sys.executable, "-c", DENYING] if denies_executable_memory() else []
    strace = shutil.which("strace")
    assert strace is not None, "strace is missing: run tests/install-tools"
    command = (strace, "-D", "-f", "-qq", "-o", str(file), *denying, *PYTHON_M, "raftkv")
    options = {"limits": {"snapshot_after_entries": 5}}
    with LocalCluster(
        directory / "cluster", nodes=1, shards=1, options=options, command=command
    ) as cluster:
        with cluster.client() as client:
            for number in range(KEYS):
                client.put(f"key/{number}", b"value")
            assert len(list(client.scan("key/"))) == KEYS
        snapshots = cluster.node("n1").directory / "data" / "snapshots"
        cluster.wait_for(lambda: any(snapshots.iterdir()), "a snapshot")
        for page in ("/", "/metrics", "/v1/status", "/openapi.json"):
            with urllib.request.urlopen(cluster.urls[0] + page, timeout=10) as answer:  # noqa: S310
                assert answer.status == 200
        assert cluster.stop_node("n1") == 0
    return file


def test_a_node_lives_without_writable_executable_memory(trace: Path) -> None:
    """It wrote, read, made a snapshot and stopped cleanly where such memory is refused."""
    assert unit_lines("MemoryDenyWriteExecute") == ["yes"]
    if not denies_executable_memory():
        pytest.skip("this kernel has no switch for it (Linux 6.3 has)")
    # Older straces do not know its name.
    assert re.search(r"prctl\((PR_SET_MDWE|0x41)\b.*\) = 0$", trace.read_text(), re.MULTILINE)


def test_a_node_asks_for_no_system_call_that_the_unit_forbids(trace: Path) -> None:
    """Engine, HTTP workers and snapshot writer together use only what passes the filter."""
    used = set(re.findall(r"^\d+ +([a-z_0-9]+)\(", trace.read_text(), re.MULTILINE))
    assert {"fdatasync", "clone3", "accept4"} & used
    assert used - allowed_calls() == set()
