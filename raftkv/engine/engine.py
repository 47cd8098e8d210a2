"""A node's engine: data, Raft groups, peer links and router, wired together.

Everything that a machine gives it comes through :class:`Seams`, so that :mod:`raftkv.engine.node`
runs it on a real one and :mod:`raftkv.sim` on a simulated one: the very same code.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import msgspec

from raftkv.core.agreed import agreed_facts
from raftkv.core.cluster_map import ClusterMap
from raftkv.engine.agreement import AgreedFile, Agreement
from raftkv.engine.balancer import Balancer, Lost, NodeState, Placed
from raftkv.engine.cluster_status import ClusterStatus
from raftkv.engine.config import NodeConfig
from raftkv.engine.connection import LinkLimits
from raftkv.engine.directory import Directory
from raftkv.engine.group_host import GroupHost
from raftkv.engine.handshake import LinkHello
from raftkv.engine.http_traffic import HttpTraffic
from raftkv.engine.jobs import JobRunner
from raftkv.engine.links import PeerLinks
from raftkv.engine.map_file import load_map
from raftkv.engine.network import Network
from raftkv.engine.peer_wire import (
    CHANNEL_CALL,
    CHANNEL_LEADERSHIP,
    CHANNEL_NODE_STATE,
    CHANNEL_RAFT,
    CHANNEL_REPLY,
    CHANNEL_STATUS,
)
from raftkv.engine.replica_table import ReplicaTable
from raftkv.engine.replicas import Replicas, ReplicaSettings
from raftkv.engine.router import Router
from raftkv.engine.security import LinkSecurity
from raftkv.engine.snapshot_keeper import SnapshotKeeper, SnapshotWriter
from raftkv.engine.status import LocalStatus
from raftkv.raft.clock import Clock, SinceBoot
from raftkv.raft.group import Group
from raftkv.raft.host import GroupBounds, SnapshotPolicy
from raftkv.raft.proposals import Limits
from raftkv.raft.stages import StageDurations
from raftkv.raft.timing import RandomSource, Timing
from raftkv.rpc.framing import DECODE_ERRORS
from raftkv.rpc.messages import (
    BatchRequest,
    Call,
    ExplainRequest,
    Facts,
    Failure,
    GetRequest,
    Reply,
    Response,
    ScanRequest,
    Served,
    StatusRequest,
    TransferRequest,
    WorkerReport,
    WriteRequest,
)
from raftkv.status.facts import Nothing
from raftkv.storage.data_dir import DataDir
from raftkv.storage.disk import Disk
from raftkv.storage.snapshots import SnapshotStore
from raftkv.storage.wal import Wal
from raftkv.version import __version__

HANDOVER_S = 2.0
"""How long a stopping node tries to hand its leaderships over."""

HANDOVER_PAUSE_S = 0.02
"""Between two tries: one that is refused is refused at once."""

DRAIN_S = 5.0
"""How long it then waits for what is in flight."""

_DATA_REQUESTS = WriteRequest | GetRequest | ScanRequest | BatchRequest | TransferRequest

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Seams:
    """What an engine runs on.

    ``sync_jobs`` is one thread for the log's fdatasync alone, ``other_jobs`` are for everything
    else that may block. ``fatal`` is called when the node cannot go on, and must stop it.
    """

    clock: Clock
    loop: asyncio.AbstractEventLoop
    disk: Disk
    network: Network
    random: RandomSource
    random_bytes: Callable[[int], bytes]
    sync_jobs: JobRunner
    other_jobs: JobRunner
    snapshot_writer: Callable[[SnapshotStore], SnapshotWriter]
    fatal: Callable[[BaseException], None]
    link_limits: LinkLimits = field(default_factory=LinkLimits)
    group_limits: Limits = field(default_factory=Limits)
    """Bounds of each group's queues, as far as the configuration does not set them."""
    group_bounds: GroupBounds = field(default_factory=GroupBounds)


class Engine:
    """Everything of a node but its front end.

    Making one recovers the log and the states, blocking; :meth:`start` joins the peers.

    Raises:
        ReplicaUnreadable, DataDirError, DiskError, ReplicaError, SnapshotDamaged, UndecodableError,
        WalDamaged: the data cannot be used.
    """

    def __init__(
        self, config: NodeConfig, data: DataDir, security: LinkSecurity, seams: Seams
    ) -> None:
        self._config = config
        self._data = data
        self._seams = seams
        self._security = security
        self._name = config.node.name
        self._clock = seams.clock
        self._loop = seams.loop
        self._durations = StageDurations()
        self._stopping = False
        self._timer: asyncio.TimerHandle | None = None
        with contextlib.ExitStack() as closing:
            closing.callback(data.close)
            self._open(closing)
            self._closing = closing.pop_all()

    def _open(self, closing: contextlib.ExitStack) -> None:
        config, data, seams = self._config, self._data, self._seams
        self.directory = Directory(load_map(seams.disk, data.path, config.cluster))
        wal, recovered = Wal.open(
            seams.disk,
            data.wal_directory,
            identity=data.identity.identity,
            segment_bytes=config.limits.wal_segment_bytes,
        )
        closing.callback(wal.close)
        closing.callback(seams.other_jobs.close)
        closing.callback(seams.sync_jobs.close)
        self.replicas = ReplicaTable(self.directory)
        self.host = GroupHost(
            wal=wal,
            replicas=self.replicas,
            clock=seams.clock,
            loop=seams.loop,
            sync_jobs=seams.sync_jobs,
            other_jobs=seams.other_jobs,
            stall_s=config.raft.election_timeout_ms_min / 1000,
            fatal=seams.fatal,
            peer_window_bytes=seams.group_bounds.appends.peer_window_bytes,
        )
        facts = agreed_facts(self.directory.map, seams.group_bounds.memory)
        self.agreement = Agreement(
            nodes=self.directory.map.nodes,
            facts=facts,
            record=AgreedFile(seams.disk, data.path),
            could_not_write=_note_unwritten,
        )
        self.agreement.changed = self._agreement_changed
        self.links = self._make_links(facts)
        self._make_router()
        store = SnapshotStore(seams.disk, data.snapshot_directory)
        self.host.withhold(not self.agreement.may_lead)
        self._make_replicas(store).start_all(recovered)
        writer = seams.snapshot_writer(store)
        self.keeper = SnapshotKeeper(
            self.replicas, store, writer, self.host.other_jobs, wal.pinning
        )
        self.keeper.finished = self._snapshot_finished
        self._make_status(store)

    def _make_links(self, facts: dict[str, str]) -> PeerLinks:
        config, data, seams = self._config, self._data, self._seams
        return PeerLinks(
            hello=LinkHello(config.cluster.id, self._name, data.identity.identity, facts),
            peers=config.peers,
            listen=config.peer_listen,
            security=self._security,
            identities=data.peers,
            handler=self,
            clock=seams.clock,
            network=seams.network,
            limits=seams.link_limits,
            random_bytes=seams.random_bytes,
            agreement=self.agreement,
        )

    def _agreement_changed(self) -> None:
        """Lead only while enough nodes go by the same facts, and say when that changes."""
        may_lead, refusal = self.agreement.may_lead, self.agreement.refusal
        if refusal is not None:
            _logger.error("this node serves nothing: %s", refusal)
            self.host.recent.add("disagreed", refusal)
        elif may_lead:
            self.host.recent.add("agreed", "a majority of the nodes goes by the same map")
        self.host.guard(lambda: self.host.withhold(not may_lead))

    def _make_router(self) -> None:
        host, links = self.host, self.links
        self.router = Router(
            node=self._name,
            directory=self.directory,
            replicas=self.replicas,
            links=links,
            clock=SinceBoot(self._clock),
            loop=self._loop,
            slow_s=self._config.log.slow_request_ms / 1000,
            random_bytes=self._seams.random_bytes,
            limits=self._seams.link_limits,
        )
        self._balancer = Balancer(
            node=self._name,
            directory=self.directory,
            replicas=self.replicas,
            clock=self._clock,
            own_state=self._own_state,
            tell=self._tell,
        )
        self.router.local.placed = self._placed
        host.links = links
        host.leader_changed = self.router.leader_changed
        host.space_changed = self._tell_state
        host.leadership_begun = self._balancer.moved

    def _make_status(self, store: SnapshotStore) -> None:
        self.http = HttpTraffic(self._clock)
        self._status = LocalStatus(
            node=self._name,
            directory=self.directory,
            host=self.host,
            router=self.router,
            http=self.http,
            durations=self._durations,
            links=self.links,
            agreement=self.agreement,
            clock=self._clock,
            data_path=self._data.path,
            snapshot_path=store.path,
            leading=self._balancer.facts,
        )
        self._cluster_status = ClusterStatus(
            node=self._name,
            directory=self.directory,
            local=self._status,
            links=self.links,
            clock=self._clock,
            loop=self._loop,
        )

    def _make_replicas(self, store: SnapshotStore) -> Replicas:
        config, limits, seams = self._config, self._config.limits, self._seams
        return Replicas(
            directory=self.directory,
            host=self.host,
            store=store,
            clock=self._clock,
            random=seams.random,
            settings=ReplicaSettings(
                node=self._name,
                timing=Timing(
                    config.raft.heartbeat_ms / 1000,
                    config.raft.election_timeout_ms_min / 1000,
                    config.raft.election_timeout_ms_max / 1000,
                ),
                limits=msgspec.structs.replace(
                    seams.group_limits,
                    waiting_operations_max=limits.waiting_operations_max,
                    waiting_bytes_max=limits.waiting_bytes_max,
                    entry_operations_max=limits.entry_operations_max,
                    entry_bytes_max=limits.entry_bytes_max,
                    # A transaction may hold several values, and no value may be too large for it.
                    proposal_bytes_max=max(
                        seams.group_limits.proposal_bytes_max, 2 * config.http.value_bytes_max
                    ),
                ),
                snapshots=SnapshotPolicy(
                    limits.snapshot_after_bytes, limits.snapshot_after_entries
                ),
                bounds=seams.group_bounds,
                durations=self._durations,
            ),
        )

    def _snapshot_finished(self, group: Group, error: BaseException | None) -> None:
        kind = "snapshot_written" if error is None else "snapshot_failed"
        self._status.snapshots["written" if error is None else "failed"] += 1
        detail = f"at entry {group.compaction.snapshot_index}" if error is None else str(error)
        self.host.recent.add(kind, detail, shard=group.id.shard, term=group.term)

    # --- life ---------------------------------------------------------------------------------

    async def start(self) -> None:
        """Listen for the peers, dial them, and look after things every second.

        Raises:
            SecurityError, OSError: see :meth:`PeerLinks.start`.
        """
        await self.links.start()
        self.host.recent.add("started", f"version {__version__}")
        self._each_second()

    def renew(self, config: NodeConfig, security: LinkSecurity) -> None:
        """Go by another security for new links, and by other thresholds of the log."""
        self.links.renew(security)
        self.router.slow.threshold_s = config.log.slow_request_ms / 1000

    @property
    def map(self) -> ClusterMap:
        """The cluster map that this node goes by now."""
        return self.directory.map

    @property
    def in_flight(self) -> int:
        """Requests that are not answered yet."""
        waiting = sum(group.waiting_operations for group in self.replicas.groups())
        return waiting + self.router.in_flight

    async def hand_over(self) -> None:
        """Tell the peers that this node stops, and transfer its leaderships, all at once."""
        self._stopping = self._status.stopping = True
        self._tell_state()
        deadline = self._clock.monotonic() + HANDOVER_S
        while self._clock.monotonic() < deadline:
            led = [group for group in self.replicas.groups() if group.is_leader]
            targets = [(group, self._balancer.ablest(group)) for group in led]
            if not any(target for _, target in targets):
                return
            moved = []
            for group, target in targets:
                if target is not None:
                    done: asyncio.Future[None] = self._loop.create_future()
                    group.transfer.begin(target, _resolver(done))
                    moved.append(done)
            await asyncio.wait(moved, timeout=HANDOVER_S)
            await asyncio.sleep(HANDOVER_PAUSE_S)

    async def drain(self, *, and_until: Callable[[], bool]) -> None:
        """Wait until nothing is in flight here and ``and_until()`` holds, for a while."""
        deadline = self._clock.monotonic() + DRAIN_S
        while self._clock.monotonic() < deadline:
            if not self.in_flight and and_until():
                return
            await asyncio.sleep(0.02)

    def silence(self) -> None:
        """Do nothing more: no election, no record in the log. Who waits is answered."""
        if self._timer is not None:
            self._timer.cancel()
        self.host.stop()
        self.router.close()

    async def close(self) -> None:
        """Let go of everything; after :meth:`silence`."""
        await self.links.close()
        self._closing.close()

    def abandon(self) -> None:
        """Do nothing more after a start that failed: no election, no record in the log."""
        self.host.stop()
        self._seams.sync_jobs.close()
        self._seams.other_jobs.close()

    # --- LinkHandler --------------------------------------------------------------------------

    def on_connected(self, peer: str) -> None:
        """A link counts from now on. A failure to take it stops the node, see below."""
        self.host.guard(lambda: self._connected(peer))

    def on_disconnected(self, peer: str) -> None:
        """A link is lost. Who is not told of it would wait for ever: a failure stops the node."""
        self.host.guard(lambda: self._disconnected(peer))

    def _connected(self, peer: str) -> None:
        self.host.recent.add("link_up", f"to {peer}")
        self._tell_state()
        self.host.on_connected(peer)
        self.router.leader_changed()

    def _disconnected(self, peer: str) -> None:
        self.host.recent.add("link_down", f"to {peer}")
        self._balancer.peers.pop(peer, None)
        self.host.full_peers = self._balancer.full_peers()
        self._tell_state()
        self.host.on_disconnected(peer)
        self.router.on_disconnected(peer)

    def on_message(self, peer: str, channel: int, payload: bytes) -> None:
        """Hand a message to whom it concerns; raising closes the link.

        What a node of another version says beside Raft and calls is no reason to do without it.
        """
        if channel == CHANNEL_RAFT:
            self.host.on_bundle(peer, payload)
        elif channel == CHANNEL_CALL:
            self.router.on_call(peer, payload)
        elif channel == CHANNEL_REPLY:
            self.router.on_reply(peer, payload)
        elif channel == CHANNEL_NODE_STATE:
            if (state := _understood(NodeState, peer, payload)) is not None:
                self._balancer.hear(peer, state)
                self.host.full_peers = self._balancer.full_peers()
        elif channel == CHANNEL_LEADERSHIP:
            if (word := _understood(Placed | Lost, peer, payload)) is not None:
                self._balancer.hear_of(word)
        elif channel == CHANNEL_STATUS:
            self._cluster_status.on_message(peer, payload)
        else:
            _logger.warning("a message of %s on the unknown channel %d is ignored", peer, channel)

    # --- the front end's calls ----------------------------------------------------------------

    def handle(self, call: Call, respond: Callable[[Reply], None]) -> None:
        """Answer a call of the front end, once."""
        request = call.request
        refusal = self.agreement.refusal
        if refusal is not None and isinstance(request, _DATA_REQUESTS):
            failure = Failure(
                "unavailable", f"{self._name} serves nothing: {refusal}", definite=True
            )
            respond(Reply(call.id, failure, Served(self._name), self.directory.epoch))
            return
        if isinstance(request, WriteRequest | GetRequest):  # at once: they are nearly all
            self.router.handle(call, respond)
            return

        def answer(response: Response) -> None:
            respond(Reply(call.id, response, Served(self._name), self.directory.epoch))

        if isinstance(request, StatusRequest):
            if request.scope == "cluster":
                self._cluster_status.ask(answer)
            elif request.scope == "ready":
                answer(Facts.of(self._status.ready()))
            else:
                answer(Facts.of(self._status.facts()))
        elif isinstance(request, WorkerReport):
            self.http.take(request)
            answer(Facts.of(Nothing()))
        elif isinstance(request, ExplainRequest):
            self._cluster_status.explain(request.key, answer)
        else:
            self.router.handle(call, respond)

    # --- every second -------------------------------------------------------------------------

    def _own_state(self) -> NodeState:
        return NodeState(
            self.host.has_space(),
            self._stopping,
            self.host.has_slow_disk,
            tuple(sorted(self.links.connected)),
            self._balancer.pins.told(),
        )

    def _tell_state(self) -> None:
        self._tell_all(CHANNEL_NODE_STATE, self._own_state())

    def _tell(self, word: Placed | Lost) -> None:
        self._tell_all(CHANNEL_LEADERSHIP, word)

    def _tell_all(self, channel: int, word: object) -> None:
        message = msgspec.msgpack.encode(word)
        for peer in sorted(self.links.connected):  # in one order, so that a simulated run repeats
            self.links.send(peer, channel, message)

    def _placed(self, shard: int, node: str | None, for_s: float | None) -> None:
        """Leave a leadership where an operator has put it, and say so."""
        self._balancer.placed(shard, node, for_s)
        if node is None:
            return
        until = "until it stops" if for_s is None else f"for {for_s:g} s"
        self.host.recent.add("pinned", f"to {node} by an operator, {until}", shard=shard)

    def _each_second(self) -> None:
        self._timer = self._loop.call_later(1.0, self._each_second)
        self.host.look_after_log()
        self.host.watch_disk()
        self._tell_state()
        self.keeper.check()
        self._status.each_second()
        if not self._stopping:
            self._balancer.check()


def _note_unwritten(error: Exception) -> None:
    _logger.warning("that the nodes agree could not be written down: %s", error)


def _resolver(done: "asyncio.Future[None]") -> Callable[[object], None]:
    def resolve(_: object) -> None:
        if not done.done():
            done.set_result(None)

    return resolve


def _understood(kind: Any, peer: str, payload: bytes) -> Any:
    """Return what a peer says, as a value of ``kind``; None if it is none."""
    try:
        return msgspec.msgpack.decode(payload, type=kind)
    except DECODE_ERRORS as error:
        _logger.warning("what %s says of itself cannot be read: %s", peer, error)
        return None
