"""The order of the real processes' system calls: durable on a majority, then answered."""

import signal
import subprocess
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from raftkv import Client
from raftkv.testing import LocalCluster
from tests.cluster.strace_log import OPTIONS, nodes_that_synced_first, parse

pytestmark = pytest.mark.cluster

ENGINES = {"n1": frozenset({11, 12}), "n2": frozenset({21, 22}), "n3": frozenset({31})}
WORKER = frozenset({15, 16})

IN_ORDER = r"""
15 100.000000 write(12, "\3\225\304\4the-key\304the-value", 83) = 83 <0.000043>
12 100.010000 pwrite64(15, "\27)V\220the-value\300", 144, 1001) = 144 <0.000050>
12 100.011000 fdatasync(15 <unfinished ...>
21 100.012000 pwrite64(14, "\27)V\220the-value\300", 144, 1001 <unfinished ...>
12 100.013000 <... fdatasync resumed>) = 0 <0.002000>
21 100.012500 <... pwrite64 resumed>) = 144 <0.000500>
22 100.014000 fdatasync(14)   = 0 <0.001000>
31 100.014000 pwrite64(15, "the-value", 9, 0) = 9 <0.000100>
16 100.020000 writev(24, [{"HTTP/1.1 201 Created\r\n"}, {"{\"key\":\"the-key\"}"}], 2) = 9 <0.0001>
31 100.021000 fdatasync(15) = 0 <0.000100>
"""


def judged(log: str) -> set[str]:
    """The nodes that were in time, by this log."""
    calls = parse(log.splitlines())
    return nodes_that_synced_first(calls, ENGINES, WORKER, key="the-key", value="the-value")


def test_the_analysis_knows_who_was_in_time() -> None:
    """Two of three have synced before the answer began to leave, one only after it."""
    assert judged(IN_ORDER) == {"n1", "n2"}


@pytest.mark.parametrize(
    ("what", "old", "new"),
    [
        ("the answer leaves first", "16 100.020000", "16 100.013500"),
        ("the sync fails", "fdatasync(14)   = 0", "fdatasync(14)   = -1 EIO (I/O error)"),
        ("another file is synced", "fdatasync(14)", "fdatasync(13)"),
        ("the sync began before the write's end", "22 100.014000", "22 100.012400"),
        ("it is not synced", "22 100.014000 fdatasync(14)   = 0 <0.001000>", ""),
        ("another value is written", '21 100.012000 pwrite64(14, "\\27)V\\220the-value',
         '21 100.012000 pwrite64(14, "\\27)V\\220the-other'),
    ],
)  # fmt: skip
def test_the_analysis_sees_what_is_out_of_order(what: str, old: str, new: str) -> None:
    """Each of the steps of the second node is needed, in this order."""
    assert old in IN_ORDER
    assert judged(IN_ORDER.replace(old, new)) == {"n1"}, what


def threads_of(pid: int) -> frozenset[int]:
    """The process's threads as they are now."""
    return frozenset(int(entry.name) for entry in Path(f"/proc/{pid}/task").iterdir())


def children_of(pid: int) -> list[int]:
    """The process's children."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return [int(child) for task in tasks for child in (task / "children").read_text().split()]


@contextmanager
def traced(pids: list[int], log: Path) -> Iterator[None]:
    """Let strace watch these processes and all their threads."""
    attach = [argument for pid in pids for argument in ("-p", str(pid))]
    command = ["strace", *OPTIONS, "-o", str(log), *attach]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as strace:  # noqa: S603
        assert strace.stderr is not None
        attached = 0
        while attached < len(pids):
            line = strace.stderr.readline()
            if "Operation not permitted" in line:
                strace.kill()
                pytest.skip("this machine does not let processes be traced")
            assert line, f"strace ended with {strace.wait()}"
            attached += "attached" in line
        try:
            yield
        finally:
            strace.send_signal(signal.SIGINT)
            strace.stderr.read()


def test_an_answer_leaves_after_two_disks_have_the_write(
    raftkv_cluster: LocalCluster, tmp_path: Path
) -> None:
    """Under strace: the value's pwrite, fdatasync = 0 of that file, on two nodes; then the 201."""
    cluster, log = raftkv_cluster, tmp_path / "strace.log"
    key, value = f"key-{uuid.uuid4().hex}", uuid.uuid4().hex
    with Client(cluster.node("n1").url, timeout_s=20) as client:
        client.put("warm", "up")  # the threads that sync exist from the first write on
        (worker,) = children_of(cluster.pid("n1"))
        engines = {name: cluster.pid(name) for name in cluster.names}
        with traced([*engines.values(), worker], log):
            client.put(key, value)
            # Nothing is missing from the log that happened before this moment.
            wanted = f'{{\\"key\\":\\"{key}\\"'
            deadline = time.monotonic() + 20
            while wanted not in log.read_text(errors="replace"):
                assert time.monotonic() < deadline, "strace does not show the answer"
                time.sleep(0.05)
            threads = {name: threads_of(pid) for name, pid in engines.items()}
            workers = threads_of(worker)
    calls = parse(log.read_text(errors="replace").splitlines())
    in_time = nodes_that_synced_first(calls, threads, workers, key=key, value=value)
    assert len(in_time) >= 2, log.read_text(errors="replace")
