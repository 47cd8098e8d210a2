"""HTTP workers: spawned with their configuration, replaced when they die, stopped in the end."""

import asyncio
import errno
import gc
import json
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import uvloop

from raftkv.engine import workers as workers_module
from raftkv.engine.config import (
    Address,
    ClusterOptions,
    HttpOptions,
    LogOptions,
    NodeConfig,
    NodeOptions,
    SecurityOptions,
    TokenOptions,
)
from raftkv.engine.network import TcpNetwork
from raftkv.engine.workers import HttpWorkers, ListenError, listen, web_config
from raftkv.rpc.web_config import WebConfig

# Writes what it was told to a file named by its pid, then waits; ignores SIGTERM if asked to.
WORKER = """
import json, os, pathlib, signal, socket, sys
directory, mode = sys.argv[1:]
told = json.load(sys.stdin)
told["listening"] = socket.socket(fileno=told["listen_fd"]).getsockname()[1]
if mode == "stubborn":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
path = pathlib.Path(directory, f"{os.getpid()}.json")
path.with_suffix(".new").write_text(json.dumps(told))
path.with_suffix(".new").rename(path)
if mode == "dying":
    sys.exit(3)
signal.pause()
signal.pause()
"""

TOKEN = TokenOptions(role="read", sha256="0" * 64, name="reporting")


def config_for(directory: Path, workers: int = 2) -> NodeConfig:
    """One node with HTTP on a port that the test has bound already."""
    return NodeConfig(
        cluster=ClusterOptions(id="test", nodes={"n1": "127.0.0.1:1"}, replicas=1),
        node=NodeOptions(name="n1", data_dir=str(directory)),
        http=HttpOptions(workers=workers, connections_max=1001),
        security=SecurityOptions(secret="s" * 32, tokens=(TOKEN,)),
    )


def free_listener() -> socket.socket:
    """A listening socket on a port of the kernel's choice."""
    return socket.create_server(("127.0.0.1", 0))


def workers_in(
    directory: Path,
    mode: str = "steady",
    workers: int = 2,
    ended: Callable[[str], None] = lambda _: None,
    reports: Callable[[int], int] | None = None,
) -> HttpWorkers:
    """Workers that run the little program above."""
    return HttpWorkers(
        config_for(directory, workers),
        free_listener(),
        engine_socket="/some/engine.sock",
        engine_token="token",
        command=(sys.executable, "-c", WORKER, str(directory), mode),
        ended=ended,
        reports=reports,
    )


async def until(condition: Callable[[], bool]) -> None:
    """Wait until the condition holds; the test's own time limit ends a wait in vain."""
    while not condition():  # noqa: ASYNC110 -- what is awaited happens in other processes
        await asyncio.sleep(0.01)


def reports(directory: Path) -> list[Path]:
    """What the workers have written."""
    return list(directory.glob("*.json"))


def test_every_worker_gets_its_configuration_and_the_socket(tmp_path: Path) -> None:
    """Configuration comes over standard input, the one listening socket by inheritance."""

    async def scenario() -> None:
        group = workers_in(tmp_path)
        await group.start()
        await until(lambda: len(reports(tmp_path)) == 2)
        told = [json.loads(path.read_text()) for path in reports(tmp_path)]
        assert {document["worker"] for document in told} == {0, 1}
        assert {document["engine_token"] for document in told} == {"token"}
        assert len({document["listening"] for document in told}) == 1
        await group.stop()
        assert group.pids == ()

    asyncio.run(scenario())


def test_the_configuration_is_one_that_the_front_end_takes(tmp_path: Path) -> None:
    """What the engine writes is read as it was meant, within every bound of its members."""
    document = web_config(
        config_for(tmp_path), worker=1, listen_fd=5, engine_socket="/s", engine_token="t"
    )
    told = msgspec.json.decode(msgspec.json.encode(document), type=WebConfig)
    assert told == document
    assert (told.node_name, told.worker, told.listen_fd) == ("n1", 1, 5)
    assert told.data_dir == config_for(tmp_path).node.data_dir
    assert [token.role for token in told.tokens] == ["read"]
    assert told.limits.connections_max == 501


def test_every_node_of_a_cluster_has_the_same_key_for_cursors(tmp_path: Path) -> None:
    """It follows from the cluster's secret, or from its name where it has none, and hides it."""

    def key(**changes: Any) -> str:
        config = msgspec.structs.replace(config_for(tmp_path), **changes)
        return web_config(
            config, worker=0, listen_fd=5, engine_socket="/s", engine_token="t"
        ).cursor_key

    both = ClusterOptions(id="test", nodes={"n1": "127.0.0.1:1", "n2": "127.0.0.1:2"}, replicas=1)
    other_node = NodeOptions(name="n2", data_dir="/elsewhere")
    assert key() == key(cluster=both) == key(cluster=both, node=other_node)
    keys = {
        key(),
        key(security=SecurityOptions(secret="t" * 32)),
        key(security=SecurityOptions()),
        key(
            security=SecurityOptions(),
            cluster=ClusterOptions(id="other", nodes={"n1": "127.0.0.1:1"}, replicas=1),
        ),
    }
    assert len(keys) == 4
    assert ("s" * 32).encode().hex() not in keys


def test_a_worker_that_dies_is_replaced(tmp_path: Path) -> None:
    """After kill -9 of a worker another one runs with the same number, and operators hear of it."""
    ended: list[str] = []

    async def scenario() -> None:
        group = workers_in(tmp_path, workers=1, ended=ended.append)
        await group.start()
        await until(lambda: len(reports(tmp_path)) == 1)
        (first,) = group.pids
        os.kill(first, signal.SIGKILL)
        await until(lambda: len(reports(tmp_path)) == 2)
        (second,) = group.pids
        assert second != first
        await group.stop()

    asyncio.run(scenario())
    assert ended == ["worker 0, with code -9"]


def test_a_worker_that_keeps_dying_is_replaced_ever_more_slowly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The back-off doubles up to its bound, so that a broken worker does not eat the machine."""
    pauses: list[float] = []

    async def note(self: HttpWorkers, seconds: float) -> bool:
        pauses.append(seconds)
        return len(pauses) == 8

    monkeypatch.setattr(HttpWorkers, "_stopped_within", note)

    async def scenario() -> None:
        group = workers_in(tmp_path, "dying", workers=1)
        await group.start()
        await until(lambda: len(pauses) == 8)
        await group.stop()

    asyncio.run(scenario())
    assert pauses == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]


def test_a_worker_that_cannot_be_replaced_at_once_is_replaced_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine that has no descriptor, process or memory for it now has one in a while."""
    spawn = asyncio.create_subprocess_exec
    refused: list[object] = []

    async def refuse(*command: object, **_: object) -> asyncio.subprocess.Process:
        refused.append(command)
        raise OSError(errno.EMFILE, "Too many open files")

    async def scenario() -> None:
        group = workers_in(tmp_path, workers=1)
        await group.start()
        await until(lambda: len(reports(tmp_path)) == 1)
        monkeypatch.setattr(asyncio, "create_subprocess_exec", refuse)
        os.kill(group.pids[0], signal.SIGKILL)
        await until(lambda: len(refused) == 2)
        monkeypatch.setattr(asyncio, "create_subprocess_exec", spawn)
        await until(lambda: len(reports(tmp_path)) == 2)
        await group.stop()

    asyncio.run(scenario())


def test_a_worker_that_cannot_be_started_at_first_is_started_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine is up by then, and its peers rely on it."""
    spawn = asyncio.create_subprocess_exec
    refused: list[object] = []

    async def refuse(*command: object, **_: object) -> asyncio.subprocess.Process:
        refused.append(command)
        raise OSError(errno.EAGAIN, "Resource temporarily unavailable")

    async def scenario() -> None:
        group = workers_in(tmp_path, workers=1)
        monkeypatch.setattr(asyncio, "create_subprocess_exec", refuse)
        await group.start()
        await until(lambda: len(refused) == 2)
        monkeypatch.setattr(asyncio, "create_subprocess_exec", spawn)
        await until(lambda: len(reports(tmp_path)) == 1)
        await group.stop()

    asyncio.run(scenario())


def test_a_watcher_that_fails_is_seen(tmp_path: Path) -> None:
    """Its worker would never be replaced, and nobody would know."""
    seen: list[BaseException] = []

    def broken(_: str) -> None:
        raise ZeroDivisionError

    async def scenario() -> None:
        asyncio.get_running_loop().set_exception_handler(
            lambda _, context: seen.append(context["exception"])
        )
        group = workers_in(tmp_path, workers=1, ended=broken)
        await group.start()
        await until(lambda: len(reports(tmp_path)) == 1)
        os.kill(group.pids[0], signal.SIGKILL)
        await until(lambda: bool(seen))
        await group.stop()

    asyncio.run(scenario())
    assert [type(error) for error in seen] == [ZeroDivisionError]


def test_a_worker_that_hangs_is_killed_and_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that reports goes on; one that reports nothing for long does not."""
    monkeypatch.setattr(workers_module, "LOOK_S", 0.01)
    monkeypatch.setattr(workers_module, "SILENT_LOOKS_MAX", 20)
    heard = {0: 0, 1: 0}
    ended: list[str] = []

    def reported(worker: int) -> int:
        heard[worker] += worker  # the first hangs, the second does not
        return heard[worker]

    async def scenario() -> None:
        group = workers_in(tmp_path, ended=ended.append, reports=reported)
        await group.start()
        await until(lambda: len(ended) == 2)
        await group.stop()

    asyncio.run(scenario())
    assert ended[:2] == ["worker 0, with code -9"] * 2


def test_workers_that_die_at_once_leave_no_exception_behind(tmp_path: Path) -> None:
    """What nobody has seen of a pipe or a process would stop the node."""
    seen: list[dict[str, object]] = []
    ended: list[str] = []

    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: seen.append(context))
        group = HttpWorkers(
            config_for(tmp_path, 1),
            free_listener(),
            engine_socket="/" + "s" * 200_000,  # more than a pipe takes
            engine_token="token",
            command=("/bin/false",),
            ended=ended.append,
        )
        await group.start()
        await until(lambda: len(ended) == 3)
        await group.stop()
        gc.collect()
        await asyncio.sleep(0)

    uvloop.run(scenario())
    assert seen == []


def test_a_worker_that_does_not_stop_is_killed(tmp_path: Path) -> None:
    """A stop ends within its grace, whatever a worker does with SIGTERM."""

    async def scenario() -> None:
        group = workers_in(tmp_path, "stubborn", workers=1)
        await group.start()
        await until(lambda: len(reports(tmp_path)) == 1)
        (pid,) = group.pids
        await group.stop(grace_s=0.1)
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)

    asyncio.run(scenario())


def test_an_address_in_use_is_one_line() -> None:
    """The line names the option, the address and the reason."""
    with free_listener() as taken:
        address = Address(*taken.getsockname())
        with pytest.raises(ListenError) as caught:
            listen("http.listen", address, patience_s=0)
    assert str(caught.value) == f"http.listen: cannot listen at {address}: Address already in use"


def test_an_address_that_is_about_to_be_free_is_waited_for() -> None:
    """The workers of a node killed a moment ago do not keep its successor from starting."""
    taken = free_listener()
    threading.Timer(0.05, taken.close).start()
    with listen("http.listen", Address(*taken.getsockname())) as listener:
        assert listener.getsockname()[1] > 0


def test_the_worker_command_is_this_python() -> None:
    """Workers run in the interpreter of their engine, so in the same installation."""
    assert workers_module.WORKER_COMMAND[0] == sys.executable


@pytest.mark.parametrize("host", ["::1", "127.0.0.1"])
def test_any_address_is_of_both_families(host: str) -> None:
    """[::] is reached by IPv4 as well, for clients as for peers."""
    with listen("http.listen", Address("::", 0)) as listening:
        socket.create_connection((host, listening.getsockname()[1]), 5).close()

    async def peers() -> None:
        listener = await TcpNetwork().listen(asyncio.BufferedProtocol, "::", 0, None)
        await asyncio.to_thread(lambda: socket.create_connection((host, listener.port), 5).close())
        await listener.close()

    asyncio.run(peers())


def newest_pid(directory: Path, worker: int) -> int | None:
    """Who reported last under the number of a worker; the program above reports once."""
    told = [
        (path.stat().st_mtime_ns, int(path.stem))
        for path in reports(directory)
        if json.loads(path.read_text())["worker"] == worker
    ]
    return max(told)[1] if told else None


def test_workers_are_succeeded_one_after_the_other(tmp_path: Path) -> None:
    """Each goes on until its successor, which goes by the new configuration, has reported."""

    async def scenario() -> None:
        ended: list[str] = []
        group = workers_in(tmp_path, ended=ended.append)
        group._reporter = lambda worker: newest_pid(tmp_path, worker)
        await group.start()
        await until(lambda: len(reports(tmp_path)) == 2)
        old = group.pids
        config = config_for(tmp_path)
        new = NodeConfig(
            cluster=config.cluster,
            node=config.node,
            http=config.http,
            security=config.security,
            log=LogOptions(level="debug"),
        )
        assert await group.renew(new)
        await until(lambda: len(group.pids) == 2 and not set(group.pids) & set(old))
        levels = {
            json.loads((tmp_path / f"{pid}.json").read_text())["log_level"] for pid in group.pids
        }
        assert levels == {"debug"}
        assert ended == [], "it was no accident"
        await group.stop()
        assert group.pids == ()

    asyncio.run(scenario())


def test_a_successor_that_does_not_come_up_leaves_the_old_worker(tmp_path: Path) -> None:
    """It serves on."""

    async def scenario() -> None:
        group = workers_in(tmp_path, workers=1)
        await group.start()
        await until(lambda: len(reports(tmp_path)) == 1)
        old = group.pids
        group._command = (sys.executable, "-c", "raise SystemExit(2)")
        assert not await group.renew(config_for(tmp_path, 1))
        assert group.pids == old
        await group.stop()

    asyncio.run(scenario())
