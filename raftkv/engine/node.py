"""One node: everything wired together, started, watched over and stopped.

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
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import msgspec
import uvloop

from raftkv.core.cluster_map import GroupPlacement
from raftkv.core.errors import UndecodableError
from raftkv.engine.balancer import Balancer, NodeState
from raftkv.engine.config import NodeConfig
from raftkv.engine.group_host import CHANNEL_RAFT, GroupHost
from raftkv.engine.handshake import LinkHello
from raftkv.engine.jobs import ThreadJobs
from raftkv.engine.links import PeerLinks
from raftkv.engine.map_file import load_map
from raftkv.engine.router import CHANNEL_CALL, CHANNEL_REPLY, Router
from raftkv.engine.security import (
    LinkSecurity,
    SecurityError,
    check_http_certificate,
    link_security,
)
from raftkv.engine.snapshot_keeper import ForkingWriter, GroupSnapshots, SnapshotKeeper
from raftkv.engine.status import CHANNEL_STATUS, Status
from raftkv.engine.workers import HttpWorkers, ListenError, check_free, listen
from raftkv.raft.clock import SystemClock
from raftkv.raft.group import Group
from raftkv.raft.host import GroupConfig, SnapshotPolicy
from raftkv.raft.member import ReplicaError, Timing
from raftkv.raft.proposals import Limits
from raftkv.rpc.messages import Call, ExplainRequest, Facts, Reply, Response, Served, StatusRequest
from raftkv.rpc.server import LocalServer, Respond, SocketInUseError
from raftkv.storage.data_dir import DataDir, DataDirError, open_data_dir
from raftkv.storage.disk import DiskError, RealDisk
from raftkv.storage.snapshots import SnapshotDamaged, SnapshotStore
from raftkv.storage.wal import RecoveredGroup, Wal, WalDamaged

CHANNEL_NODE_STATE = 4
"""A NodeState, every second."""

ENGINE_SOCKET = "engine.sock"
EXIT_FATAL = 70
"""The node stopped because going on could have broken a promise; the log says why."""

PROPOSAL_BYTES_MAX = 8 * 1024 * 1024

HANDOVER_S = 2.0
"""How long a stopping node tries to hand its leaderships over."""

HANDOVER_PAUSE_S = 0.02
"""Between two tries: one that is refused is refused at once."""

DRAIN_S = 5.0
"""How long it then waits for what is in flight."""

_logger = logging.getLogger(__name__)


class NodeError(Exception):
    """The node cannot start; one line that names the file or option."""


def run_node(config: NodeConfig) -> int:
    """Run a node until SIGTERM or SIGINT; return its exit code.

    0 after a clean stop, 1 if it cannot start (one line on standard error says why).
    """
    try:
        uvloop.run(_run(config))
    except NodeError as error:
        sys.stderr.write(f"raftkv: {error}\n")
        return 1
    return 0


async def _run(config: NodeConfig) -> None:
    node = Node(config)
    try:
        await node.start()
    except (
        DataDirError,
        DiskError,
        ListenError,
        ReplicaError,
        SecurityError,
        SnapshotDamaged,
        SocketInUseError,
        UndecodableError,
        WalDamaged,
    ) as error:
        raise NodeError(str(error)) from error
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

    def __init__(self, config: NodeConfig) -> None:
        self._config = config
        self._name = config.node.name
        self._clock = SystemClock()
        self._started_us = self._clock.time_us()
        self._stopping = False
        self.started = False
        self._timer: asyncio.TimerHandle | None = None
        self._when_abandoned = contextlib.ExitStack()
        self.stop_requested = asyncio.Event()

    # --- start --------------------------------------------------------------------------------

    async def start(self) -> None:
        """Open the data, join the peers, serve."""
        config = self._config
        self._loop = asyncio.get_running_loop()
        self._loop.set_exception_handler(self._on_loop_error)
        disk = RealDisk()
        data = open_data_dir(disk, Path(config.node.data_dir), config.cluster.id, self._name)
        self._data = data
        security = link_security(config.security)
        http = config.http
        if http.tls_cert is not None and http.tls_key is not None:
            check_http_certificate(Path(http.tls_cert), Path(http.tls_key))
        listener = listen("http.listen", config.http_listen)
        check_free("peer.listen", config.peer_listen)
        self._map = load_map(disk, data.path, config.cluster)
        wal, recovered = Wal.open(
            disk,
            data.wal_directory,
            identity=data.identity.identity,
            segment_bytes=config.limits.wal_segment_bytes,
        )
        self._sync_jobs = ThreadJobs(self._loop, 1, "fdatasync")
        self._other_jobs = ThreadJobs(self._loop, 2, "jobs")
        self._when_abandoned.callback(self._sync_jobs.close)
        self._when_abandoned.callback(self._other_jobs.close)
        self._host = GroupHost(
            wal=wal,
            clock=self._clock,
            loop=self._loop,
            sync_jobs=self._sync_jobs,
            other_jobs=self._other_jobs,
            stall_s=config.raft.election_timeout_ms_min / 1000,
            fatal=die,
        )
        self._when_abandoned.callback(self._host.stop)
        snapshots = SnapshotStore(disk, data.snapshot_directory)
        self._links = self._make_links(data, security)
        self._make_router()
        for placement in self._map.groups_of(self._name):
            try:
                group = self._make_group(placement, recovered.get(placement.id), snapshots)
            except UndecodableError as error:  # what is in the file is met before its checksum
                raise NodeError(f"{snapshots.path(placement.id)}: {error}") from error
            self._host.add(group)
        self._keeper = SnapshotKeeper(
            self._host.groups,
            snapshots,
            ForkingWriter(snapshots, self._other_jobs),
            self._other_jobs,
            wal.pinning,
        )
        _settle_garbage_collector()
        # Reading the log may take long, and a signal ends that at once. From here on others rely
        # on this node, so that it ends in order.
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, self.request_stop)
        await self._start_serving(listener)
        self.started = True

    def _make_links(self, data: DataDir, security: LinkSecurity) -> PeerLinks:
        config = self._config
        return PeerLinks(
            hello=LinkHello(config.cluster.id, self._name, data.identity.identity),
            peers=config.peers,
            listen=config.peer_listen,
            security=security,
            identities=data.peers,
            handler=self,
            clock=self._clock,
        )

    def _make_router(self) -> None:
        host, links = self._host, self._links
        self._router = Router(
            node=self._name,
            cluster_map=self._map,
            groups=host.groups,
            links=links,
            clock=self._clock,
            loop=self._loop,
        )
        self._balancer = Balancer(
            node=self._name,
            cluster_map=self._map,
            groups=host.groups,
            clock=self._clock,
            own_state=self._own_state,
        )
        self._status = Status(
            node=self._name,
            cluster_map=self._map,
            host=host,
            router=self._router,
            balancer=self._balancer,
            links=links,
            clock=self._clock,
            loop=self._loop,
            started_us=self._started_us,
        )
        host.links = links
        host.leader_changed = self._router.leader_changed

    def _make_group(
        self, placement: GroupPlacement, recovered: RecoveredGroup | None, store: SnapshotStore
    ) -> Group:
        config, limits = self._config, self._config.limits
        shard, shard_of = placement.shard, self._map.shard_of
        return Group(
            GroupConfig(
                id=placement.id,
                node=self._name,
                members=placement.replicas,
                owns=lambda key: shard_of(key) == shard,
                timing=Timing(
                    config.raft.heartbeat_ms / 1000,
                    config.raft.election_timeout_ms_min / 1000,
                    config.raft.election_timeout_ms_max / 1000,
                ),
                limits=Limits(
                    waiting_operations_max=limits.queue_commands,
                    waiting_bytes_max=limits.queue_bytes,
                    entry_operations_max=limits.entry_commands,
                    entry_bytes_max=limits.entry_bytes,
                    # A transaction may hold several values, and no value may be too large for it.
                    proposal_bytes_max=max(PROPOSAL_BYTES_MAX, 2 * config.http.max_value_bytes),
                ),
                snapshots=SnapshotPolicy(
                    limits.snapshot_after_bytes, limits.snapshot_after_entries
                ),
            ),
            store=self._host.wal,
            recovered=recovered,
            files=GroupSnapshots(store, placement.id),
            host=self._host,
            clock=self._clock,
            random=random.SystemRandom(),
        )

    async def _start_serving(self, listener: socket.socket) -> None:
        token = secrets.token_hex(32)
        path = self._data.path / ENGINE_SOCKET
        self._server = LocalServer(path, token.encode(), self._handle, node=self._name)
        self._workers = HttpWorkers(
            self._config, listener, engine_socket=str(path), engine_token=token
        )
        try:
            await self._links.start()
        except OSError as error:
            reason = os.strerror(error.errno) if error.errno else str(error)
            at = self._config.peer_listen
            raise ListenError(f"peer.listen: cannot listen at {at}: {reason}") from error
        await self._server.start()
        await self._workers.start()
        self._each_second()
        _logger.info(
            "node %s of cluster %s: %d groups, http %s, peers %s",
            self._name,
            self._map.cluster_id,
            len(self._host.groups),
            self._config.http_listen,
            self._config.peer_listen,
        )

    # --- stop ---------------------------------------------------------------------------------

    def abandon(self) -> None:
        """Do nothing more after a start that failed: no election, no record in the log."""
        self._when_abandoned.close()

    def request_stop(self) -> None:
        """Begin to stop; a second request changes nothing."""
        self.stop_requested.set()

    async def stop(self) -> None:
        """Hand the leaderships over, finish what is in flight, let go of everything."""
        _logger.info("stopping: handing over leaderships")
        self._stopping = self._status.stopping = True
        self._tell_state()
        await self._hand_over()
        await self._workers.stop()
        await self._drain()
        if self._timer is not None:
            self._timer.cancel()
        self._host.stop()
        self._router.close()
        await self._server.close()
        await self._links.close()
        self._sync_jobs.close()
        self._other_jobs.close()
        self._host.wal.close()
        self._data.close()
        _logger.info("stopped")

    async def _hand_over(self) -> None:
        """Transfer every leadership that somebody else may take, all at once."""
        deadline = self._clock.monotonic() + HANDOVER_S
        while self._clock.monotonic() < deadline:
            led = [group for group in self._host.groups.values() if group.is_leader]
            targets = [(group, self._balancer.ablest(group)) for group in led]
            if not any(target for _, target in targets):
                return
            moved = []
            for group, target in targets:
                if target is not None:
                    done: asyncio.Future[None] = self._loop.create_future()
                    group.transfer_to(target, _resolver(done))
                    moved.append(done)
            await asyncio.wait(moved, timeout=HANDOVER_S)
            await asyncio.sleep(HANDOVER_PAUSE_S)

    async def _drain(self) -> None:
        """Wait until nothing is in flight, for a while."""
        deadline = self._clock.monotonic() + DRAIN_S
        while self._clock.monotonic() < deadline:
            waiting = sum(group.waiting_operations for group in self._host.groups.values())
            if not waiting and not self._router.in_flight and not self._server.in_flight:
                return
            await asyncio.sleep(0.02)

    # --- LinkHandler --------------------------------------------------------------------------

    def on_connected(self, peer: str) -> None:
        """A link counts from now on."""
        self._links.send(peer, CHANNEL_NODE_STATE, msgspec.msgpack.encode(self._own_state()))
        self._host.on_connected(peer)
        self._router.leader_changed()

    def on_disconnected(self, peer: str) -> None:
        """A link is lost."""
        self._balancer.peers.pop(peer, None)
        self._host.on_disconnected(peer)
        self._router.on_disconnected(peer)

    def on_message(self, peer: str, channel: int, payload: bytes) -> None:
        """Hand a message to whom it concerns; raising closes the link."""
        if channel == CHANNEL_RAFT:
            self._host.on_bundle(peer, payload)
        elif channel == CHANNEL_CALL:
            self._router.on_call(peer, payload)
        elif channel == CHANNEL_REPLY:
            self._router.on_reply(peer, payload)
        elif channel == CHANNEL_NODE_STATE:
            self._balancer.peers[peer] = msgspec.msgpack.decode(payload, type=NodeState)
        elif channel == CHANNEL_STATUS:
            self._status.on_message(peer, payload)
        else:
            raise ValueError(f"unknown channel {channel}")

    # --- the front end's calls ----------------------------------------------------------------

    def _handle(self, call: Call, respond: Respond) -> None:
        request = call.request

        def answer(response: Response) -> None:
            respond(Reply(call.id, response, Served(self._name), self._map.epoch))

        if isinstance(request, StatusRequest):
            if request.scope == "cluster":
                self._status.cluster(answer)
            elif request.scope == "ready":
                answer(Facts(self._status.ready()))
            else:
                answer(Facts(self._status.local()))
        elif isinstance(request, ExplainRequest):
            answer(Facts(self._status.explain(request.key)))
        else:
            self._router.handle(call, respond)

    # --- every second -------------------------------------------------------------------------

    def _own_state(self) -> NodeState:
        return NodeState(self._host.has_space(), self._stopping)

    def _tell_state(self) -> None:
        state = msgspec.msgpack.encode(self._own_state())
        for peer in self._links.connected:
            self._links.send(peer, CHANNEL_NODE_STATE, state)

    def _each_second(self) -> None:
        self._timer = self._loop.call_later(1.0, self._each_second)
        self._host.look_after_log()
        self._tell_state()
        self._keeper.check()
        if not self._stopping:
            self._balancer.check()

    def _on_loop_error(self, loop: asyncio.AbstractEventLoop, context: dict[str, object]) -> None:
        """A bug in a callback leaves the node in a state that nobody thought of: stop."""
        error = context.get("exception")
        if isinstance(error, Exception) and not isinstance(error, OSError):
            die(error)
        loop.default_exception_handler(context)


def die(error: BaseException) -> NoReturn:
    """Stop at once, saying nothing more to anyone: what was acknowledged is on disk.

    The workers end because the engine's socket closes.
    """
    _logger.critical("the node cannot go on: %s", error, exc_info=error)
    logging.shutdown()
    os._exit(EXIT_FATAL)


def _resolver(done: "asyncio.Future[None]") -> Callable[[object], None]:
    def resolve(_: object) -> None:
        if not done.done():
            done.set_result(None)

    return resolve


def _settle_garbage_collector() -> None:
    """Leave what was loaded out of the collections to come.

    The state is made of objects that the collector need not look at (no cycles), but it would
    still walk the containers that hold them.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)
