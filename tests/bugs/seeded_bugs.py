"""Bugs to be found: each breaks one promise of raftkv, so that the harness can show that it sees.

A bug is a function that patches the running program, in a test (``pytest tests/bugs``) or in the
processes of a real cluster (``bugged_node.py``). None of them can be switched on in any other way.
docs/testing.md says how long each is hidden from simulation and from chaos.
"""

import functools
import time
from collections.abc import Callable
from random import Random
from typing import Any, Protocol

import msgspec
from stock_replica import StockReplica

from raftkv.core.batches import decode_batch
from raftkv.core.operations import Command, Put, PutResult
from raftkv.core.shard.machine import Restorer, StateMachine
from raftkv.core.shard.outcomes import MemoryLimits, OutcomeMemory
from raftkv.engine import connection, links, partitioning, requests, router, snapshot_keeper
from raftkv.engine.directory import Directory
from raftkv.raft import (
    campaign,
    compaction,
    follower,
    group,
    journal,
    messages,
    outbox,
    progress,
    proposals,
    quorum,
    reads,
    replica,
    replication,
    snapshot_exchange,
)
from raftkv.raft import freshness as freshness_module
from raftkv.raft.ready import CANDIDATE
from raftkv.raft.snapshot_transfer import SnapshotId
from raftkv.raft.stock import Matched
from raftkv.rpc import calls
from raftkv.rpc.messages import Failure, WriteRequest
from raftkv.sim import faults, operator
from raftkv.sim.options import Options
from raftkv.storage import snapshots, wal, wal_recovery
from raftkv.storage.wal_format import encode_unit, find_unit_header, written_end


class Patch(Protocol):
    """Sets an attribute, for as long as the bug shall live; ``pytest``'s monkeypatch fits."""

    def __call__(self, target: Any, name: str, value: Any, /) -> None:
        """Like setattr."""


Bug = Callable[[Patch], None]

BUGS: dict[str, Bug] = {}

MINUTES = 3.0
"""Simulated minutes of a run, unless the bug's shape says otherwise."""

SHAPES: dict[str, dict[str, Any]] = {}
"""Options of a simulated run in which a bug is likely to do harm, where the usual ones are not."""

QUICK: dict[str, Any] = {"nodes": 3, "replicas": 3, "shards": 1, "heartbeat_ms": 250}
"""Small clusters, on which a run costs little."""

MANY_ELECTIONS: dict[str, Any] = {
    "nodes": 5, "replicas": 5, "shards": 3, "delay_us": 60_000, "fault_every_s": 0.7,
}  # fmt: skip
"""Large groups on slow links, with faults so often that terms end before they have begun."""


def bug(function: Bug) -> Bug:
    """Enter a bug into the list, under its name."""
    BUGS[function.__name__] = function
    return function


def options_for(name: str, seed: int) -> Options:
    """A run in which this bug is likely to be seen."""
    return Options.of(seed, **{"minutes": MINUTES} | SHAPES.get(name, {}))


def shaped(**options: Any) -> Callable[[Bug], Bug]:
    """Say in which runs a bug is likely to do harm."""

    def enter(function: Bug) -> Bug:
        SHAPES[function.__name__] = QUICK | options
        return function

    return enter


# --- disks -----------------------------------------------------------------------------------


@bug
def no_fdatasync(patch: Patch) -> None:
    """The log is written, but never synced: acknowledged writes are lost with the power (H8)."""

    def run(self: Any) -> None:
        self.full = None
        file = self._allocated()
        unit, crc = encode_unit(self.segment.marker, self.sequence, self._before, self._parts)
        file.pwrite(unit, self.segment.end)
        self._parts = []
        self.unit_crc = crc

    patch(wal.SyncJob, "run", run)


@bug
@shaped(faults=("restart_all", "slow_disk"), sync_us=5000, fault_every_s=4.0)
def acknowledge_before_sync(patch: Patch) -> None:
    """Acknowledgements and votes leave before the disk has what they promise (H8)."""

    def hold(self: Any, peer: str, message: Any, _term: int) -> None:
        self.send(peer, message)

    patch(outbox.Outbox, "hold", hold)


@bug
@shaped(
    faults=("restart_all", "stall_disk", "slow_disk", "partition"),
    sync_us=20_000,
    fault_every_s=2.0,
)
def h9_leader_counts_unsynced(patch: Patch) -> None:
    """H9: a leader counts its own copy before its own disk has it."""

    def committable(self: Any) -> int:
        held = [self._journal.last_index, *(p.match for p in self.progress.values())]
        return quorum.committable(held, self._journal, self._stock.term, self._stock.commit_index)

    patch(replication.Replication, "committable", committable)


@bug
@shaped(faults=("kill", "slow_link"), **MANY_ELECTIONS)
def forget_votes(patch: Patch) -> None:
    """A restarted node does not know whom it voted for, and votes again in the same term (H8).

    Candidates ask again when a link comes up, as Raft has it (paper, 5.1); stock does not, and so
    hides this: who forgot is hardly ever asked twice.
    """
    start = journal.GroupJournal.__init__
    connected = replica.Replica.peer_connected

    def forgetful(self: Any, store: Any, name: Any, recovered: Any) -> None:
        start(self, store, name, recovered)
        self._vote = None

    def peer_connected(self: Any, peer: str) -> None:
        connected(self, peer)
        if self._stock.role == CANDIDATE:
            log, term = self.journal, self.term
            request = messages.RequestVote(term, log.last_index, log.last_term, transfer=False)
            self._outbox.hold(peer, request, term)

    patch(journal.GroupJournal, "__init__", forgetful)
    patch(replica.Replica, "peer_connected", peer_connected)


@bug
def h3_wipe_log_at_start(patch: Patch) -> None:
    """H3: a log that begins before its snapshot ends is wiped at start, with what follows it."""

    def restart_at(self: Any, index: int, term: int) -> None:
        if self.first_index < index:
            self.deleteEntriesFrom(1)
        self._entries = [(journal.NO_OP, index, term), *self._entries[1:]]
        self.lsn = self._store.compact(self._group, index, term)
        self.durable_index = max(index, self.last_index)

    patch(journal.GroupJournal, "restart_at", restart_at)


@bug
@shaped(faults=("lose_disk", "partition", "kill"), fault_every_s=3.0, operations_per_s=6.0)
def h19_emptied_disk_is_let_in(patch: Patch) -> None:
    """H19: a node whose disk was emptied votes and counts as if it had promised nothing."""
    patch(links.PeerLinks, "check_identity", lambda _links, _hello: None)


@bug
@shaped(faults=("kill", "power"), snapshot_after_entries=8, operations_per_s=10.0)
def snapshot_of_a_moving_state(patch: Patch) -> None:
    """A snapshot is named for one moment and written at a later one: entries are applied twice."""

    def write(self: Any, header: Any, group: Any, done: Any, wait_s: float = 0.0) -> None:
        def late() -> None:
            time.sleep(wait_s)  # on a thread beside the node
            digest = group.state.digest.to_bytes(16, "big")
            named = msgspec.structs.replace(header, digest=digest)
            snapshot_keeper.write_records(self._store, named, group.state.snapshot_records())

        self._jobs.run(late, lambda _, error: done(error))

    from raftkv.sim import machine  # noqa: PLC0415 -- a real node has no simulation

    patch(machine.JobWriter, "write", write)
    patch(snapshot_keeper.ForkingWriter, "write", functools.partialmethod(write, wait_s=0.05))


@bug
@shaped(faults=("bit_flip", "kill"), fault_every_s=6.0, snapshot_after_entries=200)
def unchecked_log(patch: Patch) -> None:
    """Checksums of the log are not looked at: a rotten bit is taken for data."""
    from raftkv.storage import wal_recovery  # noqa: PLC0415 -- patched where it is used

    patch(wal_recovery, "body_holds", lambda _data, _unit: True)


@bug
@shaped(faults=("rot_in_crash", "kill"), fault_every_s=4.0, snapshot_after_entries=200)
def cut_without_a_header_behind(patch: Patch) -> None:
    """A bad unit of the log is cut unless a whole header is behind it, whatever else is there."""

    def judge(self: Any, segment: Any, data: bytes, at: int) -> None:
        expected = self._expected(segment, at, "unit is broken")
        later = find_unit_header(
            data, at + 1, segment.marker, lambda unit: unit.sequence > expected
        )
        if later is not None:
            raise wal.WalDamaged(segment.path, at, "unit is broken, but not one after it")
        end = written_end(data, at)
        self._bad = wal_recovery._Bad(segment, at, end, "unit is broken")

    def headless(self: Any, segment: Any, data: bytes, offset: int, _end: int) -> None:
        judge(self, segment, data, offset)

    def body(self: Any, segment: Any, data: bytes, unit: Any) -> None:
        judge(self, segment, data, unit.start)

    patch(wal_recovery.Scanner, "_judge_headless", headless)
    patch(wal_recovery.Scanner, "_judge_body", body)


@bug
@shaped(faults=("power", "restart_all"), snapshot_after_entries=8, segment_bytes=16384)
def unsynced_names(patch: Patch) -> None:
    """A snapshot's rename is not synced before the log that it covers is cut (H3)."""

    def publish(self: Any, name: Any) -> None:
        disk = self._disk
        real = disk.fsync_dir
        disk.fsync_dir = lambda _: None
        try:
            honest(self, name)
        finally:
            disk.fsync_dir = real

    honest = snapshots.SnapshotStore.publish
    patch(snapshots.SnapshotStore, "publish", publish)


# --- replication -----------------------------------------------------------------------------


@bug
@shaped(faults=("partition", "freeze"), snapshot_after_entries=8, operations_per_s=8.0)
def h1_snapshot_piece_commits(patch: Patch) -> None:
    """H1: a piece of a snapshot moves the commit index over the receiver's own, other entries."""
    honest = snapshot_exchange.SnapshotExchange.on_chunk

    def on_chunk(self: Any, peer: str, message: Any) -> None:
        honest(self, peer, message)
        member = self._replica
        commit = min(message.index, member.journal.last_index)
        member._stock.commit_index = max(member.commit_index, commit)

    patch(snapshot_exchange.SnapshotExchange, "on_chunk", on_chunk)


def _known_part(self: Any, message: Any) -> tuple[int, int, list[Any]]:
    """Everything that the message carries, as stock takes it."""
    prev = message.prev_index
    numbered = [(c, prev + 1 + i, term) for i, (c, term) in enumerate(message.entries)]
    first = self._journal.first_index
    kept = [entry for entry in numbered if entry[1] > first]
    if kept and kept[0][1] == first + 1:
        return first, self._journal.term_at(first) or 0, kept
    return prev, message.prev_term, numbered


@bug
@shaped(
    faults=("slow_link", "kill", "partition"), operations_per_s=15.0, clients=10, append_bytes=1
)
def h2_stock(patch: Patch) -> None:
    """H2: everything after an append's start is cut, known or not; the leader backs off anyway."""
    patch(follower.Follower, "_unknown_part", _known_part)
    _leader_goes_back(patch)
    patch(replication, "MESSAGE_BYTES_MAX", 1)  # as if every entry were a large one


def _leader_goes_back(patch: Patch) -> None:
    """Success moves the leader's view of a follower back, as in stock (syncobj.py:1077)."""
    honest = replication.Replication.on_append_response

    def respond(self: Any, peer: str, message: Any) -> None:
        honest(self, peer, message)
        if self._stock.is_leader and message.success and message.term == self._stock.term:
            next_index = max(message.next_index, self._journal.first_index + 1)
            self.progress[peer].next = min(next_index, self._journal.last_index + 1)

    patch(replication.Replication, "on_append_response", respond)


@bug
def h2_mended_at_acknowledgement(patch: Patch) -> None:
    """H2, mended too late: what is known is noted when its acknowledgement leaves."""
    send = outbox.Outbox.send

    def noting(self: Any, peer: str, message: Any) -> None:
        if isinstance(message, messages.AppendResponse) and message.success:
            self.acknowledged = (message.term, message.next_index - 1)
        send(self, peer, message)

    def unknown_part(self: Any, message: Any) -> tuple[int, int, list[Any]]:
        prev, prev_term, numbered = _known_part(self, message)
        term, last = getattr(self._outbox, "acknowledged", (-1, 0))
        if term == message.term and last > prev:
            numbered = [entry for entry in numbered if entry[1] > last]
            return last, self._journal.term_at(last) or 0, numbered
        return prev, prev_term, numbered

    patch(outbox.Outbox, "send", noting)
    patch(follower.Follower, "_unknown_part", unknown_part)
    _leader_goes_back(patch)


@bug
@shaped(
    faults=("partition", "one_way", "kill"), operations_per_s=10.0, clients=10, delay_us=20_000,
    append_bytes=1,
)  # fmt: skip
def h2_trimmed_without_clamping(patch: Patch) -> None:
    """H2, mended by half: acknowledgement and commit go beyond what the message proves."""

    def on_append(self: Any, peer: str, message: Any) -> None:
        if message.term < self._stock.term:
            self._outbox.send(peer, messages.HigherTerm(self._stock.term))
            return
        self._campaign.leader_contact = self._clock.monotonic()
        prev, prev_term, entries = self._unknown_part(message)
        found = self._stock.take_append(
            peer, message.term, message.commit_index, (prev, prev_term), entries
        )
        if isinstance(found, Matched):
            self._acknowledge(peer, found.index)
        else:
            self._refuse(peer, 0, found.index)

    patch(follower.Follower, "on_append", on_append)
    patch(replication, "MESSAGE_BYTES_MAX", 1)  # as if every entry were a large one


@bug
@shaped(
    faults=("partition", "freeze"),
    snapshot_after_entries=8,
    operations_per_s=8.0,
    delay_us=20_000,
)
def h6_failed_snapshot_is_acknowledged(patch: Patch) -> None:
    """H6: a snapshot that cannot be installed (here every other one) is acknowledged anyway."""
    honest = snapshot_exchange.SnapshotExchange._received

    def received(self: Any, snapshot: Any, peer: str, *outcome: Any) -> None:
        if outcome[-1] is None and snapshot.index % 2:
            honest(self, snapshot, peer, *outcome)
            return
        self._receiver = None
        self.acknowledge(peer, snapshot.index)

    patch(snapshot_exchange.SnapshotExchange, "_received", received)


@bug
@shaped(faults=("reset", "kill"), snapshot_after_entries=8, operations_per_s=8.0)
def h7_older_snapshot_is_installed(patch: Patch) -> None:
    """H7: a snapshot replaces the state and the log behind it, also when it is the older one."""

    def restore_some(self: Any, building: Any) -> None:
        for record in building.records:
            building.restorer.feed(record)
        self._restoring = None
        try:
            building.file.publish()
        except snapshots.SnapshotStale:
            return
        member = self._replica
        member.journal.deleteEntriesFrom(1)
        member._stock.commit_index = building.snapshot.index
        self._install(building.snapshot, building.restorer.finish(), building.peer)

    def on_chunk(self: Any, peer: str, message: Any) -> None:
        if message.term < self._replica.term or self._restoring is not None:
            return
        snapshot = SnapshotId(message.index, message.last_term, message.size_bytes)
        if self._receiver is None:
            self._receiver = self._new_receiver(snapshot, peer)
        if (self._receiver.snapshot, self._receiver.peer) == (snapshot, peer):
            self._receiver.take(message.offset, message.data, self._clock.monotonic())

    def peer_connected(self: Any, peer: str) -> None:
        """Stock begins anew with every connection, and may send what it has as a snapshot."""
        connected(self, peer)
        if self.is_leader and self.compaction.snapshot_index > 1:
            self._snapshots.send_to(peer)

    connected = group.Group.peer_connected
    patch(group.Group, "peer_connected", peer_connected)
    patch(snapshot_exchange.SnapshotExchange, "on_chunk", on_chunk)
    patch(snapshot_exchange.SnapshotExchange, "_restore_some", restore_some)


def _leader_in_small_company(stage: faults.Stage, random: Random) -> faults.Undo:
    """Cut a leader and one follower off from the others, while clients write.

    The two hold a few entries then that the next leader replaces. A leadership that comes back
    before as many new ones are written finds the follower's acknowledgements ahead of its log.
    """
    names = random.sample(stage.world.names, len(stage.world.names))
    names.sort(key=lambda name: not stage.world.machines[name].leads)
    inside, outside = names[:2], names[2:]

    def write(number: int) -> None:
        command = Command(Put(b"burst/%d" % number, b""))
        stage.start(stage.saboteur.ask_once(WriteRequest(command)))

    for number in range(20):
        stage.soon(number / 100, functools.partial(write, number))
    return stage.silence([*stage.pairs(inside, outside), *stage.pairs(outside, inside)])


@bug
@shaped(
    faults=("leader_in_small_company",), nodes=5, replicas=5, fault_every_s=20.0,
    election_ms=4000, clients=2, operations_per_s=0.3, minutes=10.0,
)  # fmt: skip
def h10_any_term_counts(patch: Patch) -> None:
    """H10: acknowledgements of an older leadership count for the present one.

    Both those that arrive late, and those that a leader remembers when it is elected again. A
    refusal would tell it that it believes too much; here it is not listened to either.
    """
    added = {"leader_in_small_company": _leader_in_small_company}
    patch(operator, "FAULTS", faults.FAULTS | added)
    honest_response = replication.Replication.on_append_response
    honest_begin = progress.Progress.begin

    def respond(self: Any, peer: str, message: Any) -> None:
        term = max(message.term, self._stock.term)
        next_index = max(message.next_index, self.progress[peer].match + 1)
        honest_response(
            self, peer, msgspec.structs.replace(message, term=term, next_index=next_index)
        )

    def release(self: Any, _term: int) -> bool:
        held, sent = self._held, False
        while held and held[0][0] <= self._journal.durable_lsn:
            _, _, peer, message = held.popleft()
            self.send(peer, message)
            sent = True
        return sent

    def begin(self: Any, next_index: int, now: float) -> None:
        remembered = self.match
        honest_begin(self, next_index, now)
        self.match = remembered

    patch(replication.Replication, "on_append_response", respond)
    patch(outbox.Outbox, "release", release)
    patch(progress.Progress, "begin", begin)


@bug
@shaped(faults=("kill", "slow_link", "freeze"), **MANY_ELECTIONS)
def h11_votes_are_counted_twice(patch: Patch) -> None:
    """H11: votes are counted, not voters, and a vote is delivered twice."""

    def on_vote(self: Any, peer: str, message: Any) -> None:
        for _ in range(2):
            self._stock.take_vote(peer, message.term)

    patch(campaign.Campaign, "on_vote", on_vote)


@bug
def commit_without_majority(patch: Patch) -> None:
    """A write is committed and answered as soon as the leader's own disk has it."""

    def committable(self: Any) -> int:
        durable, committed = int(self._journal.durable_index), int(self._stock.commit_index)
        own = self._journal.term_at(durable) == self._stock.term
        return max(committed, durable) if own else committed

    patch(replication.Replication, "committable", committable)


@bug
def vote_for_shorter_logs(patch: Patch) -> None:
    """A vote does not ask whether the candidate's log is up to date (Raft paper, 5.4.1)."""
    honest = campaign.Campaign.on_request_vote

    def on_request_vote(self: Any, peer: str, message: Any) -> None:
        honest(self, peer, msgspec.structs.replace(message, last_log_term=2**31))

    patch(campaign.Campaign, "on_request_vote", on_request_vote)
    patch(campaign.Campaign, "_log_is_current", lambda _self, _index, _term: True)


# --- reads -----------------------------------------------------------------------------------


@bug
def reads_without_confirmation(patch: Patch) -> None:
    """A leader answers reads without asking whether it still leads (H15)."""

    def confirm(self: Any, done: Any, voucher: Any = None) -> None:
        done(None if self._replica.is_leader else proposals.GroupFailure("not_leader"))

    patch(reads.ReadIndex, "confirm", confirm)


@bug
def reads_before_own_no_op(patch: Patch) -> None:
    """A new leader serves reads at a commit index that may be older than its predecessor's."""
    patch(replica.Replica, "no_op_applied", property(lambda _self: True))


@bug
@shaped(
    faults=("partition", "one_way", "bridge", "freeze"), fault_every_s=4.0, workloads=("register",)
)
def age_of_a_heartbeat(patch: Patch) -> None:
    """A follower takes its state for fresh because it has been told so once."""

    def age_ms(self: Any) -> int | None:
        return None if self._proven_us is None else 0

    patch(freshness_module.Freshness, "age_ms", age_ms)


# --- writes and what is said of them ---------------------------------------------------------


@bug
def answer_before_commit(patch: Patch) -> None:
    """A put is answered as soon as it is in the leader's log."""
    honest = group.Group.take_entry

    def take_entry(self: Any) -> bytes | None:
        waiting = list(self._queue._waiting)
        entry = honest(self)
        if entry is None:
            return entry
        revision = max(self.state.last_revision + 1, self._clock.time_us())
        for proposal in waiting:
            if all(_is_plain_put(command.operation) for command in proposal.commands):
                results = [PutResult(revision, 1) for _ in proposal.commands]
                self._later([(proposal.done, results[:1])])
                proposal.done = lambda _: None
        return entry

    patch(group.Group, "take_entry", take_entry)


def _is_plain_put(operation: object) -> bool:
    return isinstance(operation, Put) and operation.if_revision is None and not operation.if_absent


@bug
def apply_twice(patch: Patch) -> None:
    """Now and then an entry is applied twice, on every replica (H12)."""
    honest = group.Group.apply_entry

    def apply_entry(self: Any, index: int, term: int, command: bytes | None) -> int:
        if command is not None and index % 16 == 0:
            self.state.apply(decode_batch(command))
        return int(honest(self, index, term, command))

    patch(group.Group, "apply_entry", apply_entry)


@bug
def forget_outcomes_in_snapshots(patch: Patch) -> None:
    """The idempotency memory is not part of a snapshot."""

    def finish(self: Any) -> Any:
        state = self._state
        state.memory = OutcomeMemory(MemoryLimits())
        return state

    patch(Restorer, "finish", finish)


@bug
@shaped(faults=("transfer",), free_keys=0, name_lifetime_s=12.0, copies=0.3)
def forgotten_session_is_made_anew(patch: Patch) -> None:
    """A session that a shard does not know is let in, though it may have been forgotten."""
    patch(OutcomeMemory, "_refused_for_birth", lambda _self, _born: None)


@bug
@shaped(faults=("slow_link", "stall_disk", "partition"), call_ms=2000, fault_every_s=4.0)
def unknown_is_called_definite(patch: Patch) -> None:
    """A write that may yet be committed is reported as certainly not applied."""

    def timed_out(self: Any) -> Any:
        detail = "no answer in time"
        return Failure("no_leader", detail, definite=True)

    patch(requests.Pending, "timed_out", timed_out)
    patch(proposals.GroupFailure, "definite", property(lambda _self: True))


@bug
@shaped(faults=("reset", "kill"), delay_us=3000, fault_every_s=1.0, operations_per_s=15.0)
def repeat_any_write(patch: Patch) -> None:
    """The router sends a write again after a lost answer, though nothing makes it idempotent."""
    patch(requests, "may_repeat", lambda _request: True)
    honest = requests.Pending.lost

    def lost(self: Any) -> bool:
        repeat = honest(self)
        self.exposed = False
        return repeat

    patch(requests.Pending, "lost", lost)


@bug
@shaped(shards=2)
def wrong_shard(patch: Patch) -> None:
    """One node goes by another map than the others, and no group looks whether a key is its own."""
    honest = router.Router.__init__

    def start(self: Any, *, node: str, directory: Any, **rest: Any) -> None:
        honest(self, node=node, directory=directory, **rest)
        if node == "n2":
            other: Any = _OtherMap(directory.map)
            self.directory = Directory(other)

    patch(router.Router, "__init__", start)
    patch(StateMachine, "_owns_all", lambda _self, _operation: True)


class _OtherMap:
    """A map that takes some keys for another shard's."""

    def __init__(self, real: Any) -> None:
        self._real = real

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def shard_of(self, key: bytes) -> int:
        """The next shard, for about half of the keys."""
        shard = int(self._real.shard_of(key))
        shards = self._real.ring.shards
        if sum(key) % 2:
            return int(shards[(shards.index(shard) + 1) % len(shards)])
        return shard


@bug
@shaped(shards=3, workloads=("set",))
def range_of_one_shard(patch: Patch) -> None:
    """A range in a transaction answers with what the shard of its first key has of it."""
    patch(partitioning, "share_tag", lambda _start, _end: True)


@bug
@shaped(faults=("forwarder_restart",))
def reply_of_an_earlier_life(patch: Patch) -> None:
    """A node numbers the calls that it forwards from 1 in every life, and is answered by its name.

    Both of the router's defences are off: a call is answered over whatever link there is by then.
    """
    honest = router.Router.__init__

    def start(self: Any, **rest: Any) -> None:
        honest(self, **rest)
        self._next_id = 0

    def lose(self: Any) -> Any:
        unanswered = give_up(self)
        self.is_lost = False
        return unanswered

    give_up = calls.LinkCalls.lose
    patch(router.Router, "__init__", start)
    patch(calls.LinkCalls, "lose", lose)


# --- links -----------------------------------------------------------------------------------


@bug
def lose_messages_quietly(patch: Patch) -> None:
    """A link drops messages under load instead of breaking, and Raft's view of a peer is wrong."""
    honest = connection.Connection.send
    count = {"sent": 0}

    def send(self: Any, channel: int, payload: bytes) -> bool:
        count["sent"] += 1
        if count["sent"] % 7 == 0:
            return True
        return bool(honest(self, channel, payload))

    patch(connection.Connection, "send", send)


@bug
def stuck_in_a_newer_term(patch: Patch) -> None:
    """A follower with a newer term stays silent to its leader, and is left behind for ever."""

    def on_append(self: Any, peer: str, message: Any) -> None:
        if message.term >= self._stock.term:
            honest(self, peer, message)

    honest = follower.Follower.on_append
    patch(follower.Follower, "on_append", on_append)
    patch(campaign.Campaign, "on_pre_vote", lambda _self, _peer, _message: None)


# --- the library -----------------------------------------------------------------------------


@bug
def stock_pysyncobj(patch: Patch) -> None:
    """PySyncObj 0.3.17 as it comes, with its local reads, in the place of the hardened replica."""
    patch(group, "Replica", StockReplica)
    patch(compaction.Compaction, "may_snapshot", property(lambda _self: False))
    reads_without_confirmation(patch)
