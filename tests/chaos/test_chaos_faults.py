"""What faults are made of, each piece by itself, and the nemesis on nodes that do nothing."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from raftkv.chaos import disks
from raftkv.chaos.agreement import disagreements
from raftkv.chaos.faults import forwarder
from raftkv.chaos.faults.corruption import flip, used_bytes
from raftkv.chaos.faults.processes import state_of
from raftkv.chaos.nemesis import Nemesis
from raftkv.chaos.plan import Round, Step
from raftkv.chaos.recorder import EventLog
from raftkv.chaos.waiting import wait_until
from raftkv.check.report import FaultEvent, read_events
from raftkv.client import Client
from raftkv.testing.launch import COMMAND, launcher
from raftkv.testing.processes import NodeProcess

SLEEPER = (sys.executable, "-c", "import time; time.sleep(300)")
READER = """
import socket, sys
server = socket.create_server(("127.0.0.1", 0))
print(server.getsockname()[1], flush=True)
connection, _ = server.accept()
sys.stdin.read(1)
connection.recv(100)
print(flush=True)
sys.stdin.read()
"""
"""Accepts a connection, and reads from it when it is told to."""
WAIT_S = 20.0
HOLD_S = 0.5


class IdleProcess(NodeProcess):
    """A process that waits."""

    def __init__(self, name: str, directory: Path) -> None:
        super().__init__(name, directory / name, directory / f"{name}.log")
        self._command = SLEEPER


class IdleNodes:
    """Nodes that do nothing, for faults of processes."""

    title = "idle"
    supported = frozenset({"kill", "storm", "stop", "pause", "forwarder"})
    clean_exits = frozenset({-signal.SIGTERM})
    shards = 1
    election_timeout_s = 0.1

    def __init__(self, directory: Path) -> None:
        self.names = ("n1", "n2", "n3")
        self.down: set[str] = set()
        self._processes = {name: IdleProcess(name, directory) for name in self.names}
        self.start()

    def start(self) -> None:
        """Start all."""
        for name in self.names:
            self.start_node(name)

    def close(self) -> None:
        """End all."""
        for process in self._processes.values():
            process.kill()

    def connect(self, client: int) -> Client:
        """Nobody is there."""
        raise NotImplementedError

    def leads(self, name: str) -> Mapping[int, int] | None:
        """The first leads."""
        return {0: 1} if name == "n1" else {}

    def disagreements(self) -> list[str]:
        """They hold nothing."""
        return []

    def keep_logs(self, directory: Path) -> None:
        """They say nothing."""

    def process(self, name: str) -> NodeProcess:
        """One of them."""
        return self._processes[name]

    def start_node(self, name: str) -> None:
        """Start one."""
        self._processes[name].start()
        self.down.discard(name)

    def committed(self) -> Mapping[int, int]:
        """Nothing is."""
        return {}

    def late(self, goal: Mapping[int, int]) -> str:
        """Whether one is down."""
        assert not goal
        down = [name for name in self.names if not self._processes[name].is_running]
        return f"{down} down" if down else ""


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[IdleNodes]:
    """Three of them."""
    idle = IdleNodes(tmp_path)
    yield idle
    idle.close()


def step(kind: str, variant: str) -> Step:
    """A fault; n2 comes first, and the shard's leader is n1."""
    return Step(kind, variant, ("n2", "n3", "n1"), shard=0, seed=1)


def run(nodes: IdleNodes, path: Path, *steps: Step) -> tuple[list[FaultEvent], list[str]]:
    """One round; what was written down, and what was found."""
    with EventLog(path / "events.jsonl") as events:
        does = Nemesis(nodes, lambda _: "n1", events, patience_s=1.0)
        does.run(Round(at_s=0, hold_s=HOLD_S, offset_s=0.1, steps=steps))
    told = [event for event in read_events(path / "events.jsonl") if isinstance(event, FaultEvent)]
    return told, does.findings


@pytest.mark.parametrize(
    ("kind", "variant", "target"),
    [
        ("kill", "one", "n2"),
        ("kill", "leader", "n1"),
        ("kill", "minority", "n2"),
        ("kill", "all", "n2, n3, n1"),
        ("pause", "one", "n2"),
        ("stop", "leader", "n1"),
    ],
)
def test_a_fault_of_processes_is_seen_and_healed(
    nodes: IdleNodes, tmp_path: Path, kind: str, variant: str, target: str
) -> None:
    """It hits whom it means, its effect is seen, and everyone runs in the end."""
    before = {name: nodes.process(name).pid for name in nodes.names}
    (began, ended), findings = run(nodes, tmp_path, step(kind, variant))
    assert not findings
    assert (began.phase, ended.phase, ended.effective) == ("start", "stop", True)
    assert began.target == target
    assert ended.time_ns - began.time_ns >= HOLD_S * 1e9
    assert not nodes.late({})
    assert not nodes.down
    for name in nodes.names:
        assert state_of(nodes.process(name).pid) in {"S", "R", "D"}
        hit = name in target and kind != "pause"
        assert (nodes.process(name).pid != before[name]) == hit


def test_a_storm_kills_one_node_several_times(nodes: IdleNodes, tmp_path: Path) -> None:
    """And lets it run in the end."""
    with EventLog(tmp_path / "events.jsonl") as events:
        does = Nemesis(nodes, lambda _: "n1", events)
        does.run(Round(at_s=0, hold_s=4.0, offset_s=0, steps=(step("storm", "one"),)))
        assert events.effective == {"storm": 1}
    assert not does.findings
    assert not nodes.late({})


def test_the_second_fault_of_a_round_hits_another_node(nodes: IdleNodes, tmp_path: Path) -> None:
    """A frozen node that is killed would show only one of the two."""
    told, findings = run(nodes, tmp_path, step("pause", "one"), step("kill", "one"))
    assert not findings
    assert [(event.f, event.target) for event in told if event.phase == "start"] == [
        ("pause", "n2"),
        ("kill", "n3"),
    ]
    assert all(event.effective for event in told if event.phase == "stop")


def test_a_node_that_ends_by_itself_is_a_finding(nodes: IdleNodes, tmp_path: Path) -> None:
    """Nobody killed it: it crashed, and is started again so that the run can go on."""
    nodes.process("n3").log.write_text("all is well\nit broke\n")
    os.kill(nodes.process("n3").pid, signal.SIGSEGV)
    _, findings = run(nodes, tmp_path, step("pause", "one"))
    assert findings == ["n3 ended by itself with code -11; it last said: it broke"]
    assert nodes.process("n3").is_running


def test_a_cluster_that_does_not_come_back_is_a_finding(
    nodes: IdleNodes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the round says so: more of them would tell nothing."""
    monkeypatch.setattr(nodes, "late", lambda _goal: "n2 is behind in shard 0")
    with EventLog(tmp_path / "events.jsonl") as events:
        does = Nemesis(nodes, lambda _: "n1", events, recover_s=0.2)
        steps = (step("kill", "one"),)
        assert not does.run(Round(at_s=0, hold_s=HOLD_S, offset_s=0, steps=steps))
    assert [line.partition(": ")[2] for line in does.findings] == ["n2 is behind in shard 0"]


def test_a_node_that_does_not_end_cleanly_is_a_finding(nodes: IdleNodes, tmp_path: Path) -> None:
    """SIGTERM must lead to an orderly end."""
    nodes.clean_exits = frozenset({0})
    (_, ended), findings = run(nodes, tmp_path, step("stop", "one"))
    assert findings == ["n2 was asked to stop and ended with code -15"]
    assert ended.effective is False


def test_faults_are_taken_back_when_the_run_is_interrupted(
    nodes: IdleNodes, tmp_path: Path
) -> None:
    """A frozen node would be left behind for ever."""

    def interrupt() -> None:
        raise KeyboardInterrupt

    with EventLog(tmp_path / "events.jsonl") as events, pytest.raises(KeyboardInterrupt):
        Nemesis(nodes, lambda _: None, events, tick=interrupt).run(
            Round(at_s=0, hold_s=60.0, offset_s=0, steps=(step("pause", "one"),))
        )
    assert state_of(nodes.process("n2").pid) != "T"


def test_a_flipped_bit_is_flipped_back(tmp_path: Path) -> None:
    """Exactly one bit differs in between."""
    file = tmp_path / "wal-0.log"
    content = b"abc\0def" + bytes(4096)
    file.write_bytes(content)
    flip(file, 4, 3)
    damaged = file.read_bytes()
    assert [
        (n, a ^ b) for n, (a, b) in enumerate(zip(content, damaged, strict=True)) if a != b
    ] == [(4, 8)]
    flip(file, 4, 3)
    assert file.read_bytes() == content
    assert used_bytes(file) == 7, "what was allocated ahead is no place for damage"


def test_a_launched_process_ends_with_its_starter() -> None:
    """Also when the starter is killed and the process is frozen."""
    script = (
        "import subprocess, sys;"
        f"child = subprocess.Popen({launcher(SLEEPER, None)!r});"
        "print(child.pid, flush=True); child.wait()"
    )
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as starter:  # noqa: S603 -- our own
        assert starter.stdout is not None
        pid = int(starter.stdout.readline())
        assert wait_until(
            lambda: "time.sleep" in _command_of(pid) and "launch" not in _command_of(pid), WAIT_S
        )
        os.kill(pid, signal.SIGSTOP)
        starter.kill()
    assert wait_until(lambda: state_of(pid) in {"", "Z"}, WAIT_S)


def _command_of(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()


@pytest.mark.machine_wide("sets a clock: shared memory")
def test_a_launched_clock_follows_its_file(tmp_path: Path) -> None:
    """The wall clock jumps while the process runs; the monotonic clock does not."""
    from raftkv.chaos.raftkv_target import faketime  # noqa: PLC0415 -- fails where it is missing

    script = (
        "import time, sys\n"
        "for line in sys.stdin:\n"
        "    print(time.time(), time.monotonic(), flush=True)\n"
    )
    (tmp_path / "clock").write_text("+0\n")
    command = launcher((sys.executable, "-c", script, str(tmp_path / "node.toml")), faketime())
    with subprocess.Popen(  # noqa: S603 -- our own
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        stdin, stdout = process.stdin, process.stdout

        def clocks() -> tuple[float, float]:
            stdin.write("\n")
            wall, monotonic = map(float, stdout.readline().split())
            return wall - time.time(), monotonic - time.monotonic()

        assert abs(clocks()[0]) < 60
        (tmp_path / "clock").write_text("-86400\n")
        assert wait_until(lambda: abs(clocks()[0] + 86_400) < 60, WAIT_S)
        assert abs(clocks()[1]) < 60
        stdin.close()


def test_the_launcher_is_this_packages_own() -> None:
    """It needs nothing installed."""
    assert COMMAND[0] == sys.executable


@pytest.mark.machine_wide("mounts")
@pytest.mark.skipif(not disks.can_mount(), reason="only root can mount a small disk")
def test_a_filled_disk_takes_nothing_more(tmp_path: Path) -> None:
    """Not a byte, until the ballast is removed; what was there stays there."""
    data = tmp_path / "data"
    data.mkdir()
    (data / "kept").write_text("here")
    disks.move_to_small_disk(data, "1m")
    try:
        ballast = disks.fill(data)
        with pytest.raises(OSError, match="No space left"):
            (data / "more").write_bytes(bytes(10))
        (data / "more").unlink(missing_ok=True)
        ballast.unlink()
        (data / "more").write_bytes(bytes(10))
        assert (data / "kept").read_text() == "here"
    finally:
        disks.unmount(data)
    assert not any(data.iterdir())


class TellsOfShards:
    """Answers as a cluster does that comes to rest after a while."""

    def __init__(self, *answers: list[dict[str, object]]) -> None:
        self._answers = list(answers)

    def shards(self) -> dict[str, object]:
        """The next answer; the last one again and again."""
        rows = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        return {"shards": rows}


def shard(first: tuple[int, str], second: tuple[int, str]) -> dict[str, object]:
    """A shard whose two replicas are at these entries with these digests."""
    members = {
        name: {"applied_index": index, "digest": digest}
        for name, (index, digest) in zip(("n1", "n2"), (first, second), strict=True)
    }
    return {"shard": 0, "replicas": ["n1", "n2"], "members": members, "digest_mismatch": False}


def found(*answers: list[dict[str, object]]) -> list[str]:
    """The disagreements of a cluster that answers so."""
    return disagreements(TellsOfShards(*answers), timeout_s=0.5)  # type: ignore[arg-type]


def test_replicas_are_compared_once_they_are_at_the_same_entry() -> None:
    """Before that they must differ, and it means nothing."""
    assert found([shard((4, "x"), (5, "y"))], [shard((5, "y"), (5, "y"))]) == []


def test_replicas_that_differ_at_the_same_entry_are_told_of() -> None:
    """Nothing explains that but a fault."""
    assert "differ at the same entry" in found([shard((5, "x"), (5, "y"))])[0]


def test_replicas_that_never_come_to_rest_are_told_of() -> None:
    """A cluster without faults and load must come to rest."""
    assert "stay at different entries" in found([shard((4, "x"), (5, "y"))])[0]


def test_a_replica_that_says_nothing_is_told_of() -> None:
    """It cannot be compared."""
    silent = shard((5, "x"), (5, "x"))
    silent["replicas"] = ["n1", "n2", "n3"]
    assert "no word of the replica on n3" in found([silent])[0]


def test_a_cluster_that_tells_of_no_shard_is_not_taken_for_one_that_agrees() -> None:
    """Nothing to compare is not the same as nothing that differs."""
    assert "speaks of 0 shards" in found([])[0]


def test_every_shard_must_be_told_of() -> None:
    """One that is missing may be the one that differs."""
    cluster = TellsOfShards([shard((5, "x"), (5, "x"))])
    (line,) = disagreements(cluster, timeout_s=0.5, shards=2)  # type: ignore[arg-type]
    assert "speaks of 1 shards, not 2" in line


# --- a forwarder that lives again --------------------------------------------------------------


def test_a_forwarder_is_killed_and_started_again_while_the_leader_hangs(
    nodes: IdleNodes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is seen in its next life with the leader stopped; then all go on, and none is missing."""
    for name, span in (("YOUNG_S", 0.1), ("FILL_S", (0.1, 0.1)), ("ASK_S", (0.2, 0.2))):
        monkeypatch.setattr(forwarder, name, span)
    first = {name: nodes.process(name).pid for name in nodes.names}
    told, findings = run(nodes, tmp_path, step("forwarder", "leader"))
    fault = told[-1]
    assert findings == []
    assert fault.effective
    assert "n2 killed and started again" in fault.detail
    assert "n1 hung" in fault.detail
    assert {name for name in nodes.names if nodes.process(name).pid != first[name]} == {"n2"}
    assert all(state_of(nodes.process(name).pid) != "T" for name in nodes.names)


def test_what_nobody_reads_is_counted_in_the_sockets_of_a_process_group() -> None:
    """The bytes that the kernel has taken for them; none once they are read."""
    with subprocess.Popen(  # noqa: S603 -- our own command
        (sys.executable, "-c", READER),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        process_group=0,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            port = int(process.stdout.readline())
            with socket.create_connection(("127.0.0.1", port)) as sender:
                sender.sendall(bytes(77))
                assert wait_until(lambda: forwarder.waiting_bytes(process.pid) == 77, WAIT_S)
                process.stdin.write(b"x")
                process.stdin.flush()
                process.stdout.readline()
                assert forwarder.waiting_bytes(process.pid) == 0
        finally:
            process.kill()
