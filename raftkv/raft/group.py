"""One node's replica of one Raft group, with the shard's state machine: what the engine drives.

Sans I/O: the engine ticks it, hands it messages and tells it when the disk has synced; it answers
through callbacks, which run at the end of the call that caused them, never in the middle of it.
"""

import logging
from collections.abc import Callable, Sequence

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
from raftkv.raft.freshness import Freshness
from raftkv.raft.host import STATE_EVENTS, Event, GroupConfig, Host
from raftkv.raft.journal import GroupJournal, LogStore, Recovered
from raftkv.raft.member import CANDIDATE, LEADER, RandomSource, ReplicaError
from raftkv.raft.proposals import Done, Proposal, ProposalQueue, Rejection
from raftkv.raft.reads import ReadIndex
from raftkv.raft.replica import Replica
from raftkv.raft.snapshot_exchange import SnapshotExchange
from raftkv.raft.snapshot_transfer import SnapshotFiles, SnapshotId
from raftkv.raft.stages import EntryStages
from raftkv.raft.transfer import LeadershipTransfer

_logger = logging.getLogger(__name__)

HOUSEKEEPING_S = 1.0
"""How often a leader compares digests and looks for idempotency memory to forget."""


class Group:
    """A replica with its state machine, the writes that wait for its log, and its other parts.

    The engine asks some of these itself: ``reads`` and ``freshness`` (reads that are linearizable
    or of bounded age), ``transfer`` (of the leadership), ``compaction`` (snapshots in the place of
    the log); it looks at ``state``, ``journal``, ``digests`` and ``stages``.

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
            owner=self,
            clock=clock,
            random=random,
            timing=config.timing,
            preferred=config.members[0] == config.node,
            window_to=host.window_to,
            appends=config.bounds.appends,
            apply_operations_per_tick=config.bounds.apply_operations_per_tick,
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
        return self._replica.leader_name

    @property
    def leader_heard(self) -> str | None:
        """Name of the leader if it was heard lately; a follower believes in a dead one for ever."""
        if self.is_leader:
            return self.config.node
        silent_s = self._clock.monotonic() - self._replica.leader_contact
        heard = silent_s < 2 * self.config.timing.election_max_s
        return self._replica.leader_name if heard else None

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
        replica.tick()
        if replica.is_leader:
            self._housekeeping()
        self._later(self.transfer.tick())
        self._serve_reads()
        if self._snapshots.tick() or replica.apply_budget_spent:
            self._host.wake(self.id)
        if self._outcomes:
            self._answer()

    def _serve_reads(self) -> None:
        for done in self.reads.tick():
            done(None)
        for done, rejection in self.freshness.tick():
            done(rejection)

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
                self._snapshots.on_chunk(peer, message)
            case wire.SnapshotProgress():
                self._snapshots.on_progress(peer, message)
            case wire.DigestCheck():
                self.digests.on_check(peer, message)
            case _:
                self._replica.receive(peer, message)
                self._host.wake(self.id)
        self._answer()

    def _replicate(self, peer: str, message: wire.AppendEntries | wire.AppendResponse) -> None:
        """Take entries or an acknowledgement; many of them leave nothing for a tick to do."""
        replica = self._replica
        before = (replica.term, replica.is_leader, replica.leader_node)
        replica.receive(peer, message)
        if before != (replica.term, replica.is_leader, replica.leader_node):
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
            lost = Rejection("not_leader", "the link to the leader is lost")
            self._later([(done, lost) for done in self.freshness.fail_all()])
        self._replica.peer_disconnected(peer)
        self._snapshots.stop_sending(peer)
        self._host.wake(self.id)
        self._answer()

    def wal_synced(self) -> None:
        """Hear that the write-ahead log is durable further than before."""
        if self._replica.awaits_sync:
            self._replica.wal_synced()
            if self.stages.following:
                self.stages.durable(self.journal.durable_index)
            self._wake_for_work()

    def withhold(self, withheld: bool) -> None:  # noqa: FBT001 - a state, not an option
        """Neither lead nor stand for election from now on, or do so again."""
        self._replica.withhold(withheld)
        self._host.wake(self.id)
        self._answer()

    def stop(self) -> None:
        """Answer everybody who waits: refused if it never reached the log, else unknown."""
        stopping = Rejection("stopping", "the node is shutting down")
        self._later(self._queue.fail_waiting(stopping))
        unknown = Rejection("unknown", "the node is shutting down; the write may yet be committed")
        self._later(self._queue.fail_in_flight(None, unknown))
        self._later([(done, stopping) for done in self.reads.fail_all()])
        self._later([(done, stopping) for done in self.freshness.fail_all()])
        self._snapshots.stop()
        self._answer()

    # --- writes -------------------------------------------------------------------------------

    def propose(self, commands: Sequence[Command], done: Done) -> None:
        """Put commands into the log together; ``done`` gets their results, in order."""
        rejection = self._why_not_propose()
        if rejection is None:
            rejection = self._queue.offer(Proposal(commands, done, self._clock.monotonic()))
        if rejection is not None:
            done(rejection)
        else:
            self._host.wake(self.id)

    def _why_not_propose(self) -> Rejection | None:
        if not self.is_leader:
            return Rejection("not_leader")
        return self._disk_full()

    def _disk_full(self) -> Rejection | None:
        """Why there is no room for an entry: here, or on so many replicas that none commits."""
        if not self._host.has_space():
            return Rejection("disk_full", f"the disk of {self.config.node} is full")
        if not self._host.full_peers:  # nearly always
            return None
        members = self.config.members
        full = sorted(self._host.full_peers.intersection(members))
        if 2 * (len(members) - len(full)) > len(members):
            return None
        return Rejection("disk_full", f"the disks of {', '.join(full)} are full")

    # --- what the replica asks (its Owner) ----------------------------------------------------

    def send(self, peer: str, message: wire.RaftMessage) -> None:
        """Send for the replica."""
        self._host.send(self.id, peer, message)

    def take_entry(self) -> bytes | None:
        """Everything that waits, as one entry."""
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

    def apply_entry(self, index: int, term: int, command: bytes | None) -> int:
        """Apply a committed entry and answer whoever proposed it."""
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

    def state_changed(self, old: int, new: int) -> None:
        """Hear from stock code that this replica leads, follows or stands for election."""
        self.leader_since = self._clock.monotonic()
        detail = "after it led" if old == LEADER else ""
        # Stock code begins the candidate's own term only after this.
        term = self._replica.term + (new == CANDIDATE)
        self._host.event(Event(STATE_EVENTS[new], self.id, term, detail))
        if new == LEADER:
            self.elections += 1
            self._start_expiry()
            self._housekeeping_at = 0.0
            for done in self.freshness.fail_all():  # what waited for a leader asks us now
                self._outcomes.append((self.reads.confirm, done))
        elif old == LEADER:
            not_leader = Rejection("not_leader", "this replica stopped leading")
            self._later(self._queue.fail_waiting(not_leader))
            self._later([(done, not_leader) for done in self.reads.fail_all()])
            self._snapshots.stop_sending()
            self._replica.nothing_in_flight()
            self.stages.forget()

    def entries_lost(self, peer: str, first: int, last: int) -> None:
        """Tell operators: a disk that forgets is to be replaced before another one fails."""
        detail = f"{peer} had acknowledged entries {first} to {last} and lost them: check its disk"
        self._host.event(Event("entries_lost", self.id, self.term, detail))

    def disk_stalled(self) -> bool:
        """Ask the node."""
        return self._host.disk_stalled()

    def snapshot_needed(self, peer: str) -> None:
        """Send a snapshot for the replica."""
        self._snapshots.send_to(peer)

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
        jumped = Rejection("unknown", "this replica jumped over the entry by a snapshot")
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
