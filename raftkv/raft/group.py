"""One node's replica of one Raft group, with the shard's state machine: what the engine drives.

Sans I/O: the engine ticks it, hands it messages and tells it when the disk has synced; it answers
through callbacks, which run at the end of the call that caused them, never in the middle of it.
"""

import logging
from collections.abc import Callable, Sequence
from typing import TypeVar

from raftkv.core.batches import decode_batch, encode_batch
from raftkv.core.cluster_map import GroupId
from raftkv.core.errors import CorruptBatch, UnknownFormat
from raftkv.core.operations import BATCH_FORMAT, Batch, Command
from raftkv.core.shard.expiry import ExpiryClock
from raftkv.core.shard.machine import StateMachine
from raftkv.raft import messages as wire
from raftkv.raft.clock import Clock
from raftkv.raft.compaction import Compaction, load_state
from raftkv.raft.digests import StateDigests
from raftkv.raft.errors import ReplicaError
from raftkv.raft.freshness import Freshness
from raftkv.raft.host import Event, GroupConfig, Host
from raftkv.raft.journal import GroupJournal, LogEntry, LogStore, Recovered, command_of
from raftkv.raft.proposals import Done, GroupFailure, Proposal, ProposalQueue
from raftkv.raft.quorum import majority
from raftkv.raft.reads import ReadIndex, Voucher
from raftkv.raft.ready import LEADER, NOTHING, EntriesLost, Ready, RoleChange, SnapshotNeeded
from raftkv.raft.replica import Replica
from raftkv.raft.snapshot_exchange import SnapshotExchange
from raftkv.raft.snapshot_transfer import SnapshotFiles, SnapshotId
from raftkv.raft.stages import EntryStages
from raftkv.raft.timing import RandomSource
from raftkv.raft.transfer import LeadershipTransfer

_logger = logging.getLogger(__name__)

T = TypeVar("T")

Query = Callable[[StateMachine | GroupFailure], None]
"""Called once: with the state, which it reads at that very moment and does not change, or with why
it may not read it."""

HOUSEKEEPING_S = 1.0
"""How often a leader compares digests and looks for idempotency memory to forget."""


class Group:
    """A replica with its state machine, the writes that wait for its log, and its other parts.

    What clients ask of the state goes through :meth:`read`, :meth:`read_stale` and
    :meth:`read_local`. The engine asks some parts itself: ``freshness`` (how old the state may
    be), ``transfer`` (of the leadership), ``compaction`` (snapshots in the place of the log); it
    looks at ``state`` for snapshots and sizes, at ``journal``, ``digests`` and ``stages``.

    Args:
        config: name, members, which keys it owns, times and bounds.
        store: the node's write-ahead log.
        recovered: what that remembers of this group.
        files: this group's snapshots; the state is loaded from the latest here, all at once.

    Raises:
        ReplicaError: the log was compacted beyond the snapshot that is there (H5), or speaks of a
            term or index that no cluster comes to.
    """

    def __init__(
        self,
        config: GroupConfig,
        *,
        store: LogStore,
        recovered: Recovered | None,
        files: SnapshotFiles,
        host: Host,
        clock: Clock,
        random: RandomSource,
    ) -> None:
        self.id = config.id
        self.config = config
        self._host = host
        self._clock = clock
        self._outcomes: list[tuple[Callable[..., None], object]] = []
        self.journal = GroupJournal(store, config.id, recovered)
        _check_reachable(config.id, self.journal)
        self.state, snapshot_index = load_state(config, files, self.journal)
        self._queue = ProposalQueue(config.limits)
        self._expiry: ExpiryClock | None = None
        self.stages = EntryStages(clock, config.durations)
        self._housekeeping_at = 0.0
        self.leader_since = clock.monotonic()
        self.elections = 0
        self._replica = replica = Replica(
            name=config.node,
            members=config.members,
            journal=self.journal,
            applied_index=snapshot_index,
            clock=clock,
            random=random,
            timing=config.timing,
            preferred=config.members[0] == config.node,
            appends=config.bounds.appends,
            window_to=host.window_to,
            take_turn=self._take_turn,
            entries_max=config.bounds.apply_operations_per_tick,
        )
        self.reads = ReadIndex(
            config.id,
            replica=replica,
            host=host,
            clock=clock,
            resend_s=config.timing.heartbeat_s,
            waiting_max=config.limits.reads_waiting_max,
        )
        self.freshness = Freshness(
            config.id,
            replica=replica,
            reads=self.reads,
            host=host,
            clock=clock,
            random=random,
            waiting_max=config.limits.reads_waiting_max,
            election_s=config.timing.election_max_s,
        )
        self.transfer = LeadershipTransfer(config, replica=replica, host=host, clock=clock)
        self.digests = StateDigests(config.id, replica=replica, host=host)
        self._snapshots = SnapshotExchange(
            config, replica=replica, files=files, host=host, clock=clock, install=self._install
        )
        self.compaction = Compaction(
            config, snapshot_index, replica=replica, exchange=self._snapshots
        )

    # --- what the engine reads ----------------------------------------------------------------

    @property
    def term(self) -> int:
        """Current term."""
        return self._replica.term

    @property
    def is_leader(self) -> bool:
        """Whether this replica believes that it leads."""
        return self._replica.is_leader

    @property
    def leader(self) -> str | None:
        """Name of the leader as far as known."""
        return self._replica.leader

    @property
    def leader_heard(self) -> str | None:
        """Name of the leader if it was heard lately; a follower believes in a dead one for ever."""
        if self.is_leader:
            return self.config.node
        silent_s = self._clock.monotonic() - self._replica.leader_contact
        heard = silent_s < 2 * self.config.timing.election_max_s
        return self._replica.leader if heard else None

    @property
    def was_handed_over(self) -> bool:
        """Whether this term began by a transfer, as far as this replica has heard."""
        return self._replica.handed_over_term == self.term

    @property
    def applied_index(self) -> int:
        """Highest applied index."""
        return self._replica.applied_index

    @property
    def commit_index(self) -> int:
        """Highest index known to be committed."""
        return self._replica.commit_index

    @property
    def last_index(self) -> int:
        """Last index of the log."""
        return self.journal.last_index

    @property
    def leader_contact_age_s(self) -> float | None:
        """Seconds since the leader was last heard; 0 on the leader, None if never."""
        if self.is_leader:
            return 0.0
        age = self._clock.monotonic() - self._replica.leader_contact
        return None if age == float("inf") else age

    @property
    def waiting_operations(self) -> int:
        """Writes and reads that are not answered yet."""
        return self._queue.operations + len(self.reads)

    @property
    def is_ready(self) -> bool:
        """Whether this replica follows or leads, and has applied what it knows to be committed."""
        return self.has_role and self.applied_index >= self.commit_index

    @property
    def has_role(self) -> bool:
        """Whether this replica follows a leader, or leads and may answer."""
        if self.is_leader:
            return self._replica.no_op_applied
        return self.leader is not None

    @property
    def installing_snapshot(self) -> bool:
        """Whether a leader's snapshot is on its way in."""
        return self._snapshots.is_receiving

    def match_index(self, peer: str) -> int:
        """Leader only: up to where ``peer`` durably agrees."""
        return self._replica.match_index(peer)

    def has_answered(self, peer: str) -> bool:
        """Leader only: whether ``peer`` has answered in this term, so that its log is known."""
        return self._replica.has_answered(peer)

    def follower_contact_age_s(self, peer: str) -> float | None:
        """Leader only: seconds since ``peer`` last answered, None if not known."""
        contact = self._replica.follower_contact(peer)
        return None if contact is None else self._clock.monotonic() - contact

    def next_deadline(self) -> float:
        """When the group must be ticked at the latest, in monotonic seconds."""
        deadline = self._replica.next_deadline()
        if self.reads.is_asking or self.transfer.is_under_way:
            return min(deadline, self.reads.next_deadline(), self.transfer.next_deadline())
        if self.freshness.is_waiting:
            return min(deadline, self.freshness.next_deadline())
        return deadline

    # --- driving ------------------------------------------------------------------------------

    def tick(self) -> None:
        """Do whatever is due, then answer whom it concerns."""
        replica = self._replica
        ready = replica.tick(disk_stalled=self._host.disk_stalled())
        is_behind = False
        if ready is not NOTHING:
            self._carry_out(ready)
            is_behind = self._apply(ready.entries)
        if replica.is_leader:
            self._propose_waiting()
            self._housekeeping()
        self._later(self.transfer.tick())
        self._serve_reads()
        if self._snapshots.tick() or is_behind:
            self._host.wake(self.id)
        if self._outcomes:
            self._answer()

    def _serve_reads(self) -> None:
        for done in self.reads.tick():
            done(None)
        for done, failure in self.freshness.tick():
            done(failure)

    def _housekeeping(self) -> None:
        now = self._clock.monotonic()
        if now < self._housekeeping_at:
            return
        self._housekeeping_at = now + HOUSEKEEPING_S
        self.digests.announce()
        forget = self._expiry.poll(now) if self._expiry is not None else None
        if forget is not None:
            # Whether it is applied shows in the state; the clock asks again otherwise.
            self.propose((Command(forget),), lambda _: None)

    def receive(self, peer: str, message: wire.RaftMessage) -> None:
        """Take a message from an authenticated peer."""
        match message:
            case wire.AppendEntries() | wire.AppendResponse():  # first, as nearly all are these
                self._replicate(peer, message)
            case wire.ConfirmLeader():
                self.reads.on_confirm(peer, message)
            case wire.LeaderConfirmed():
                if self.reads.on_confirmed(peer, message):
                    self._serve_reads()
            case wire.FreshnessQuery():
                self.freshness.on_query(peer, message)
            case wire.FreshnessEcho():
                self.freshness.on_echo(message)
            case wire.SnapshotChunk():
                self._carry_out(self._replica.learn_term(message.term))
                self._snapshots.on_chunk(peer, message)
            case wire.SnapshotProgress():
                self._snapshots.on_progress(peer, message)
            case wire.DigestCheck():
                self.digests.on_check(peer, message)
            case _:
                self._carry_out(self._replica.receive(peer, message))
                self._host.wake(self.id)
        self._answer()

    def _replicate(self, peer: str, message: wire.AppendEntries | wire.AppendResponse) -> None:
        """Take entries or an acknowledgement; many of them leave nothing for a tick to do."""
        replica = self._replica
        before = (replica.term, replica.is_leader, replica.leader)
        ready = replica.receive(peer, message)
        if ready is not NOTHING:  # as a follower's answers mostly are
            self._carry_out(ready)
        if before != (replica.term, replica.is_leader, replica.leader):
            self._host.wake(self.id)
        else:
            self._wake_for_work()

    def _wake_for_work(self) -> None:
        """Ask for a tick if it can commit or apply, or perhaps let a transfer go on."""
        if self._replica.has_work or self.transfer.is_under_way:
            self._host.wake(self.id)

    def peer_connected(self, peer: str) -> None:
        """Hear that ``peer`` can be sent to."""
        self._replica.peer_connected(peer)
        self._host.wake(self.id)

    def peer_disconnected(self, peer: str) -> None:
        """Hear that it cannot, and that what was in flight is lost."""
        if peer == self.leader:
            lost = GroupFailure("not_leader", "the link to the leader is lost")
            self._later([(done, lost) for done in self.freshness.fail_all()])
        self._replica.peer_disconnected(peer)
        self._snapshots.stop_sending(peer)
        self._host.wake(self.id)
        self._answer()

    def wal_synced(self) -> None:
        """Hear that the write-ahead log is durable further than before."""
        if self._replica.awaits_sync:
            self._carry_out(self._replica.wal_synced())
            if self.stages.following:
                self.stages.durable(self.journal.durable_index)
            self._wake_for_work()

    def withhold(self, withheld: bool) -> None:  # noqa: FBT001 -- a state, not an option
        """Neither lead nor stand for election from now on, or do so again."""
        self._carry_out(self._replica.withhold(withheld))
        self._host.wake(self.id)
        self._answer()

    def stop(self) -> None:
        """Answer everybody who waits: refused if it never reached the log, else unknown."""
        stopping = GroupFailure("stopping", "the node is shutting down")
        self._later(self._queue.fail_waiting(stopping))
        unknown = GroupFailure(
            "unknown", "the node is shutting down; the write may yet be committed"
        )
        self._later(self._queue.fail_in_flight(None, unknown))
        self._later([(done, stopping) for done in self.reads.fail_all()])
        self._later([(done, stopping) for done in self.freshness.fail_all()])
        self._snapshots.stop()
        self._answer()

    # --- reads --------------------------------------------------------------------------------

    def read(self, query: Query, voucher: Voucher | None = None) -> None:
        """Call ``query`` once the state may be read linearizably, now or later.

        ``voucher`` is of the member that forwarded the read, if one did.
        """

        def confirmed(failure: GroupFailure | None) -> None:
            query(self.state if failure is None else failure)

        self.reads.confirm(confirmed, voucher)

    def read_stale(self, query: Query, max_age_ms: int) -> None:
        """Call ``query`` once this replica's state is at most ``max_age_ms`` old, now or later."""

        def fresh(failure: GroupFailure | None) -> None:
            query(self.state if failure is None else failure)

        self.freshness.ensure(max_age_ms, fresh)

    def read_local(self, query: Callable[[StateMachine], T]) -> T:
        """Ask the state as this replica has it now, however old that is."""
        return query(self.state)

    # --- writes -------------------------------------------------------------------------------

    def propose(self, commands: Sequence[Command], done: Done) -> None:
        """Put commands into the log together; ``done`` gets their results, in order."""
        failure = self._why_not_propose()
        if failure is None:
            failure = self._queue.offer(Proposal(commands, done, self._clock.monotonic()))
        if failure is not None:
            done(failure)
        else:
            self._host.wake(self.id)

    def _why_not_propose(self) -> GroupFailure | None:
        if not self.is_leader:
            return GroupFailure("not_leader")
        return self._disk_full()

    def _disk_full(self) -> GroupFailure | None:
        """Why there is no room for an entry: here, or on so many replicas that none commits."""
        if not self._host.has_space():
            return GroupFailure("disk_full", f"the disk of {self.config.node} is full")
        if not self._host.full_peers:  # nearly always
            return None
        members = self.config.members
        full = sorted(self._host.full_peers.intersection(members))
        if len(members) - len(full) >= majority(len(members)):
            return None
        return GroupFailure("disk_full", f"the disks of {', '.join(full)} are full")

    def _propose_waiting(self) -> None:
        """Leader only: put what waits into the log, and send it at once."""
        entry = self.take_entry()
        if entry is None:
            return
        while entry is not None:
            self._replica.propose(entry)
            entry = self.take_entry()
        self._carry_out(self._replica.send_proposed())

    def take_entry(self) -> bytes | None:
        """Return the next command to propose, everything that waits as one; None for nothing."""
        if not self._queue.has_waiting or self.transfer.is_under_way:
            return None
        full = self._disk_full()
        if full is not None:  # it filled up while they waited: refused, still definitely
            self._later(self._queue.fail_waiting(full))
            return None
        index, offered_at = self.journal.last_index + 1, self._queue.oldest_offered_at
        commands = self._queue.take(index, self.term)
        self.stages.proposed(index, self.term, offered_at)
        clock_us = self._clock.time_us()
        return encode_batch(Batch(BATCH_FORMAT, self.id.generation, clock_us, commands))

    # --- what a step of the replica leaves to be done -----------------------------------------

    def _carry_out(self, ready: Ready) -> None:
        """Take notice of what happened, and send what is to be sent."""
        for notice in ready.notices:
            match notice:
                case RoleChange():
                    self._role_changed(notice)
                case SnapshotNeeded(peer):
                    self._snapshots.send_to(peer)
                case EntriesLost():
                    self._entries_lost(notice)
        for peer, message in ready.messages:
            self._host.send(self.id, peer, message)

    def _take_turn(self, peer: str) -> None:
        """Send one message to ``peer``; see :class:`raftkv.raft.windows.PeerWindow`."""
        self._carry_out(self._replica.send_more(peer))

    def _role_changed(self, change: RoleChange) -> None:
        self.leader_since = self._clock.monotonic()
        detail = "after it led" if change.before == LEADER else ""
        self._host.event(Event(change.now, self.id, change.term, detail))
        if change.now == LEADER:
            self.elections += 1
            self._start_expiry()
            self._housekeeping_at = 0.0
            for done in self.freshness.fail_all():  # what waited for a leader asks us now
                self._outcomes.append((self.reads.confirm, done))
        elif change.before == LEADER:
            not_leader = GroupFailure("not_leader", "this replica stopped leading")
            self._later(self._queue.fail_waiting(not_leader))
            self._later([(done, not_leader) for done in self.reads.fail_all()])
            self._snapshots.stop_sending()
            self.stages.forget()

    def _entries_lost(self, lost: EntriesLost) -> None:
        """Tell operators: a disk that forgets is to be replaced before another one fails."""
        what = f"had acknowledged entries {lost.first} to {lost.last} and lost them"
        detail = f"{lost.peer} {what}: check its disk"
        self._host.event(Event("entries_lost", self.id, self.term, detail))

    def _apply(self, entries: Sequence[LogEntry]) -> bool:
        """Apply committed entries in order, each exactly once, some at a time (H12).

        Return whether there are more.
        """
        budget = self.config.bounds.apply_operations_per_tick
        for entry in entries:
            _, index, term = entry
            budget -= 1 + self.apply_entry(index, term, command_of(entry))
            self._replica.applied(index)
            if budget <= 0:
                break
        return self._replica.applied_index < self._replica.commit_index

    def apply_entry(self, index: int, term: int, command: bytes | None) -> int:
        """Apply a committed entry (None: a no-op) and answer whoever proposed it.

        Return how many operations that was.
        """
        results = []
        own = self.stages.reached(index, term) if self.stages.following else None
        if command is not None:
            try:
                batch = decode_batch(command)
            except (UnknownFormat, CorruptBatch) as error:
                raise ReplicaError(f"group {self.id}, entry {index}: {error}") from error
            results = self.state.apply(batch)
        if own is not None:
            self.stages.applied(own)
        self._later(self._queue.applied(index, term, results))
        self.digests.note(index, self.state.digest)
        return len(results)

    def _install(self, snapshot: SnapshotId, state: StateMachine, peer: str) -> None:
        """Take over a state that is newer than ours, and say so.

        What was made of the old state goes with it: the digests, and the clock by which a leader
        forgets. A replica may have become leader since the snapshot began to come.
        """
        self.state = state
        if self._expiry is not None:
            self._start_expiry()
        self.compaction.snapshot_index = snapshot.index
        self._replica.installed(snapshot.index, snapshot.term)
        jumped = GroupFailure("unknown", "this replica jumped over the entry by a snapshot")
        self._later(self._queue.fail_in_flight(snapshot.index, jumped))
        self.digests.restart(snapshot.index, state.digest)
        detail = f"at entry {snapshot.index}, from {peer}"
        self._host.event(Event("snapshot_installed", self.id, self.term, detail))
        self._snapshots.acknowledge(peer, snapshot.index)

    def _start_expiry(self) -> None:
        """Count from now how long the names in the present state are not used."""
        lifetime_s = self.config.bounds.name_lifetime_s
        self._expiry = ExpiryClock(self.state.memory, lifetime_s=lifetime_s)

    # --- answers ------------------------------------------------------------------------------

    def _later(self, answers: Sequence[tuple[Callable[..., None], object]]) -> None:
        """Answer at the end of this call: callbacks may call back into the group."""
        self._outcomes += answers

    def _answer(self) -> None:
        while self._outcomes:
            outcomes, self._outcomes = self._outcomes, []
            for done, answer in outcomes:
                try:
                    done(answer)
                except Exception:  # one caller's bug must not leave the others unanswered
                    _logger.exception("group %s: a caller failed to take its answer", self.id)


def _check_reachable(group: GroupId, journal: GroupJournal) -> None:
    """Refuse what peers could not even be told of."""
    term, index = max(journal.getCurrentTerm(), journal.last_term), journal.last_index
    if term >= wire.TERM_MAX or index >= wire.INDEX_MAX:
        raise ReplicaError(
            f"group {group}: the log is in term {term} at entry {index}, where no cluster comes"
        )
