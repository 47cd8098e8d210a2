"""Samples of stacks, put down to stages."""

import shutil

import pytest
from click.testing import CliRunner

from raftkv.bench.measures.stages import LOOP, shares, stage_of
from raftkv.cli.bench import bench_command

RUN = "main (/site/raftkv/cli/main.py);Runner.run (asyncio/runners.py)"


@pytest.mark.parametrize(
    ("frames", "stage"),
    [
        ("Group.tick (/x/raftkv/raft/group.py);monotonic (/x/raftkv/raft/clock.py)", "Raft"),
        ("Group.tick (/x/raftkv/raft/group.py);add (/x/sortedcontainers/sortedlist.py)", "apply"),
        ("_turn (/x/raftkv/engine/group_host.py);helper (/lib/heapq.py)", "turns of the loop"),
        ("FrameWriter.flush (/x/raftkv/rpc/framing.py)", "sending"),
        ("FrameDecoder.frames (/x/raftkv/rpc/framing.py)", "RPC between worker and engine"),
        ("parse_put (/x/raftkv/web/api/requests.py)", "request: parsing, admission"),
        ("poll (/lib/selectors.py)", LOOP),
    ],
)
def test_the_innermost_frame_that_has_a_stage_decides(frames: str, stage: str) -> None:
    """Helpers from elsewhere count for whoever calls them."""
    assert stage_of(f"{RUN};{frames}") == stage


def test_shares_are_of_all_samples_but_those_that_wait() -> None:
    """A thread in fdatasync uses no processor."""
    lines = [
        f"{RUN} 30",
        f"{RUN};Replica.tick (/x/raftkv/raft/replica.py) 10",
        "SyncJob.run (/x/raftkv/storage/wal.py);RealFile.fdatasync (/x/raftkv/storage/disk.py) 500",
        "OwnThread._work (/x/raftkv/engine/jobs.py) 500",
    ]
    assert shares(lines) == {LOOP: 0.75, "Raft": 0.25}
    assert shares([]) == {}


@pytest.mark.parametrize("command", [["profile"], ["generator"]])
def test_a_tool_that_is_missing_is_said_before_anything_is_measured(
    command: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No cluster is started, no limit measured."""
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
    refused = CliRunner().invoke(bench_command, command)
    assert refused.exit_code == 1
    (line,) = refused.stderr.splitlines()
    assert line.startswith(("raftkv: py-spy is not installed", "raftkv: there is no wrk"))
