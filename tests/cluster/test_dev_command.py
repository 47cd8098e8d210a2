"""``raftkv dev`` and ``raftkv serve`` as a person at a terminal uses them."""

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from raftkv import Client
from raftkv.engine.pidfile import holder
from raftkv.interpreter import PYTHON_M
from raftkv.testing.ports import PortReservation, is_free

pytestmark = pytest.mark.cluster

RAFTKV = [*PYTHON_M, "raftkv"]
NODES = ("n1", "n2", "n3")


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    """The first of three free ports in a row."""
    while True:
        reservation = PortReservation(1)
        (first,) = reservation.ports
        if is_free(first + 1) and is_free(first + 2):
            break
        reservation.release()
    yield first
    reservation.release()


@contextlib.contextmanager
def dev(directory: Path, port: int, *extra: str) -> Iterator["subprocess.Popen[str]"]:
    """Run ``raftkv dev`` until it says that it is ready; stopped with the block."""
    arguments = ["--nodes", "3", "--shards", "4", "--replicas", "3", *extra]
    command = [*RAFTKV, "dev", *arguments, "--http-port", str(port), "--data-dir", str(directory)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:  # noqa: S603
        assert process.stdout is not None
        for line in process.stdout:
            if line == "ready\n":
                break
        else:
            pytest.fail(f"dev ended with {process.wait()} before it was ready")
        try:
            yield process
        finally:
            process.send_signal(signal.SIGTERM)
            process.stdout.read()


def run(*arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run a raftkv command to its end."""
    command = [*RAFTKV, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)  # noqa: S603


def url(port: int) -> str:
    """The address of the node at a port."""
    return f"http://127.0.0.1:{port}"


def until(condition: object, what: str) -> None:
    """Wait until ``condition()`` holds."""
    deadline = time.monotonic() + 20
    assert callable(condition)
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def answers(port: int) -> bool:
    """Whether anybody accepts connections there."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


def test_a_cluster_from_one_command(tmp_path: Path, port: int) -> None:
    """Ready, used, a node killed and brought back by hand, stopped, started again with its data."""
    directory = tmp_path / "data"
    with dev(directory, port) as process:
        ports = [port, port + 1, port + 2]
        for number, name in enumerate(NODES):
            assert (directory / name / "node.toml").exists()
            pid = int((directory / name / "pid").read_text())
            assert os.getpgid(pid) == pid
            Client(url(ports[number])).put(f"from/{name}", name)

        os.kill(int((directory / "n2" / "pid").read_text()), signal.SIGKILL)
        until(lambda: not answers(ports[1]), "the HTTP workers of n2 end with their engine")
        time.sleep(0.5)
        assert process.poll() is None
        assert holder(directory / "n2" / "pid") is None, "dev does not restart a dead node"
        Client(url(ports[0]), timeout_s=20).put("without/n2", b"1")

        serve = [*RAFTKV, "serve", "--config", str(directory / "n2" / "node.toml")]
        by_hand = subprocess.Popen(serve, stderr=subprocess.DEVNULL)  # noqa: S603
        with by_hand:
            until(lambda: answers(ports[1]), "n2 answers again")
            entry = Client(url(ports[1]), timeout_s=20).get("without/n2")
            assert entry is not None
            process.send_signal(signal.SIGINT)
            assert process.wait(30) == 0
            assert by_hand.wait(30) == 0, "Ctrl-C stops the node that was started by hand too"
    assert not any(map(answers, ports))
    assert not list(directory.glob("*/pid"))

    with dev(directory, port):
        keys = [entry.key.decode() for entry in Client(url(port)).scan()]
        assert keys == ["from/n1", "from/n2", "from/n3", "without/n2"]


def test_what_a_shell_needs_is_printed(tmp_path: Path, port: int) -> None:
    """The line to export makes the command find this cluster, at whatever ports it is."""
    with dev(tmp_path / "data", port) as process:
        assert process.stdout is not None
        line = next(line for line in process.stdout if "export " in line).strip()
        assert line == "export RAFTKV_ENDPOINTS=" + ",".join(url(port + n) for n in range(3))
        value = line.partition("=")[2]
        command = [*RAFTKV, "put", "k", "v"]
        subprocess.run(command, check=True, env={**os.environ, "RAFTKV_ENDPOINTS": value})  # noqa: S603


def test_another_shape_on_an_old_directory_is_one_line(tmp_path: Path, port: int) -> None:
    """The line says what the directory was made with; nothing is destroyed."""
    directory = tmp_path / "data"
    with dev(directory, port):
        Client(url(port)).put("k", b"kept")
    for option, wrong in (("--nodes", "5"), ("--shards", "8"), ("--replicas", "1")):
        shape = {"--nodes": "3", "--shards": "4", "--replicas": "3", option: wrong}
        arguments = [text for pair in shape.items() for text in pair]
        refused = run("dev", *arguments, "--data-dir", str(directory), "--http-port", str(port))
        assert refused.returncode == 1
        assert f"was made with {option}" in refused.stderr
        assert refused.stderr.count("\n") == 1
    with dev(directory, port):
        entry = Client(url(port)).get("k")
        assert entry is not None
        assert entry.value == b"kept"


def test_a_port_in_use_is_one_line_and_leaves_nothing(tmp_path: Path, port: int) -> None:
    """The line names the node and the port."""
    with socket.create_server(("127.0.0.1", port + 1)):
        arguments = ["--nodes", "3", "--http-port", str(port), "--data-dir", str(tmp_path / "d")]
        refused = run("dev", *arguments)
    assert refused.returncode == 1
    assert refused.stderr.startswith(f"raftkv: n2: port {port + 1} is in use; choose another by ")
    assert not (tmp_path / "d").exists()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, port: int) -> Path:
    """The directory of a cluster of one node that has run and was stopped."""
    directory = tmp_path_factory.mktemp("made") / "d"
    reservation = PortReservation(1)
    command = ["--nodes", "1", "--shards", "1", "--http-port", str(reservation.ports[0])]
    arguments = [*RAFTKV, "dev", *command, "--data-dir", str(directory)]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as process:  # noqa: S603
        assert process.stdout is not None
        assert any(line == "ready\n" for line in process.stdout)
        process.send_signal(signal.SIGTERM)
        process.stdout.read()
    reservation.release()
    return directory / "n1"


def refused(directory: Path, *changes: tuple[str, str]) -> str:
    """Change node.toml, run ``raftkv serve``, and return the one line that it ends with."""
    file = directory / "node.toml"
    original = text = file.read_text()
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    file.write_text(text)
    try:
        done = run("serve", "--config", str(file))
    finally:
        file.write_text(original)
    assert done.returncode == 1, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("raftkv: ")]
    assert len(lines) == 1, done.stderr
    return lines[0]


def test_serve_refuses_another_cluster_node_or_directory(made: Path) -> None:
    """Wrong cluster id, wrong node name, a directory never initialised: named, nothing changed."""
    before = {path: path.stat().st_mtime_ns for path in (made / "data").rglob("*")}
    assert "belongs to cluster" in refused(made, ('id = "', 'id = "other-'))
    renamed = refused(made, ('name = "n1"', 'name = "n9"'), ("n1 = ", "n9 = "))
    assert "belongs to node" in renamed
    assert "is not initialised" in refused(made, ('data_dir = "data"', 'data_dir = "none"'))
    assert not (made / "none").exists()
    after = {path: path.stat().st_mtime_ns for path in (made / "data").rglob("*")}
    assert {path: time for path, time in before.items() if path.name != "lock"} == {
        path: time for path, time in after.items() if path.name != "lock"
    }


def test_serve_refuses_bad_configuration(made: Path) -> None:
    """Bad TOML, an unknown option and a missing file are one line that names them."""
    assert "not TOML" in refused(made, ("[cluster]", "[cluster"))
    assert "node.toml: http.worker: unknown option" in refused(
        made, ("[http]", "[http]\nworker = 1")
    )
    missing = run("serve", "--config", str(made / "none.toml"))
    assert (missing.returncode, missing.stderr.count("\n")) == (1, 1)
    assert "none.toml: No such file" in missing.stderr


def test_serve_refuses_a_port_in_use(made: Path) -> None:
    """For clients and for peers alike the option and the address are named."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        listen = refused(made, ("[http]", '[peer]\nlisten = "' + address + '"\n[http]'))
        assert f"peer.listen: cannot listen at {address}: Address already in use" in listen
        text = (made / "node.toml").read_text()
        old = next(line for line in text.splitlines() if line.startswith("listen = "))
        listen = refused(made, (old, f'listen = "{address}"'))
        assert f"http.listen: cannot listen at {address}: Address already in use" in listen


def test_init_refuses_a_directory_that_is_in_use_already(made: Path) -> None:
    """An identity is minted once; --if-needed is for those who want to repeat themselves."""
    again = run("init", "--config", str(made / "node.toml"))
    assert again.returncode == 1
    assert "is initialised already; nothing was changed" in again.stderr
    assert run("init", "--if-needed", "--config", str(made / "node.toml")).returncode == 0
