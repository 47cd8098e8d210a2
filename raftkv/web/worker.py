"""The HTTP worker process: ``python -m raftkv.web.worker``.

It reads its settings (:class:`~raftkv.rpc.web_config.WebConfig`, JSON) from standard input or from
the descriptor that ``RAFTKV_WEB_CONFIG_FD`` names, connects to its engine, and serves HTTP with
Granian inside this process. It belongs to its engine: SIGTERM lets it finish what is in flight,
the end of the engine's socket ends it at once, and the kernel kills it with its parent, so that
no worker goes on answering for a node that is gone.
"""

import asyncio
import ctypes
import gc
import logging
import os
import resource
import signal
import socket
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import msgspec
import uvloop
from granian import net
from granian.constants import HTTPModes, Interfaces
from granian.http import HTTP1Settings
from granian.log import LogLevels
from granian.server.embed import Server

from raftkv.rpc import logs
from raftkv.rpc.client import EngineClient, EngineUnavailableError
from raftkv.rpc.process import open_standard_streams, raise_file_limit, resident_bytes
from raftkv.rpc.web_config import WebConfig
from raftkv.web.ops.machine_metrics import MachineMetrics
from raftkv.web.serve.audit import AUDIT
from raftkv.web.serve.deferred import Deferred
from raftkv.web.serve.engine import Engine, LoopBridge
from raftkv.web.serve.lane import Lane
from raftkv.web.serve.worker_metrics import WorkerMetrics

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

CONFIG_FD_VARIABLE = "RAFTKV_WEB_CONFIG_FD"
EXIT_ENGINE_GONE = 3
EXIT_UNUSABLE = 2

LISTEN_BACKLOG = 4096

DESCRIPTORS_KEPT = 40
"""For the engine's socket, the log, files of figures and pages, and threads: 25 are open when a
worker is idle. More would leave too few places where 64 is the limit."""

HEADER_TIMEOUT_MS = 30_000
"""For the head of a request, so that half-sent ones do not stay for ever."""

REPORT_TIMEOUT_S = 1.0

WARM_UP_S = 2.0
"""After this long, when a cluster that starts has its leaders, the pages are made ready."""

YIELDED_NICENESS = 5
"""Added to the engine's: under overload a worker gets a third of the processor that it gets."""

_PR_SET_PDEATHSIG = 1
_QUIET_ROUNDS = 5
_QUIET_ROUND_S = 0.05
_logger = logging.getLogger("raftkv.web.worker")


class HttpServer(Server):
    """Granian inside our own loop, on a socket that we were given.

    Granian itself would bind with SO_REUSEPORT, which lets a second node slip in beside the
    first on the same port, and loses what waits in the queue of a worker that dies.
    """

    def __init__(self, app: Any, config: WebConfig, listener: socket.socket) -> None:
        self._listener_fd = listener.fileno()
        super().__init__(
            app,
            address=config.host,
            port=config.port,
            interface=Interfaces.ASGINL,
            http=HTTPModes.http1,
            http1_settings=HTTP1Settings(header_read_timeout=HEADER_TIMEOUT_MS),
            websockets=False,
            backlog=LISTEN_BACKLOG,
            # It counts open connections, idle ones too, and stops accepting at that many.
            backpressure=connections_max(config.limits.connections_max),
            log_level=LogLevels.error,
            log_dictconfig={"handlers": {}, "loggers": {"_granian": {"propagate": True}}},
            ssl_cert=None if config.tls_cert is None else Path(config.tls_cert),
            ssl_key=None if config.tls_key is None else Path(config.tls_key),
            ssl_ca=None if config.tls_client_ca is None else Path(config.tls_client_ca),
            ssl_client_verify=config.tls_client_ca is not None,
        )

    def _init_shared_socket(self) -> None:
        self._ssp = None
        # Granian's stubs do not know the constructor that its own workers use.
        holder = cast("Any", net).SocketHolder
        self._shd = holder(self._listener_fd, False, LISTEN_BACKLOG)  # noqa: FBT003 -- its order


def die_with_parent() -> None:
    """Ask the kernel to kill this process when its parent dies, however it dies."""
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")


def leave_signals_to_parent() -> None:
    """Ignore what may reach the whole process group, such as Ctrl-C: the engine decides."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)


def yield_to_engine() -> None:
    """Let the engine run first where there is not processor enough for both.

    Refusing requests can use up every core; the engine's heartbeats must not wait for that, or an
    overload deposes leaders. docs/benchmarks.md has what it gains at four times the load.
    """
    os.nice(YIELDED_NICENESS)


def prepare_process() -> None:
    """Make this process its engine's: its end, its interrupts, its rank; room for connections."""
    open_standard_streams()
    die_with_parent()
    leave_signals_to_parent()
    yield_to_engine()
    raise_file_limit()
    resident_bytes()  # the file for it is opened while there is a descriptor


def connections_max(configured: int) -> int:
    """Return how many connections there may be at once, as each needs a descriptor.

    What cannot be accepted for want of one is tried again without end, in the place of
    everything else; what is not accepted yet waits in the kernel.
    """
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    allowed = max(1, min(configured, limit - DESCRIPTORS_KEPT))
    if allowed < configured:
        _logger.warning(
            "the limit of %d descriptors allows %d connections, not the %d of http.connections_max",
            limit,
            allowed,
            configured,
        )
    return allowed


def open_listener(config: WebConfig) -> socket.socket:
    """Return the listening socket: inherited, or bound here.

    Accepted connections inherit TCP_NODELAY; without it an answer can wait 40 ms for an
    acknowledgement of the one before.
    """
    if config.listen_fd is not None:
        listener = socket.socket(fileno=config.listen_fd)
    else:
        family, _, _, _, _ = socket.getaddrinfo(
            config.host, config.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.create_server(
            (config.host, config.port), family=family, backlog=LISTEN_BACKLOG
        )
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    listener.setblocking(False)  # noqa: FBT003 -- the standard library's own order
    return listener


def read_config() -> WebConfig:
    """Read the settings that the parent hands over."""
    fd = int(os.environ.get(CONFIG_FD_VARIABLE, sys.stdin.fileno()))
    # Left open: a closed standard stream's number would be given to some socket.
    with open(fd, "rb", closefd=False) as source:
        return msgspec.json.decode(source.read(), type=WebConfig)


async def serve(config: WebConfig, engine: Engine, engine_gone: asyncio.Event) -> int:
    """Serve HTTP until SIGTERM (return 0) or until the engine is gone."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    metrics = WorkerMetrics(config.worker)
    metrics.collectors.append(MachineMetrics(config))
    operators = _operators(LoopBridge(engine, loop, config.node_name), config, metrics)
    lane = Lane(engine, config, operators, metrics)
    listener = open_listener(config)
    server = HttpServer(lane, config, listener)
    serving = asyncio.ensure_future(cast("Any", server).serve())
    _settle_garbage_collector()
    warming = loop.call_later(WARM_UP_S, loop.run_in_executor, None, _warm_up, operators)
    reporting = asyncio.ensure_future(_report_each_second(engine, metrics))
    stopped = asyncio.ensure_future(stop.wait())
    gone = asyncio.ensure_future(engine_gone.wait())
    # The report never ends by itself: one that failed would leave the engine to think we hang.
    first = {serving, stopped, gone, reporting}
    await asyncio.wait(first, return_when=asyncio.FIRST_COMPLETED)
    warming.cancel()
    if gone.done():
        _logger.error("the engine is gone: HTTP worker %d ends", config.worker)
        return EXIT_ENGINE_GONE
    for task in (serving, reporting):
        if task.done():
            task.result()
            return EXIT_UNUSABLE
    cast("Any", server).stop()
    reporting.cancel()
    quiet = asyncio.ensure_future(_quiet(lane))
    await asyncio.wait(
        {serving, gone, quiet},
        timeout=config.limits.stop_grace_s,
        return_when=asyncio.FIRST_COMPLETED,
    )
    if lane.answering and not serving.done():
        _logger.warning("HTTP worker %d ends with requests in flight", config.worker)
    return 0


def _operators(engine: LoopBridge, config: WebConfig, metrics: WorkerMetrics) -> Deferred:
    """Everything that is not data, made when it is first asked for."""

    def make() -> "WSGIApplication":
        from raftkv.web.app import create_app  # noqa: PLC0415 -- it is what takes long

        return create_app(engine, config, metrics).wsgi_app

    return Deferred(make)


def _warm_up(operators: Deferred) -> None:
    """Make the pages before somebody in a hurry asks for one."""
    operators.made()
    _settle_garbage_collector()


def _settle_garbage_collector() -> None:
    """Leave what lives as long as the process out of collections, and have few of them.

    A request makes no cycles; a collection after every 700 objects finds nothing.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


async def _report_each_second(engine: Engine, metrics: WorkerMetrics) -> None:
    """Tell the engine what was answered, once a second has ended."""
    while True:
        await asyncio.sleep(1.0 - time.time() % 1.0)
        await engine.call(metrics.report(), REPORT_TIMEOUT_S)
        AUDIT.tell()


async def _quiet(lane: Lane) -> None:
    """Return once nothing has been answered for a moment.

    Granian waits for its connections as well: one with half a request on it would hold up the
    stop until its time-out.
    """
    quiet = 0
    while quiet < _QUIET_ROUNDS:
        await asyncio.sleep(_QUIET_ROUND_S)
        quiet = 0 if lane.answering else quiet + 1


async def run_worker(config: WebConfig) -> int:
    """Connect to the engine and serve."""
    try:
        engine = await EngineClient.connect(
            Path(config.engine_socket), config.engine_token.encode()
        )
    except EngineUnavailableError as error:
        _logger.error("no engine: %s", error)  # noqa: TRY400 -- a line is enough
        return EXIT_UNUSABLE
    return await serve(config, engine, engine.closed)


def main() -> None:
    """Run one worker; the process ends here, whatever threads are left."""
    logs.set_up("-", "console", "info")  # until the settings are here
    logs.speak_for_python()
    prepare_process()
    code = EXIT_UNUSABLE
    try:
        config = read_config()
        logs.set_up(config.node_name, config.log_format, config.log_level)
        code = uvloop.run(run_worker(config))
    except (OSError, msgspec.MsgspecError) as error:
        _logger.error("HTTP worker cannot start: %s", error)  # noqa: TRY400 -- a line is enough
    finally:
        logging.shutdown()
        # Threads of the Flask side may be waiting for an engine that is gone.
        os._exit(code)


if __name__ == "__main__":
    main()
