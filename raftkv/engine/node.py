"""One node as a process: its engine on this machine, its HTTP workers, signals and the end.

The process that calls :func:`run_node` is the engine: it owns the disk, the Raft groups and the
links to its peers, on one thread with one event loop. The HTTP workers are its children.
"""

import asyncio
import contextlib
import gc
import logging
import os
import random
import secrets
import signal
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import uvloop

from raftkv.engine.config import NodeConfig, RaftOptions
from raftkv.engine.connection import LinkLimits
from raftkv.engine.engine import Engine, Seams
from raftkv.engine.jobs import OwnThread, ThreadJobs
from raftkv.engine.network import ConnectDeadlines, TcpNetwork
from raftkv.engine.rereading import Reread, digests, reread
from raftkv.engine.security import check_http_certificate, link_security
from raftkv.engine.snapshot_keeper import ForkingWriter
from raftkv.engine.workers import HttpWorkers, ListenError, check_free, listen
from raftkv.raft.clock import SystemClock
from raftkv.rpc import logs
from raftkv.rpc.process import raise_file_limit, resident_bytes
from raftkv.rpc.server import LocalServer
from raftkv.storage.data_dir import DataDir, open_data_dir
from raftkv.storage.disk import RealDisk

ENGINE_SOCKET = "engine.sock"
EXIT_FATAL = 70
"""The node stopped because going on could have broken a promise; the log says why."""

_logger = logging.getLogger(__name__)


def run_node(config: NodeConfig, read_again: Callable[[], NodeConfig] | None = None) -> None:
    """Run a node until SIGTERM or SIGINT.

    On SIGHUP it takes over what it can of what ``read_again`` returns; what that raises is logged.

    Raises:
        StartError: The node cannot start.
    """
    uvloop.run(_run(config, read_again))


def interrupt_nobody() -> None:
    """Wait for a processor in turn, instead of taking it from who has it (SCHED_BATCH, sched(7)).

    Where engines and workers share few cores, each message would else interrupt its own sender,
    and everything would be done one message at a time. Waiting for the others' turn to end costs
    at most a few milliseconds, and lets what they say in it be handled together: a third more
    puts a second at 16 connections (docs/performance.md). Workers inherit it.
    """
    try:
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    except OSError as error:  # a sandbox may forbid it, and all goes on without
        _logger.info("the scheduling policy stays as it is: %s", error.strerror)


async def start_resolver_threads(loop: asyncio.AbstractEventLoop) -> None:
    """Have the loop start its threads that resolve names: libuv aborts if it cannot do so later."""
    with contextlib.suppress(socket.gaierror):  # a name is no address, and nobody is asked for it
        await loop.getaddrinfo("localhost", None, flags=socket.AI_NUMERICHOST)


async def _run(config: NodeConfig, read_again: Callable[[], NodeConfig] | None) -> None:
    raise_file_limit()
    resident_bytes()  # the file for it is opened while there is a descriptor
    interrupt_nobody()
    node = Node(config, read_again)
    try:
        await node.start()
    finally:
        if not node.started:
            node.abandon()
    await node.stop_requested.wait()
    await node.stop()


class Node:
    """A running node.

    The order of :meth:`start` matters: what can fail because of a mistake comes first, before
    anything is created or a peer hears of us.
    """

    def __init__(
        self, config: NodeConfig, read_again: Callable[[], NodeConfig] | None = None
    ) -> None:
        self._config = config
        self._read_again = read_again
        self._rereading: asyncio.Task[None] | None = None
        self._reread_wanted = False
        self._files = digests(config)
        self._workers_behind = False  # an HTTP worker may still go by an earlier configuration
        self._engine: Engine | None = None
        self.started = False
        self.stop_requested = asyncio.Event()

    async def start(self) -> None:
        """Open the data, join the peers, serve."""
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(_on_loop_error)
        loop.add_signal_handler(signal.SIGHUP, self.request_reread)
        await self._start(loop)
        self.started = True
        if self._reread_wanted:
            self._reread_wanted = False
            self.request_reread()

    async def _start(self, loop: asyncio.AbstractEventLoop) -> None:
        config = self._config
        await start_resolver_threads(loop)
        disk = RealDisk()
        data = open_data_dir(disk, Path(config.node.data_dir), config.cluster.id, config.node.name)
        security = link_security(config.security)
        http = config.http
        if http.tls_cert is not None and http.tls_key is not None:
            check_http_certificate(Path(http.tls_cert), Path(http.tls_key))
        listener = listen("http.listen", config.http_listen)
        check_free("peer.listen", config.peer_listen)
        self._jobs = ThreadJobs(loop, 2, "jobs")
        seams = _seams(loop, disk, self._jobs, config.raft)
        self._engine = engine = Engine(config, data, security, seams)
        _settle_garbage_collector()
        # Reading the log may take long, and a signal ends that at once. From here on others rely
        # on this node, so that it ends in order.
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.request_stop)
        await self._start_serving(engine, data, listener)

    async def _start_serving(self, engine: Engine, data: DataDir, listener: socket.socket) -> None:
        config = self._config
        token = secrets.token_hex(32)
        path = data.path / ENGINE_SOCKET
        self._server = LocalServer(path, token.encode(), engine.handle, node=config.node.name)
        self._workers = HttpWorkers(
            config,
            listener,
            engine_socket=str(path),
            engine_token=token,
            ended=lambda detail: engine.host.recent.add("worker_ended", detail),
            reports=engine.http.reports,
            reporter=engine.http.reporter,
        )
        try:
            await engine.start()
        except OSError as error:
            reason = os.strerror(error.errno) if error.errno else str(error)
            at = config.peer_listen
            raise ListenError(f"peer.listen: cannot listen at {at}: {reason}") from error
        await self._server.start()
        await self._workers.start()
        if config.security.insecure:
            _logger.warning(
                "security.insecure = true: whoever reaches this node's ports may read and change "
                "what goes over them, and without tokens all data"
            )
        _logger.info(
            "node %s of cluster %s: %d groups, http %s, peers %s",
            config.node.name,
            config.cluster.id,
            len(engine.replicas),
            config.http_listen,
            config.peer_listen,
        )

    def abandon(self) -> None:
        """Do nothing more after a start that failed: no election, no record in the log."""
        if self._engine is not None:
            self._engine.abandon()

    def request_stop(self) -> None:
        """Begin to stop; a second request changes nothing."""
        self.stop_requested.set()

    def request_reread(self) -> None:
        """Begin to read the configuration again; once more if that, or the start, is under way."""
        if self._read_again is None or self.stop_requested.is_set():
            return
        if not self.started:
            _logger.info("SIGHUP: the configuration is reread when the node has started")
        if not self.started or self._rereading is not None:
            self._reread_wanted = True
            return
        self._rereading = asyncio.create_task(self._reread(self._read_again), name="reread")

    async def _reread(self, read_again: Callable[[], NodeConfig]) -> None:
        """Read, try, take over; what is bad changes nothing."""
        try:
            again = await self._off_loop(lambda: reread(self._config, read_again()))
            await self._take_over(again)
        except Exception as error:  # noqa: BLE001 -- whatever is in the files, the node goes on
            _logger.error("nothing was taken over from the configuration: %s", error)  # noqa: TRY400
        self._rereading = None
        if self._reread_wanted:
            self._reread_wanted = False
            self.request_reread()

    async def _take_over(self, again: Reread) -> None:
        engine = self._engine
        assert engine is not None  # noqa: S101 -- it has started
        merged, before = again.merged, self._config
        names = {
            n for n in {*self._files, *again.files} if self._files.get(n) != again.files.get(n)
        }
        names |= set(merged.taken)
        self._config, self._files = merged.config, again.files
        log = merged.config.log
        logs.change(before.node.name, log.format, log.level)
        engine.renew(merged.config, again.security)
        _logger.info(
            "reread the configuration: %s%s",
            ", ".join(sorted(names)) or "nothing has changed",
            f"; only a restart takes over {', '.join(merged.left)}" if merged.left else "",
        )
        if names or self._workers_behind:
            self._workers_behind = True  # also if this is cancelled or fails
            self._workers_behind = not await self._workers.renew(merged.config)
        if self._workers_behind:
            _logger.error(
                "an HTTP worker did not start with what was reread: the old ones go on, with the "
                "old tokens and certificates, until SIGHUP comes again"
            )

    def _off_loop(self, job: Callable[[], Reread]) -> "asyncio.Future[Reread]":
        future: asyncio.Future[Reread] = asyncio.get_running_loop().create_future()

        def done(result: Any, error: BaseException | None) -> None:
            if error is None:
                future.set_result(result)
            else:
                future.set_exception(error)

        self._jobs.run(job, done)
        return future

    async def stop(self) -> None:
        """Hand the leaderships over, finish what is in flight, let go of everything."""
        engine = self._engine
        if engine is None:
            return
        if self._rereading is not None:
            self._rereading.cancel()
        _logger.info("stopping: handing over leaderships")
        await engine.hand_over()
        # Not ready from here on; who balances load needs a moment to hear of it.
        await asyncio.sleep(self._config.http.stop_delay_ms / 1000)
        await self._workers.stop()
        await engine.drain(and_until=lambda: not self._server.in_flight)
        engine.silence()
        await self._server.close()
        await engine.close()
        _logger.info("stopped")


def _seams(
    loop: asyncio.AbstractEventLoop, disk: RealDisk, other_jobs: ThreadJobs, raft: RaftOptions
) -> Seams:
    """What this machine gives an engine."""
    shortest_s, longest_s = (
        raft.election_timeout_ms_min / 1000,
        raft.election_timeout_ms_max / 1000,
    )
    deadlines = ConnectDeadlines.following(longest_s)
    limits = LinkLimits.following(shortest_s, longest_s)
    return Seams(
        clock=SystemClock(),
        loop=loop,
        disk=disk,
        network=TcpNetwork(deadlines),
        # Seeded by the system. Each message of a leader draws from it: no system call for that.
        random=random.Random(),  # noqa: S311 -- spreads time-outs, guards nothing
        random_bytes=os.urandom,
        sync_jobs=OwnThread(loop, "fdatasync"),
        other_jobs=other_jobs,
        snapshot_writer=lambda store: ForkingWriter(store, other_jobs),
        fatal=die,
        link_limits=replace(limits, connect_deadline_s=deadlines.in_all_s),
    )


def _on_loop_error(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Decide what an exception means that escaped from a callback or a task.

    In the handling of one connection: the loop names its transport, and it is closed, by which
    everybody who waits for something on it hears of it. Anywhere else the node is in a state that
    nobody thought of, with somebody left unanswered: it stops, whatever the exception is. What may
    go wrong without a bug, as a lack of descriptors, is caught where it happens.
    """
    error, transport = context.get("exception"), context.get("transport")
    if transport is None and isinstance(error, Exception):
        die(error)
    loop.default_exception_handler(context)
    if transport is not None:
        transport.abort()


def die(error: BaseException) -> NoReturn:
    """Stop at once, saying nothing more to anyone: what was acknowledged is on disk.

    The workers end because the engine's socket closes.
    """
    _logger.critical("the node cannot go on: %s", error, exc_info=error)
    logging.shutdown()
    os._exit(EXIT_FATAL)


def _settle_garbage_collector() -> None:
    """Leave what was loaded out of the collections to come.

    The state is made of objects that the collector need not look at (no cycles), but it would
    still walk the containers that hold them.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)
