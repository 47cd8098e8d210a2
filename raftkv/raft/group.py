"""One node's replica of one Raft group, with the shard's state machine: what the engine drives.

Sans I/O: the engine ticks it, hands it messages and tells it when the disk has synced; it answers
through callbacks, which run at the end of the call that caused them, never in the middle of it.
"""

import logging
from collections.abc import Callable, Sequence
from functools import partial

from raftkv.core.batches import decode_batch, encode_batch
from raftkv.core.errors import CorruptBatch, UnknownFormat
from raftkv.core.expiry import ExpiryClock
from raftkv.core.operations import BATCH_FORMAT, Batch, Command
from raftkv.core.state_machine import StateMachine
from raftkv.raft import messages as wire
from raftkv.raft.clock import Clock
from raftkv.raft.digests import DigestHistory
from raftkv.raft.freshness import Freshness
from raftkv.raft.host import STATE_EVENTS, Event, GroupConfig, Host
from raftkv.raft.journal import FIRST_INDEX, GroupJournal, LogStore, Recovered
from raftkv.raft.member import LEADER, RandomSource, ReplicaError
from raftkv.raft.proposals import Done, Proposal, ProposalQueue, Rejection
from raftkv.raft.reads import ReadDone, ReadIndex, Voucher
from raftkv.raft.replica import Replica
from raftkv.raft.snapshot_exchange import SnapshotExchange
from raftkv.raft.snapshot_transfer import SnapshotFiles, SnapshotId
from raftkv.raft.stages import EntryStages

READS_WAITING_MAX = 8192
"""Reads of one group that may wait for a confirm round."""

_logger = logging.getLogger(__name__)

HOUSEKEEPING_S = 1.0
"""How often a leader compares digests and looks for idempotency memory to forget."""


class _Transfer:
    """A leadership transfer under way: proposals wait until it is over."""

    def __init__(self, target: str, deadline: float, done: ReadDone) -> None:
        self.target = target
        self.deadline = deadline
        self.done = done
        self.asked = False


class Group:
    """A replica with its state machine, its queues and its snapshots.

    Args:
        config: name, members, which keys it owns, times and bounds.
        store: the node's write-ahead log.
        recovered: what that remembers of this group.
        files: this group's snapshots; the state is loaded from the latest here, all at once.

    Raises:
        ReplicaError: the log was compacted beyond the snapshot that is there (H5).
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
        self._files = files
        self._outcomes: list[Callable[[], None]] = []
        self._journal = GroupJournal(store, config.id, recovered)
        self.state, self.snapshot_index = self._load_state()
        self._queue = ProposalQueue(config.limits)
        self._expiry: ExpiryClock | None = None
        self._transfer: _Transfer | None = None
        self._digests = DigestHistory()
        self.stages = EntryStages(clock, config.durations)
        self._housekeeping_at = 0.0
        self.leader_since = clock.monotonic()
        self.elections = 0
        self._replica = Replica(
            name=config.node,
            members=config.members,
            journal=self._journal,
            applied_index=self.snapshot_index,
            owner=self,
            clock=clock,
            random=random,
            timing=config.timing,
            preferred=config.members[0] == config.node,
        )
        self._reads = ReadIndex(
            self._replica, self._broadcast, clock, config.timing.heartbeat_s, READS_WAITING_MAX
        )
        self._freshness = Freshness(clock, random)
        self._snapshots = SnapshotExchange(
            config,
            replica=self._replica,
            files=files,
            host=host,
            clock=clock,
            install=self._install,
        )

    def _load_state(self) -> tuple[StateMachine, int]:
        """Return the state of the snapshot in place, and the index that it ends at."""
        opened, journal = self._files.open(), self._journal
        if opened is None:
            if journal.first_index > FIRST_INDEX:
                raise ReplicaError(
                    f"group {self.id}: the log starts after entry {journal.first_index}, but the "
                    "snapshot that covers what is before is missing"
                )
            return StateMachine(self.id.generation, self.config.owns), FIRST_INDEX
        snapshot, reader = opened
        try:
            if snapshot.index < journal.first_index:
                raise ReplicaError(
                    f"group {self.id}: the snapshot ends at entry {snapshot.index}, but the log "
                    f"starts after entry {journal.first_index}"
                )
            restorer = StateMachine.restore(self.id.generation, self.config.owns)
            for record in reader.records():
                restorer.feed(record)
        finally:
            reader.close()
        journal.restart_at(snapshot.index, snapshot.term)
        return restorer.finish(), snapshot.index

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
    def journal(self) -> GroupJournal:
        """The log, to be looked at."""
        return self._journal

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
        return self._journal.last_index

    @property
    def first_index(self) -> int:
        """Everything up to this index lives in the snapshot only."""
        return self._journal.first_index

    @property
    def log_bytes(self) -> int:
        """Memory of the log, in bytes."""
        return self._journal.bytes_total

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
        return self._queue.operations + len(self._reads)

    @property
    def is_ready(self) -> bool:
        """Whether this replica follows or leads, and has applied what it knows to be committed."""
        leads = self.is_leader and self._replica.no_op_applied
        follows = self.leader is not None and not self.is_leader
        return (leads or follows) and self.applied_index >= self.commit_index

    @property
    def installing_snapshot(self) -> bool:
        """Whether a leader's snapshot is on its way in."""
        return self._snapshots.is_receiving

    @property
    def digest_mismatch(self) -> str | None:
        """Where the state was first seen to differ from the leader's, None if never."""
        return self._digests.mismatch

    @property
    def digest_agreed_index(self) -> int | None:
        """The highest index at which the state was seen to be the leader's, None if never."""
        return self._digests.agreed_index

    def match_index(self, peer: str) -> int:
        """Leader only: up to where ``peer`` durably agrees."""
        return self._replica.match_index(peer)

    def follower_contact_age_s(self, peer: str) -> float | None:
        """Leader only: seconds since ``peer`` last answered, None if not known."""
        contact = self._replica.follower_contact(peer)
        return None if contact is None else self._clock.monotonic() - contact

    def next_deadline(self) -> float:
        """When the group must be ticked at the latest, in monotonic seconds."""
        deadline = min(self._replica.next_deadline(), self._reads.next_deadline())
        return min(deadline, self._transfer.deadline) if self._transfer else deadline

    # --- driving ------------------------------------------------------------------------------

    def tick(self) -> None:
        """Do whatever is due, then answer whom it concerns."""
        self._replica.tick()
        if self.is_leader:
            self._housekeeping()
        self._tick_transfer()
        self._serve_reads()
        self._snapshots.tick()
        if self._replica.apply_budget_spent or self._snapshots.is_restoring:
            self._host.wake(self.id)
        self._answer()

    def receive(self, peer: str, message: wire.RaftMessage) -> None:
        """Take a message from an authenticated peer."""
        match message:
            case wire.ConfirmLeader():
                self._on_confirm(peer, message)
            case wire.LeaderConfirmed():
                if self._reads.on_confirmed(peer, message):
                    self._serve_reads()
            case wire.FreshnessQuery():
                self._on_freshness_query(peer, message)
            case wire.FreshnessEcho():
                self._freshness.on_echo(message, self.applied_index)
                self._host.wake(self.id)
            case wire.SnapshotChunk():
                self._snapshots.on_chunk(peer, message)
            case wire.SnapshotProgress():
                self._snapshots.on_progress(peer, message)
            case wire.DigestCheck():
                self._on_digest(peer, message)
            case wire.AppendEntries() | wire.AppendResponse():
                self._replicate(peer, message)
            case _:
                self._replica.receive(peer, message)
                self._host.wake(self.id)
        self._answer()

    def _replicate(self, peer: str, message: wire.AppendEntries | wire.AppendResponse) -> None:
        """Take entries or an acknowledgement; many of them leave nothing for a tick to do."""
        replica = self._replica
        before = (replica.term, replica.is_leader, replica.leader_name)
        replica.receive(peer, message)
        changed = before != (replica.term, replica.is_leader, replica.leader_name)
        if changed:
            self._host.wake(self.id)
        else:
            self._wake_for_work()

    def _wake_for_work(self) -> None:
        """Ask for a tick if it can commit or apply, or perhaps let a transfer go on."""
        if self._replica.has_work or self._transfer is not None:
            self._host.wake(self.id)

    def peer_connected(self, peer: str) -> None:
        """Hear that ``peer`` can be sent to."""
        self._replica.peer_connected(peer)
        self._host.wake(self.id)

    def peer_disconnected(self, peer: str) -> None:
        """Hear that it cannot, and that what was in flight is lost."""
        if peer == self.leader:
            lost = Rejection("not_leader", "the link to the leader is lost")
            self._later([(done, lost) for done in self._freshness.fail_all()])
        self._replica.peer_disconnected(peer)
        self._snapshots.stop_sending(peer)
        self._host.wake(self.id)
        self._answer()

    def wal_synced(self) -> None:
        """Hear that the write-ahead log is durable further than before."""
        if self._replica.awaits_sync:
            self._replica.wal_synced()
            if self.stages.following:
                self.stages.durable(self._journal.durable_index)
            self._wake_for_work()

    def stop(self) -> None:
        """Answer everybody who waits: refused if it never reached the log, else unknown."""
        stopping = Rejection("stopping", "the node is shutting down")
        self._later(self._queue.fail_waiting(stopping))
        unknown = Rejection("unknown", "the node is shutting down; the write may yet be committed")
        self._later(self._queue.fail_in_flight(None, unknown))
        self._later([(done, stopping) for done in self._reads.fail_all()])
        self._later([(done, stopping) for done in self._freshness.fail_all()])
        self._snapshots.stop()
        self._answer()

    # --- writes and reads ---------------------------------------------------------------------

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
        if not self._host.has_space():
            return self._disk_full()
        return None

    def _disk_full(self) -> Rejection:
        return Rejection("disk_full", f"the disk of {self.config.node} is full")

    def confirm_read(self, done: ReadDone, voucher: Voucher | None = None) -> None:
        """Call ``done(None)`` once ``state`` may be read linearizably, at that very moment.

        ``voucher`` is of the member that forwarded the read, if one did.
        """
        if voucher is not None and self._reads.is_confirmed_by(voucher):
            done(None)
            return
        rejection = self._reads.ask(done)
        if rejection is not None:
            done(rejection)
        else:
            self._host.wake(self.id)

    def stale_age_ms(self) -> int | None:
        """How old the local state is at most, by this node's own clock; None if not known."""
        return self._freshness.age_ms()

    def ensure_fresh(self, max_age_ms: int, done: ReadDone) -> None:
        """Call ``done(None)`` once the local state is at most ``max_age_ms`` old.

        Asks the leader for a confirmed commit index if need be; a follower that cannot reach one
        is told so at once, one whose leader is silent waits until the caller gives up.
        """
        if self.is_leader:
            self.confirm_read(done)
            return
        age = self._freshness.age_ms()
        if age is not None and age <= max_age_ms:
            done(None)
        elif self.leader is None:
            done(Rejection("not_leader", "no leader can confirm how old the local data is"))
        else:
            if self._freshness.waiting >= READS_WAITING_MAX:
                done(Rejection("busy", "too many reads are waiting for this shard"))
                return
            question = self._freshness.ask(max_age_ms, done)
            if question is not None:
                self._host.send(self.id, self.leader, wire.FreshnessQuery(question))

    def transfer_to(self, target: str, done: ReadDone) -> None:
        """Hand the leadership to ``target``; writes wait meanwhile, they do not fail.

        ``done(None)`` once this replica no longer leads.
        """
        why = self._why_not_transfer(target)
        if why is not None:
            done(Rejection("refused" if self.is_leader else "not_leader", why))
            return
        deadline = self._clock.monotonic() + self.config.timing.election_min_s
        self._transfer = _Transfer(target, deadline, done)
        self._host.wake(self.id)

    def _why_not_transfer(self, target: str) -> str | None:
        if not self.is_leader:
            return "this replica does not lead"
        if target == self.config.node:
            return f"{target} leads already"
        if target not in self._replica.peers:
            return f"{target} holds no replica of shard {self.id.shard}"
        if self._transfer is not None:
            return "a transfer is under way"
        lag = self.last_index - self.match_index(target)
        if lag > self.config.limits.entries_in_flight_max:
            return f"{target} lags by {lag} entries"
        return None

    # --- what the replica asks (its Owner) ----------------------------------------------------

    def send(self, peer: str, message: wire.RaftMessage) -> None:
        """Send for the replica."""
        self._host.send(self.id, peer, message)

    def take_entry(self) -> bytes | None:
        """Everything that waits, as one entry."""
        if self._transfer is not None or not self._queue.has_waiting:
            return None
        if not self._host.has_space():  # it filled up while they waited: refused, still definitely
            self._later(self._queue.fail_waiting(self._disk_full()))
            return None
        index, offered_at = self.last_index + 1, self._queue.oldest_offered_at
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
        if self._digests.note(index, self.state.digest):
            self._alarm()
        return len(results)

    def state_changed(self, old: int, new: int) -> None:
        """Hear from stock code that this replica leads, follows or stands for election."""
        self.leader_since = self._clock.monotonic()
        detail = "after it led" if old == LEADER else ""
        self._host.event(Event(STATE_EVENTS[new], self.id, self._replica.term, detail))
        if new == LEADER:
            self.elections += 1
            self._expiry = ExpiryClock(self.state.memory)
            self._housekeeping_at = 0.0
            for done in self._freshness.fail_all():  # what waited for a leader asks us now
                self._outcomes.append(partial(self.confirm_read, done))
        elif old == LEADER:
            not_leader = Rejection("not_leader", "this replica stopped leading")
            self._later(self._queue.fail_waiting(not_leader))
            self._later([(done, not_leader) for done in self._reads.fail_all()])
            self._snapshots.stop_sending()
            self.stages.forget()

    def entries_lost(self, peer: str, first: int, last: int) -> None:
        """Tell operators: a disk that forgets is to be replaced before another one fails."""
        detail = f"{peer} had acknowledged entries {first} to {last} and lost them: check its disk"
        self._host.event(Event("entries_lost", self.id, self.term, detail))

    def disk_stalled(self) -> bool:
        """Ask the node."""
        return self._host.disk_stalled()

    def _broadcast(self, message: wire.RaftMessage) -> None:
        for peer in self._replica.peers:
            self._host.send(self.id, peer, message)

    def _later(self, answers: Sequence[tuple[Callable[..., None], object]]) -> None:
        """Answer at the end of this call: callbacks may call back into the group."""
        for done, answer in answers:
            self._outcomes.append(lambda done=done, answer=answer: done(answer))  # type: ignore[misc]

    def _answer(self) -> None:
        while self._outcomes:
            outcomes, self._outcomes = self._outcomes, []
            for outcome in outcomes:
                try:
                    outcome()
                except Exception:  # one caller's bug must not leave the others unanswered
                    _logger.exception("group %s: a caller failed to take its answer", self.id)

    # --- reads --------------------------------------------------------------------------------

    def _serve_reads(self) -> None:
        for done in self._reads.tick():
            done(None)
        for done in self._freshness.satisfied(self.applied_index):
            done(None)

    def _on_confirm(self, peer: str, message: wire.ConfirmLeader) -> None:
        """Say yes only in the same term: no newer leader exists for this member."""
        if message.term == self.term:
            confirmed = wire.LeaderConfirmed(message.term, message.round)
            self._host.send(self.id, peer, confirmed)
        elif message.term < self.term:
            self._host.send(self.id, peer, wire.HigherTerm(self.term))

    def _on_freshness_query(self, peer: str, message: wire.FreshnessQuery) -> None:
        def confirmed(rejection: Rejection | None) -> None:
            if rejection is None:
                echo = wire.FreshnessEcho(message.question, self.commit_index)
                self._host.send(self.id, peer, echo)

        self.confirm_read(confirmed)

    # --- leadership transfer ------------------------------------------------------------------

    def _tick_transfer(self) -> None:
        """Wait until the target has everything, ask it to stand, and give up in time."""
        transfer = self._transfer
        if transfer is None:
            return
        now = self._clock.monotonic()
        if not self.is_leader:
            self._transfer = None
            self._later([(transfer.done, None)])
        elif now > transfer.deadline:
            self._transfer = None
            late = Rejection("refused", f"{transfer.target} did not take over in time")
            self._later([(transfer.done, late)])
            self._host.wake(self.id)  # what waited goes on here
        elif not transfer.asked and self._replica.start_transfer(transfer.target):
            transfer.asked = True
            self._host.event(Event("transfer", self.id, self.term, f"to {transfer.target}"))

    # --- digests and housekeeping -------------------------------------------------------------

    def _on_digest(self, peer: str, message: wire.DigestCheck) -> None:
        digest = int.from_bytes(message.digest, "big")
        if self._digests.compare(message.index, digest, peer, applied_index=self.applied_index):
            self._alarm()

    def _alarm(self) -> None:
        detail = self._digests.mismatch or ""
        self._host.event(Event("digest_mismatch", self.id, self.term, detail))

    def _housekeeping(self) -> None:
        now = self._clock.monotonic()
        if now < self._housekeeping_at:
            return
        self._housekeeping_at = now + HOUSEKEEPING_S
        own = self._digests.at(self.applied_index)
        if own is not None:
            self._broadcast(wire.DigestCheck(self.applied_index, own.to_bytes(16, "big")))
        forget = self._expiry.poll(now) if self._expiry is not None else None
        if forget is not None:
            # Whether it is applied shows in the state; the clock asks again otherwise.
            self.propose((Command(forget),), lambda _: None)

    # --- snapshots ----------------------------------------------------------------------------

    @property
    def may_snapshot(self) -> bool:
        """Whether a snapshot taken now would be newer than what there is."""
        return self.applied_index > self.snapshot_index and not self.installing_snapshot

    @property
    def snapshot_due(self) -> bool:
        """Whether the log has grown enough; later on each next replica, so that they take turns."""
        policy = self.config.snapshots
        half_state = self.state.bytes_total // 2
        after_bytes = max(policy.after_bytes, min(4 * policy.after_bytes, half_state))
        turn = 1.0 + self.config.members.index(self.config.node) / 8
        grown = (
            self.log_bytes > after_bytes * turn or len(self._journal) > policy.after_entries * turn
        )
        return grown and self.may_snapshot

    def snapshot_point(self) -> tuple[int, int]:
        """(index, term) of the last applied entry: what a snapshot taken now ends with."""
        term = self._journal.term_at(self.applied_index)
        if term is None:
            raise ReplicaError(f"group {self.id}: applied entry {self.applied_index} is not there")
        return self.applied_index, term

    def snapshot_written(self, index: int) -> None:
        """Drop most of the log up to ``index``: a durable snapshot covers it now (H3)."""
        if index <= self.snapshot_index:
            return
        self.snapshot_index = index
        policy = self.config.snapshots
        kept = self._journal.tail_start(index, policy.after_bytes // 8, policy.after_entries // 8)
        self._journal.compact(kept)

    def release_log(self) -> bool:
        """Drop all of the log that the snapshot covers; false if there is nothing to drop.

        For a group whose old entries keep the node's log segments alive.
        """
        if self.snapshot_index <= self._journal.first_index:
            return False
        self._journal.compact(self.snapshot_index)
        return True

    def snapshot_needed(self, peer: str) -> None:
        """Send a snapshot for the replica."""
        self._snapshots.send_to(peer)

    def _install(self, snapshot: SnapshotId, state: StateMachine, peer: str) -> None:
        """Take over a state that is newer than ours, and say so."""
        self.state = state
        self.snapshot_index = snapshot.index
        self._replica.installed(snapshot.index, snapshot.term)
        jumped = Rejection("unknown", "this replica jumped over the entry by a snapshot")
        self._later(self._queue.fail_in_flight(snapshot.index, jumped))
        self._digests.restart(snapshot.index, state.digest)
        detail = f"at entry {snapshot.index}, from {peer}"
        self._host.event(Event("snapshot_installed", self.id, self.term, detail))
        self._snapshots.acknowledge(peer, snapshot.index)
