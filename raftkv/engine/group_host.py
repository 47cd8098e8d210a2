"""Drives all Raft groups of a node: one turn of the loop, one write to each peer, one fdatasync.

A group is ticked when it has a message, a proposal or a due timer, never by polling. What the
groups say in a turn leaves at its end, bundled per peer; what they record is made durable by one
fdatasync that runs on a thread beside the next turns.
"""

import asyncio
import heapq
import logging
import math
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

import msgspec

from raftkv.core.cluster_map import GroupId
from raftkv.engine.jobs import JobRunner, WatchedJobs
from raftkv.engine.peer_wire import CHANNEL_RAFT, Links
from raftkv.engine.recent import RecentEvents
from raftkv.engine.replica_table import ReplicaRecord, ReplicaTable
from raftkv.raft import messages as wire
from raftkv.raft.clock import Clock
from raftkv.raft.group import Group
from raftkv.raft.host import Event
from raftkv.raft.windows import PEER_WINDOW_BYTES, PeerWindow
from raftkv.status.durations import SYNC_BOUNDS_S, DurationCounts
from raftkv.storage.wal import HousekeepingJob, SyncJob, Wal

BUNDLE_BYTES = 1024 * 1024
"""A bundle this large leaves before the end of the turn."""

TIMER_GRID_S = 0.02
"""Deadlines are rounded up to this, so that the heartbeats of many groups leave together."""

ROOM_KEPT = 0.25
"""Share of a log segment that is kept for terms, votes and no-ops when the disk is full."""

SLOW_SYNC_S = 0.1
"""An fdatasync that takes longer is an event, one every so many seconds at most."""

SLOW_SYNC_AGAIN_S = 10.0

DISK_SILENT_LOOKS = 10
"""A disk that has not answered at so many looks, a second apart, may never do so, and an operator
must hear of it. Looks and not time: this process may have been stopped as well."""

SLOW_DISK_S = 30.0
"""A disk that was too slow for a leader counts as slow for so long."""

ALARMS = frozenset({"digest_mismatch", "entries_lost"})
"""Events that tell of damage."""

_logger = logging.getLogger(__name__)


class GroupHost:
    """The groups of one node, its write-ahead log, and when each gets its turn.

    Args:
        replicas: the groups that get turns, with what is kept of each.
        loop: where everything runs.
        sync_jobs: one thread, for the log's fdatasync alone.
        other_jobs: for everything else that may block.
        stall_s: an fdatasync that takes longer makes leaders step down (H20).
        fatal: called when the node cannot go on; must stop it.
        peer_window_bytes: of entries in flight to one peer, of all groups together.
    """

    def __init__(
        self,
        *,
        wal: Wal,
        replicas: ReplicaTable,
        clock: Clock,
        loop: asyncio.AbstractEventLoop,
        sync_jobs: JobRunner,
        other_jobs: JobRunner,
        stall_s: float,
        fatal: Callable[[BaseException], None],
        peer_window_bytes: int = PEER_WINDOW_BYTES,
    ) -> None:
        self.wal = wal
        self.replicas = replicas
        self.links: Links | None = None
        self.full_peers: frozenset[str] = frozenset()
        self.recent = RecentEvents(clock)
        self.event_counts: dict[str, int] = dict.fromkeys(sorted(ALARMS), 0)
        """What happened to replicas, by kind; a counter that appears with its first count shows no
        increase, so alarms begin at 0."""
        self.sync_seconds: deque[float] = deque(maxlen=1000)
        """Durations of the latest fdatasync jobs."""
        self.sync_durations = DurationCounts(SYNC_BOUNDS_S)
        """Durations of all of them."""
        self.turns = 0
        """How many turns there were: between two of them nothing of a group changes for others."""
        self.leader_changed: Callable[[], None] = lambda: None
        """Called when a group of this node has got or lost its leader."""
        self.space_changed: Callable[[], None] = lambda: None
        """Called when this node has no space any more, or has some again."""
        self.leadership_begun: Callable[[ReplicaRecord, str | None, str], None] = lambda *_: None
        """Called with who led a group of this node before, and who leads now."""
        self._clock = clock
        self._loop = loop
        self._sync_jobs = sync_jobs
        self.other_jobs = WatchedJobs(other_jobs, clock)
        self._stall_s = stall_s
        self._fatal = fatal
        self._dirty: dict[GroupId, None] = {}
        self._turn_scheduled = False
        self._due: list[tuple[float, int, int]] = []  # heap of (deadline, shard, generation)
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = math.inf
        self._peer_window_bytes = peer_window_bytes
        self._windows: dict[str, PeerWindow] = {}
        self._turns_due = False  # some window has room again for those that wait
        self._bundles: dict[str, list[bytes]] = {}
        self._bundle_bytes: dict[str, int] = {}
        self._syncing_since: float | None = None
        self._disk_looked_at = math.inf  # since when the disk was waited for, at the latest look
        self._disk_looks = 0  # at how many looks in a row it was the same
        self._stalled_at = -math.inf  # when an fdatasync ended that had taken too long for a leader
        self._without_room: SyncJob | None = None  # to be run again once there may be room
        self._declining = False  # no entries are taken until there is space
        self._stopped = False
        self._withheld = False
        self._encode = msgspec.msgpack.Encoder().encode
        self._decode = msgspec.msgpack.Decoder(tuple[wire.Envelope, ...]).decode

    # --- Host, for the groups -----------------------------------------------------------------

    def send(self, group: GroupId, peer: str, message: wire.RaftMessage) -> None:
        """Put a message into this turn's bundle for ``peer``."""
        envelope = self._encode(wire.Envelope(group.shard, group.generation, message))
        if isinstance(message, wire.SnapshotChunk):
            if self.links is not None:
                self.links.send(peer, CHANNEL_RAFT, _bundle([envelope]), bulk=True)
            return
        bundle = self._bundles.setdefault(peer, [])
        bundle.append(envelope)
        size = self._bundle_bytes.get(peer, 0) + len(envelope)
        self._bundle_bytes[peer] = size
        if size > BUNDLE_BYTES:
            self._send_bundle(peer)
        self._schedule_turn()

    def wake(self, group: GroupId) -> None:
        """Tick ``group`` at the end of this turn."""
        self._dirty[group] = None
        self._schedule_turn()

    def run_job(self, job: Callable[[], object], done: Callable[..., None]) -> None:
        """Run a blocking job of a group."""

        def finished(result: Any, error: BaseException | None) -> None:
            self.guard(lambda: done(result, error))

        self.other_jobs.run(job, finished)

    def event(self, event: Event) -> None:
        """Note and log what happened."""
        self.recent.add(event.kind, event.detail, shard=event.group.shard, term=event.term)
        self.event_counts[event.kind] = self.event_counts.get(event.kind, 0) + 1
        _logger.log(
            _level(event),
            "group %s, term %d: %s",
            event.group,
            event.term,
            f"{event.kind} {event.detail}".rstrip(),
            extra={"facts": {"event": event.kind, "shard": event.group.shard, "term": event.term}},
        )

    def disk_stalled(self) -> bool:
        """Whether an fdatasync has not returned for an election time-out (H20)."""
        since = self._syncing_since
        return since is not None and self._clock.monotonic() - since > self._stall_s

    @property
    def has_slow_disk(self) -> bool:
        """Whether the disk has stalled lately: a leader here would step down again."""
        lately = self._clock.monotonic() - self._stalled_at < SLOW_DISK_S
        return lately or self.disk_stalled()

    @property
    def disk_silent_s(self) -> float:
        """For how long an fdatasync or another job has waited for the disk; 0: not for long."""
        if self._disk_looks < DISK_SILENT_LOOKS or self._disk_waits_since() != self._disk_looked_at:
            return 0.0
        return self._clock.monotonic() - self._disk_looked_at

    def _disk_waits_since(self) -> float:
        """When the oldest work began that waits for the disk; infinite: none does."""
        syncing = self._syncing_since if self._without_room is None else None
        waiting = (syncing, self.other_jobs.oldest_since)
        return min((at for at in waiting if at is not None), default=math.inf)

    def has_space(self) -> bool:
        """Whether new proposals may be taken."""
        return self.wal.has_space()

    def window_to(self, peer: str) -> PeerWindow:
        """Return what all groups share of what is in flight to ``peer``."""
        window = self._windows.get(peer)
        if window is None:
            window = self._windows[peer] = PeerWindow(self._window_opened, self._peer_window_bytes)
        return window

    def _window_opened(self) -> None:
        self._turns_due = True
        self._schedule_turn()

    # --- life ---------------------------------------------------------------------------------

    @property
    def groups(self) -> dict[GroupId, Group]:
        """The groups that get turns, by name."""
        return {name: record.group for name, record in self.replicas.by_id.items()}

    def add(self, group: Group) -> None:
        """Drive ``group`` from now on."""
        self.replicas.add(group, self._clock.time_us())
        if self._withheld:
            group.withhold(withheld=True)
        self.wake(group.id)

    def withhold(self, withheld: bool) -> None:  # noqa: FBT001 -- a state, not an option
        """Let no group of this node lead from now on, or let them again."""
        self._withheld = withheld
        for record in self.replicas:
            record.group.withhold(withheld)

    def stop(self) -> None:
        """Answer everybody who waits and tick no more."""
        for record in self.replicas:
            record.group.stop()
        self._stopped = True
        if self._timer is not None:
            self._timer.cancel()

    # --- from the links -----------------------------------------------------------------------

    def on_connected(self, peer: str) -> None:
        """A link counts from now on."""
        for group in self._groups_with(peer):
            group.peer_connected(peer)

    def on_disconnected(self, peer: str) -> None:
        """A link is lost, and what was on it."""
        self._bundles.pop(peer, None)
        self._bundle_bytes.pop(peer, None)
        for group in self._groups_with(peer):
            group.peer_disconnected(peer)

    def on_bundle(self, peer: str, payload: bytes) -> None:
        """Take a bundle of envelopes; msgspec.MsgspecError if it is not one."""
        envelopes = self._decode(payload)
        self.guard(lambda: self._take(peer, envelopes))
        if self.wal.buffered_bytes:  # a turn syncs it, also where no group has more to do
            self._schedule_turn()

    def _take(self, peer: str, envelopes: Iterable[wire.Envelope]) -> None:
        for envelope in envelopes:
            record = self.replicas.by_id.get(GroupId(envelope.shard, envelope.generation))
            if record is None:  # this node does not hold it (any more)
                continue
            group, message = record.group, envelope.message
            if isinstance(message, wire.AppendEntries) and self._must_decline(group, message):
                # Not lost (that would be a new election) and not refused (the leader would send it
                # all again at once): a heartbeat that proves nothing, and acknowledges nothing.
                message = wire.AppendEntries(message.term, 0, 0, 0)
            group.receive(peer, message)

    def _must_decline(self, group: Group, message: wire.AppendEntries) -> bool:
        """Whether entries that the group lacks would leave no room for votes and terms.

        The others of the group go on without this replica then. Once there is space, a heartbeat
        shows its leader where its log ends.
        """
        if self.wal.has_space():
            self._declining = False
            return False
        size = sum(len(command) for command, _ in message.entries)
        if self.wal.room_bytes - size < self.wal.segment_bytes * ROOM_KEPT:
            # For good, whatever their size: a heartbeat let through would ask for all again.
            self._declining = True
        lacking = message.prev_index + len(message.entries) > group.last_index
        return self._declining and lacking

    def _groups_with(self, peer: str) -> Iterable[Group]:
        return [group for group in self.replicas.groups() if peer in group.config.members]

    # --- turns --------------------------------------------------------------------------------

    def _schedule_turn(self) -> None:
        if not self._turn_scheduled and not self._stopped:
            self._turn_scheduled = True
            self._loop.call_soon(self._turn)

    def _turn(self) -> None:
        """Tick who is due, let the messages out, start the next fdatasync."""
        self._turn_scheduled = False
        if self._stopped:
            return
        self.turns += 1
        dirty, self._dirty = self._dirty, {}
        for record in map(self.replicas.by_id.__getitem__, dirty):
            self.guard(record.group.tick)
            self._note(record)
        if self._turns_due:
            self._turns_due = False
            for window in self._windows.values():
                self.guard(window.give_turns)
        for peer in list(self._bundles):
            self._send_bundle(peer)
        self._sync()

    def guard(self, step: Callable[[], None]) -> None:
        """Run a step of a group, or of several; one that fails stops the node, whatever it raised.

        A group that was left half-way must not say anything more.
        """
        try:
            step()
        except Exception as error:  # noqa: BLE001 -- fatal, with its trace in the log
            self._fatal(error)

    def _note(self, record: ReplicaRecord) -> None:
        """Remember when the group is due next, and who leads it."""
        deadline, timed = record.group.next_deadline(), record.timed_at
        if deadline < timed:  # most only move away
            deadline = math.ceil(deadline / TIMER_GRID_S) * TIMER_GRID_S
            if deadline < timed:
                record.timed_at = deadline
                heapq.heappush(self._due, (deadline, *record.group.id))
                self._arm_timer()
        self.note_leader(record)

    def note_leader(self, record: ReplicaRecord) -> None:
        """Remember who leads a group, and tell if that has changed."""
        group = record.group
        known, leader = record.leaderships, group.leader_heard
        if known.leader != leader or (leader is not None and known.term != group.term):
            before, again = known.last, (leader, group.term) == (known.last, known.term)
            known.note(group.term, leader, self._clock.time_us())
            if leader is not None and not again:
                self.leadership_begun(record, before, leader)
            self.leader_changed()

    def _arm_timer(self) -> None:
        if self._due and self._due[0][0] < self._timer_at:
            if self._timer is not None:
                self._timer.cancel()
            self._timer_at = self._due[0][0]
            delay = max(0.0, self._timer_at - self._clock.monotonic())
            self._timer = self._loop.call_later(delay, self._on_timer)

    def _on_timer(self) -> None:
        """Wake the groups that are due; those whose deadline has moved are put back."""
        self._timer, self._timer_at = None, math.inf
        now = self._clock.monotonic()
        while self._due and self._due[0][0] <= now:
            deadline, shard, generation = heapq.heappop(self._due)
            record = self.replicas.by_id.get(GroupId(shard, generation))
            if record is None or record.timed_at != deadline:
                continue
            record.timed_at = math.inf
            if record.group.next_deadline() <= now:
                self.wake(record.group.id)
            else:
                self._note(record)
        self._arm_timer()

    def _send_bundle(self, peer: str) -> None:
        bundle = self._bundles.pop(peer, None)
        self._bundle_bytes.pop(peer, None)
        if bundle and self.links is not None:
            self.links.send(peer, CHANNEL_RAFT, _bundle(bundle))

    # --- the log ------------------------------------------------------------------------------

    def _sync(self) -> None:
        """Start an fdatasync if something is recorded and none is under way."""
        job = self.wal.begin_sync()
        if job is None:
            return
        self._syncing_since = self._clock.monotonic()
        self._run_sync(job)

    def _run_sync(self, job: SyncJob) -> None:
        self._sync_jobs.run(job.run, lambda _, error: self._synced(job, error))

    def _synced(self, job: SyncJob, error: BaseException | None) -> None:
        if error is not None:  # nothing is known about the disk now: a failed fsync is final
            self._fatal(error)
            return
        if job.full is not None:
            # As with a disk that stalls (H20), nothing is promised and nobody led until it goes on.
            self.wal.sync_found_no_room(job)
            self._without_room = job
            return
        started = self._syncing_since
        self._syncing_since = None
        if started is not None:
            took_s = self._clock.monotonic() - started
            self.sync_seconds.append(took_s)
            self.sync_durations.note(took_s)
            if took_s > SLOW_SYNC_S:
                self._note_slow_sync(took_s)
                if took_s > self._stall_s:
                    self._stalled_at = self._clock.monotonic()
        self.wal.finish_sync(job)
        for record in self.replicas:
            record.group.wal_synced()
        self._sync()
        if self.wal.has_space():
            self.look_after_log()

    def _note_slow_sync(self, took_s: float) -> None:
        detail = f"one fdatasync took {took_s * 1000:.0f} ms"
        if self.recent.add_at_most_every(SLOW_SYNC_AGAIN_S, "slow_disk", detail):
            _logger.warning("slow disk: %s", detail)

    def watch_disk(self) -> None:
        """Look whether the disk answers; call every second."""
        since = self._disk_waits_since()
        goes_on = since == math.inf or since != self._disk_looked_at
        self._disk_looked_at, self._disk_looks = since, 0 if goes_on else self._disk_looks + 1
        if self._disk_looks == DISK_SILENT_LOOKS:
            detail = f"the disk has not answered for {self.disk_silent_s:.0f} s"
            self.recent.add("disk_silent", detail)
            _logger.error("%s: what waits for it waits on", detail)

    def look_after_log(self) -> None:
        """Delete segments that nobody needs and allocate the next one ahead; call every second."""
        if self._without_room is not None:
            waiting, self._without_room = self._without_room, None
            self._run_sync(waiting)
        job = self.wal.begin_housekeeping()
        if job is not None:
            self.other_jobs.run(job.run, lambda _, error: self._kept_house(job, error))

    def _kept_house(self, job: HousekeepingJob, error: BaseException | None) -> None:
        if error is not None:
            self._fatal(error)
            return
        had_space = self.wal.has_space()
        self.wal.finish_housekeeping(job)
        if self.wal.has_space() != had_space:
            self.space_changed()
        self._sync()


def _level(event: Event) -> int:
    """An election is one line, its winner's, and that of whom it deposed.

    Who else stood for it and who follows is for a closer look.
    """
    if event.kind in ALARMS:
        return logging.CRITICAL
    beside = event.kind == "candidate" or (event.kind == "follower" and not event.detail)
    return logging.DEBUG if beside else logging.INFO


def _bundle(envelopes: list[bytes]) -> bytes:
    """Make one MessagePack array of encoded envelopes, without encoding them again."""
    return b"\xdd" + len(envelopes).to_bytes(4, "big") + b"".join(envelopes)
