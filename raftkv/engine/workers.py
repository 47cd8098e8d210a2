"""The HTTP worker processes of a node: spawned, watched, stopped by their engine.

The engine binds the clients' port and every worker inherits the one listening socket: a port in
use is found before anything is started, no second process can slip in beside the first, and a
connection that arrives while a worker is replaced waits in the queue and is not refused.

A worker never outlives its engine: it ends when the engine's Unix socket closes and asks the
kernel to be killed with its parent. So nothing here has to work when the engine is killed.
"""

import asyncio
import contextlib
import errno
import hmac
import logging
import os
import socket
import time
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from raftkv.core.errors import StartError
from raftkv.engine.config import Address, NodeConfig
from raftkv.engine.stalls import StallCounter
from raftkv.interpreter import PYTHON_M
from raftkv.rpc.web_config import Limits, TokenHash, WebConfig

BACKOFF_FIRST_S = 0.1
BACKOFF_MAX_S = 5.0
STEADY_S = 10.0
"""A worker that lived this long was well; its end begins the back-off anew."""

LOOK_S = 1.0
SILENT_LOOKS_MAX = 120
"""Each worker reports every second; one that has not in so many looks hangs, and is killed."""

SUCCESSION_S = 30.0
"""A worker that has not reported for the first time in so long is given up."""
SUCCESSION_LOOK_S = 0.05

LISTEN_BACKLOG = 4096
PATIENCE_S = 1.0
WORKER_COMMAND = (*PYTHON_M, "raftkv.web.worker")

_logger = logging.getLogger(__name__)


_AddressInfo = tuple[socket.AddressFamily, socket.SocketKind, int, str, Any]


class ListenError(StartError):
    """The clients' address cannot be listened at; the message is one line for the operator."""


def listen(option: str, address: Address, *, patience_s: float = PATIENCE_S) -> socket.socket:
    """Bind and listen, or say in one line why not.

    The workers of a node that was killed a moment ago may still hold the address: it is tried
    for a little while.
    """
    deadline = time.monotonic() + patience_s
    family, _, _, _, _ = _resolve(option, address)
    while True:
        try:
            return socket.create_server(
                address,
                family=family,
                backlog=LISTEN_BACKLOG,
                # As for peers: [::] is every address of the machine, those of IPv4 too.
                dualstack_ipv6=family == socket.AF_INET6 and socket.has_dualstack_ipv6(),
            )
        except OSError as error:
            if error.errno == errno.EADDRINUSE and time.monotonic() < deadline:
                time.sleep(0.02)
                continue
            raise _cannot_listen(option, address, error) from error


def check_free(option: str, address: Address) -> None:
    """Find out whether an address could be listened at, without listening: nobody gets to connect.

    For an address that is listened at only later, when a mistake in it would come too late.
    """
    family, _, _, _, resolved = _resolve(option, address)
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(resolved)
        except OSError as error:
            raise _cannot_listen(option, address, error) from error


def _resolve(option: str, address: Address) -> _AddressInfo:
    try:
        return socket.getaddrinfo(*address, type=socket.SOCK_STREAM)[0]
    except socket.gaierror as error:
        raise ListenError(f"{option}: {address}: {error.strerror}") from error


def _cannot_listen(option: str, address: Address, error: OSError) -> ListenError:
    # create_server adds the address in its own words; the error number says it all.
    reason = os.strerror(error.errno) if error.errno else str(error)
    return ListenError(f"{option}: cannot listen at {address}: {reason}")


def _cursor_key(config: NodeConfig) -> str:
    """Return what every node of this cluster derives alike, and that tells nothing of its secret.

    A cluster whose peers are proven by TLS alone has nothing secret in common: then its name.
    """
    secret = config.security.secret or config.cluster.id
    return hmac.digest(secret.encode(), b"raftkv cursor", "sha256").hex()


def web_config(
    config: NodeConfig, *, worker: int, listen_fd: int, engine_socket: str, engine_token: str
) -> WebConfig:
    """What one worker is told."""
    http = config.http
    files = {
        "http": http.tls_cert,
        "peer": config.security.peer_cert,
        "ca": config.security.peer_ca,
    }
    return WebConfig(
        node_name=config.node.name,
        log_format=config.log.format,
        log_level=config.log.level,
        slow_request_ms=config.log.slow_request_ms,
        data_dir=config.node.data_dir,
        engine_socket=engine_socket,
        engine_token=engine_token,
        cursor_key=_cursor_key(config),
        worker=worker,
        host=config.http_listen.host,
        port=config.http_listen.port,
        listen_fd=listen_fd,
        hosts=config.http_hosts,
        tls_cert=http.tls_cert,
        tls_key=http.tls_key,
        certificates={name: path for name, path in files.items() if path is not None},
        tokens=tuple(
            TokenHash(token.sha256, token.role, token.name) for token in config.security.tokens
        ),
        limits=Limits(
            value_bytes_max=http.value_bytes_max,
            # Each worker takes its share, rounded up: the kernel does not deal them out evenly.
            connections_max=-(-http.connections_max // http.workers),
        ),
    )


def _see_what_it_raised(watcher: "asyncio.Task[None]") -> None:
    """Tell the loop: while the task is kept, nobody else would."""
    if not watcher.cancelled() and (error := watcher.exception()) is not None:
        context = {"message": "a worker's watcher failed", "exception": error, "task": watcher}
        watcher.get_loop().call_exception_handler(context)


class HttpWorkers:
    """All HTTP workers of a node. Use from the engine's event loop.

    ``ended`` is told of each worker that ends by itself; ``reports`` says how many reports have
    come from a worker, by which one that hangs is told from one that goes on; ``reporter`` says
    which process reported last under a worker's number.
    """

    def __init__(
        self,
        config: NodeConfig,
        listener: socket.socket,
        *,
        engine_socket: str,
        engine_token: str,
        command: Sequence[str] = WORKER_COMMAND,
        ended: Callable[[str], None] = lambda _: None,
        reports: Callable[[int], int] | None = None,
        reporter: Callable[[int], int | None] = lambda _: None,
    ) -> None:
        self._config = config
        self._listener = listener
        self._engine_socket = engine_socket
        self._engine_token = engine_token
        self._command = tuple(command)
        self._ended = ended
        self._reports = reports
        self._reporter = reporter
        self._processes: dict[int, asyncio.subprocess.Process] = {}
        self._successors: dict[int, asyncio.subprocess.Process] = {}
        self._watchers: list[asyncio.Task[None]] = []
        self._stopping = asyncio.Event()

    async def start(self) -> None:
        """Spawn every worker; each is replaced when it ends until :meth:`stop`."""
        for worker in range(self._config.http.workers):
            process = await self._try_to_spawn(worker, self._processes)
            watcher = asyncio.create_task(self._watch(worker, process), name=f"worker-{worker}")
            watcher.add_done_callback(_see_what_it_raised)
            self._watchers.append(watcher)

    @property
    def pids(self) -> tuple[int, ...]:
        """The process ids of the workers that run now."""
        return tuple(process.pid for process in self._running())

    def _running(self) -> list[asyncio.subprocess.Process]:
        return [*self._processes.values(), *self._successors.values()]

    async def renew(self, config: NodeConfig) -> bool:
        """Let every worker be succeeded by one that goes by another configuration.

        One after the other, each once its successor serves: connections in the kernel's queue
        are taken by whichever is there, and the old one finishes what it has. Return whether all
        were; where a successor does not come up, the old workers go on.
        """
        self._config = config
        for worker in sorted(self._processes):
            if not await self._succeed(worker):
                return False
        return True

    async def _succeed(self, worker: int) -> bool:
        old = self._processes.get(worker)
        successor = await self._try_to_spawn(worker, self._successors)
        if successor is None:
            return False
        patience = StallCounter(round(SUCCESSION_S / SUCCESSION_LOOK_S))
        while self._reporter(worker) != successor.pid:
            if successor.returncode is not None or patience.is_over(0):
                self._successors.pop(worker, None)
                await self._discard(successor)
                return False
            if await self._stopped_within(SUCCESSION_LOOK_S):
                return False
        if old is not None:
            with contextlib.suppress(ProcessLookupError):
                old.terminate()
        return True

    async def _discard(self, process: asyncio.subprocess.Process) -> None:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()

    async def stop(self, grace_s: float = 10.0) -> None:
        """Ask every worker to finish what it has (SIGTERM), and end those that do not in time."""
        self._stopping.set()
        for process in self._running():
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
        if self._watchers:
            await asyncio.wait(self._watchers, timeout=grace_s)
        for process in self._running():
            if process.returncode is None:
                _logger.warning("an HTTP worker did not end within %.0f s: killed", grace_s)
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
        for successor in self._successors.values():
            await successor.wait()
        await asyncio.gather(*self._watchers, return_exceptions=True)  # the loop was told of them
        self._listener.close()

    async def _spawn(
        self, worker: int, processes: dict[int, asyncio.subprocess.Process]
    ) -> asyncio.subprocess.Process:
        process = await asyncio.create_subprocess_exec(
            *self._command,
            stdin=asyncio.subprocess.PIPE,
            pass_fds=(self._listener.fileno(),),
        )
        processes[worker] = process
        document = web_config(
            self._config,
            worker=worker,
            listen_fd=self._listener.fileno(),
            engine_socket=self._engine_socket,
            engine_token=self._engine_token,
        )
        assert process.stdin is not None  # noqa: S101 -- asked for above
        # A worker that died at once has closed its end: the watcher sees that, not we. uvloop says
        # RuntimeError of a pipe that it has closed itself meanwhile.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError, RuntimeError):
            process.stdin.write(msgspec.json.encode(document))
            await process.stdin.drain()
            process.stdin.close()
            await process.stdin.wait_closed()
        return process

    async def _watch(self, worker: int, process: asyncio.subprocess.Process | None) -> None:
        """Wait for the end of one worker and replace it, ever more slowly if it keeps failing."""
        backoff_s = BACKOFF_FIRST_S
        while True:
            if process is not None:
                started = time.monotonic()
                code = await self._end_of(worker, process)
                del self._processes[worker]
                if self._stopping.is_set():
                    return
                process = self._successors.pop(worker, None)
                if process is not None:
                    self._processes[worker] = process
                    backoff_s = BACKOFF_FIRST_S
                    continue
                if time.monotonic() - started >= STEADY_S:
                    backoff_s = BACKOFF_FIRST_S
                _logger.warning(
                    "HTTP worker %d ended with code %d; next one in %.1f s", worker, code, backoff_s
                )
                self._ended(f"worker {worker}, with code {code}")
            if await self._stopped_within(backoff_s):
                return
            backoff_s = min(BACKOFF_MAX_S, backoff_s * 2)
            process = await self._try_to_spawn(worker, self._processes)
            if process is not None and self._stopping.is_set():
                # stop() may have looked for processes just before this one was there.
                with contextlib.suppress(ProcessLookupError):
                    process.terminate()

    async def _try_to_spawn(
        self, worker: int, processes: dict[int, asyncio.subprocess.Process]
    ) -> asyncio.subprocess.Process | None:
        """Spawn; None if the machine has no memory, process or descriptor for it just now."""
        try:
            return await self._spawn(worker, processes)
        except OSError as error:
            _logger.warning("HTTP worker %d cannot be started: %s", worker, error)
            return None

    async def _end_of(self, worker: int, process: asyncio.subprocess.Process) -> int:
        """Return the exit code, after one that reports nothing any more was killed."""
        patience = StallCounter(SILENT_LOOKS_MAX)
        while self._reports is not None:
            with contextlib.suppress(TimeoutError):
                return await asyncio.wait_for(process.wait(), LOOK_S)
            if patience.is_over(self._reports(worker)) and not self._stopping.is_set():
                _logger.error("HTTP worker %d hangs: killed", worker)
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                break
        return await process.wait()

    async def _stopped_within(self, seconds: float) -> bool:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stopping.wait(), seconds)
        return self._stopping.is_set()
