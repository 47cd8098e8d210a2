"""LocalCluster as a keeper of processes, ports and files; the nodes here only pretend."""

import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from raftkv.engine.pidfile import PidFile, holder
from raftkv.testing import ClusterError, LocalCluster
from raftkv.testing.layout import Layout, LayoutError, Shape
from raftkv.testing.ports import PortReservation, is_free

FAKE_NODE = (sys.executable, str(Path(__file__).with_name("fake_node.py")))

Make = Callable[..., LocalCluster]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """A cluster of pretended nodes in a directory of its own."""

    def make_cluster(**settings: Any) -> LocalCluster:
        return LocalCluster(**{"directory": tmp_path / "c", "command": FAKE_NODE, **settings})

    return make_cluster


def process_state(pid: int) -> str:
    """The kernel's letter for what a process does, empty if it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return ""


def is_gone(pid: int) -> bool:
    """Whether a process has ended; one that nobody has waited for yet has."""
    return process_state(pid) in {"", "Z"}


def python(program: str) -> "subprocess.Popen[bytes]":
    """Run a program in an interpreter of its own."""
    command = [sys.executable, "-c", program]
    return subprocess.Popen(command, stdout=subprocess.PIPE)  # noqa: S603 -- our own program


def worker_of(cluster: LocalCluster, name: str) -> int:
    """The pid of the pretended HTTP worker of a node."""
    return int((cluster.node(name).directory / "worker").read_text())


def test_a_repository_takes_nothing_of_a_cluster(make: Make, tmp_path: Path) -> None:
    """``git add .`` beside a cluster's directory must not take its secret along."""
    cluster = make()
    cluster.start()
    cluster.stop()
    assert (cluster.directory / "cluster.secret").exists()
    (tmp_path / "own").touch()
    for command in (["init", "-q"], ["add", "."]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)  # noqa: S603, S607 -- ours
    listed = subprocess.run(
        ["git", "ls-files"],  # noqa: S607 -- same
        cwd=tmp_path,
        check=True,
        capture_output=True,
        text=True,
    )
    assert listed.stdout.split() == ["own"]


def test_start_makes_the_files_and_stop_ends_every_process(make: Make) -> None:
    """Configuration, secret, pid and log are where they are said to be."""
    with make() as cluster:
        assert cluster.names == ("n1", "n2", "n3")
        for node in cluster.layout.nodes:
            assert int(node.pid_file.read_text()) == cluster.pid(node.name)
            assert os.getpgid(cluster.pid(node.name)) == cluster.pid(node.name)
            assert "fake node serves" in node.log.read_text()
        secret = cluster.directory / "cluster.secret"
        assert secret.stat().st_mode & 0o777 == 0o600
        pids = [cluster.pid(name) for name in cluster.names]
    assert all(is_gone(pid) for pid in pids)
    assert all(is_free(node.http_port) for node in cluster.layout.nodes)


def test_a_temporary_directory_goes_away_unless_the_test_failed() -> None:
    """What a failed test leaves behind is what its author needs."""
    with LocalCluster(nodes=1, command=FAKE_NODE) as cluster:
        pass
    assert not cluster.directory.exists()
    with pytest.raises(ZeroDivisionError), LocalCluster(nodes=1, command=FAKE_NODE) as failing:
        raise ZeroDivisionError
    assert failing.node("n1").log.exists()
    shutil.rmtree(failing.directory)


def test_kill_ends_the_whole_node_and_restart_brings_it_back(make: Make) -> None:
    """Like a machine that loses its power: no process of the node is left."""
    with make() as cluster:
        old, worker = cluster.pid("n2"), worker_of(cluster, "n2")
        cluster.kill("n2")
        cluster.wait_for(lambda: is_gone(worker), "the worker is gone")
        assert is_gone(old)
        assert cluster.process("n2").exit_code == -signal.SIGKILL
        assert cluster.process("n1").is_running
        cluster.restart("n2")
        assert cluster.pid("n2") != old
        assert cluster.is_ready("n2")


def test_pause_freezes_every_process_of_a_node_and_resume_thaws_it(make: Make) -> None:
    """A frozen node answers nobody; a thawed one goes on."""
    with make(nodes=1) as cluster:
        pids = [cluster.pid("n1"), worker_of(cluster, "n1")]
        cluster.pause("n1")
        cluster.wait_for(lambda: all(process_state(pid) == "T" for pid in pids), "frozen")
        cluster.resume("n1")
        cluster.wait_for(lambda: cluster.is_ready("n1"), "thawed")


def test_stop_reaches_a_frozen_node(make: Make) -> None:
    """A test that forgets to resume still ends."""
    with make(nodes=1) as cluster:
        cluster.pause("n1")
    assert cluster.process("n1").exit_code == 0


def test_stop_node_gives_the_exit_code(make: Make) -> None:
    """A clean stop is 0."""
    with make(nodes=1) as cluster:
        assert cluster.stop_node("n1") == 0
        with pytest.raises(ClusterError, match="no node runs"):
            cluster.wait_ready()


def test_a_node_that_ends_at_once_is_reported_with_what_it_said(make: Make) -> None:
    """The error names the node and its code and shows the log."""
    cluster = make(nodes=1, options={"fake": {"exits": 3}})
    with pytest.raises(ClusterError, match=r"n1 ended with code 3\n(?s:.*)told to fail"), cluster:
        pass


def test_a_node_that_never_gets_ready_is_reported_in_time(make: Make) -> None:
    """The wait is bounded and everything is stopped afterwards."""
    cluster = make(nodes=1, options={"fake": {"ready": False}}, ready_timeout_s=0.3)
    with pytest.raises(ClusterError, match="not ready in time: n1"), cluster:
        pass
    assert not cluster.process("n1").is_running


def test_a_node_that_cannot_be_initialized_is_one_line(make: Make) -> None:
    """The line is that of raftkv init."""
    cluster = make(nodes=1, options={"fake": {"init_fails": True}})
    with pytest.raises(ClusterError, match=r"^told not to$"):
        cluster.start()
    assert Layout.open(cluster.directory).shape.initialized is False  # type: ignore[union-attr]


def test_the_same_directory_is_the_same_cluster_again(make: Make) -> None:
    """Ports, secret and identity stay; nothing is initialised a second time."""
    with make() as first:
        ports = first.layout.shape.http_ports
    secret = (first.directory / "cluster.secret").read_text()
    marker = first.node("n1").directory / "data" / "kept"
    marker.touch()
    (first.node("n2").directory / "data").rmdir()
    with make() as second:
        assert second.layout.shape.http_ports == ports
    assert marker.exists()
    assert (first.directory / "cluster.secret").read_text() == secret
    # A lost data directory is for the operator to notice, not to be replaced silently.
    assert not (first.node("n2").directory / "data").exists()


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"nodes": 5, "replicas": 3}, "--nodes 3, not 5"),
        ({"shards": 8}, "--shards 4, not 8"),
        ({"replicas": 1}, "--replicas 3, not 1"),
    ],
)
def test_another_shape_on_an_old_directory_is_refused(
    make: Make, settings: dict[str, int], reason: str
) -> None:
    """The error says what the directory was made with, and changes nothing."""
    with make() as cluster:
        pass
    before = (cluster.directory / "cluster.json").read_text()
    with pytest.raises(LayoutError, match=reason):
        make(**settings).prepare()
    assert (cluster.directory / "cluster.json").read_text() == before


def test_a_directory_of_somebody_else_is_left_alone(make: Make, tmp_path: Path) -> None:
    """A directory with other things in it is refused, and so is a file."""
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "thesis.tex").touch()
    with pytest.raises(LayoutError, match="not empty and was not made by raftkv dev"):
        make().prepare()
    with pytest.raises(LayoutError, match="Not a directory"):
        make(directory=tmp_path / "c" / "thesis.tex").prepare()
    (tmp_path / "c" / "cluster.json").write_text("{}")
    with pytest.raises(LayoutError, match="cannot be used"):
        make().prepare()


def test_a_directory_whose_cluster_runs_is_refused(make: Make) -> None:
    """Not with the number of some port that nobody chose, and nothing in it is written anew."""
    with make(nodes=1) as running:
        config = running.node("n1").config.read_text()
        with pytest.raises(LayoutError, match=f"n1 runs as process {running.pid('n1')}"):
            make(nodes=1, http_ports=[1]).start()
        assert running.node("n1").config.read_text() == config


def test_a_port_in_use_is_found_before_anything_is_written(make: Make) -> None:
    """A refused start leaves no directory behind."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        cluster = make(nodes=1, http_ports=[port])
        with pytest.raises(LayoutError, match=f"n1: port {port} is in use"):
            cluster.start()
        assert not cluster.directory.exists()
    cluster.stop()


def test_other_ports_for_clients_can_be_asked_for_later(make: Make) -> None:
    """The cluster moves to them; what its nodes call each other stays."""
    with make(nodes=1) as cluster:
        peer_port = cluster.node("n1").peer_port
    reservation = PortReservation(1)
    try:
        with make(nodes=1, http_ports=reservation.ports) as moved:
            assert moved.node("n1").http_port == reservation.ports[0]
            assert moved.node("n1").peer_port == peer_port
            assert moved.is_ready("n1")
    finally:
        reservation.release()


def test_a_node_started_again_by_hand_is_stopped_too(make: Make) -> None:
    """Ctrl-C of raftkv dev stops all, also what raftkv serve has brought back."""
    with make(nodes=1) as cluster:
        cluster.kill("n1")
        node = cluster.node("n1")
        by_hand = subprocess.Popen(  # noqa: S603 -- our own program
            [*FAKE_NODE, "serve", "--config", str(node.config)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            process_group=0,
        )
        cluster.wait_for(lambda: cluster.is_ready("n1"), "served by hand")
    assert by_hand.wait(5) == 0
    assert by_hand.stdin is not None
    by_hand.stdin.close()


def test_nodes_do_not_outlive_a_killed_starter(tmp_path: Path) -> None:
    """When the process that started the cluster is killed, the nodes see it and stop."""
    program = (
        "import sys, time; from raftkv.testing import LocalCluster\n"
        f"c = LocalCluster({str(tmp_path / 'c')!r}, nodes=1, command={FAKE_NODE!r})\n"
        "c.start(); print(c.pid('n1'), flush=True); time.sleep(600)"
    )
    with python(program) as starter:
        assert starter.stdout is not None
        pid = int(starter.stdout.readline())
        starter.kill()
    waiter = LocalCluster(tmp_path / "unused", nodes=1)
    waiter._processes = {}
    waiter._layout = Layout(tmp_path, Shape("x", 0, 1, 1, (), ()))
    waiter.wait_for(lambda: is_gone(pid), "the node is gone")


def test_reserved_ports_are_given_once_until_released() -> None:
    """Two test runs at the same time never get the same port."""
    first, second = PortReservation(50), PortReservation(50)
    assert not set(first.ports) & set(second.ports)
    assert all(map(is_free, first.ports))
    first.release()
    second.release()


def test_the_pid_file_tells_who_holds_it(tmp_path: Path) -> None:
    """A second holder is refused, a killed one's file is free, a stale number means nothing."""
    path = tmp_path / "pid"
    program = (
        "import sys, time; from pathlib import Path; from raftkv.engine.pidfile import PidFile\n"
        f"with PidFile(Path({str(path)!r})): print('held', flush=True); time.sleep(600)"
    )
    assert holder(path) is None
    with python(program) as other:
        assert other.stdout is not None
        other.stdout.readline()
        assert holder(path) == other.pid
        with pytest.raises(Exception, match=f"runs already, as process {other.pid}"):
            PidFile(path).__enter__()
        other.kill()
    assert path.exists()
    assert holder(path) is None
    with PidFile(path):
        assert path.read_text() == f"{os.getpid()}\n"
    assert not path.exists()
