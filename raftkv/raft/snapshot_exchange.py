"""A group's snapshots to and from other replicas, and the state that is built from one.

See :mod:`raftkv.raft.snapshot_transfer` for how the bytes travel.

A received snapshot goes through four steps, and the one in place is good until the third is done:
it is **sealed** (all bytes are here, checked and synced, under a temporary name), **built** (the
state is made of it beside the present one, and its digest compared), **published** (it takes the
old one's place, durably) and **installed** (the state takes the old one's place). Whatever fails
before the third is thrown away, and nothing was touched: the replica goes on as it was, and waits
ever longer before it takes the same snapshot again. A crash before the third leaves the old one and
after it the new one, of which a state was built already.

Senders end with the link to their follower, receivers do not. A job of a receiver may end after
the link was lost, and what it says goes to the same peer over the next one. That is harmless: it
names the snapshot's index and counts only at a leader of the same term, whose transfer of that
index is of the same bytes, as states at one entry are equal; the checksum of the file has the last
word. An acknowledgement after an installation speaks of committed entries on this disk, true
whoever hears it.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

from raftkv.core.shard.machine import Restorer, StateMachine
from raftkv.raft import messages as wire
from raftkv.raft.clock import Clock
from raftkv.raft.errors import ReplicaError
from raftkv.raft.host import Event, GroupConfig, Host
from raftkv.raft.replica import Replica
from raftkv.raft.snapshot_transfer import (
    Receiver,
    Sender,
    SnapshotFiles,
    SnapshotId,
    SnapshotName,
    SnapshotReceiver,
)
from raftkv.storage.disk import DiskError
from raftkv.storage.snapshots import SnapshotBusy, SnapshotDamaged, SnapshotStale

STALLED_S = 5.0
"""A transfer without progress for this long is given up; it is started again if still needed."""

REFUSE_FIRST_S = STALLED_S / 2
"""How long a snapshot that failed is not taken again; twice as long each time that it fails again.
Shorter than a sender waits, so that the first new try is not in vain."""

REFUSE_MAX_S = 60.0

BUSY_S = 0.5
"""How long a transfer waits before it looks for a free place again."""


class _Restoring(NamedTuple):
    """A state that is being built from a sealed snapshot of ``peer``."""

    snapshot: SnapshotId
    file: SnapshotReceiver
    records: Iterator[bytes]
    restorer: Restorer
    peer: str


class _GivenUp(NamedTuple):
    """What failed last, and until when it is not taken again, in monotonic seconds.

    ``what`` is a snapshot of a peer, or None for all: it was this node's disk that failed.
    """

    what: tuple[SnapshotId, str] | None
    wait_s: float
    until: float


Install = Callable[[SnapshotId, StateMachine, str], None]
"""Takes over a state that a peer's snapshot has brought."""


class SnapshotExchange:
    """What is on its way out, in, and into memory."""

    def __init__(
        self,
        config: GroupConfig,
        *,
        replica: Replica,
        files: SnapshotFiles,
        host: Host,
        clock: Clock,
        install: Install,
    ) -> None:
        self._config = config
        self._replica = replica
        self._files = files
        self._host = host
        self._clock = clock
        self._install = install
        self._senders: dict[str, Sender] = {}
        self._receiver: Receiver | None = None
        self._restoring: _Restoring | None = None
        self._publishing = False
        self._refused: _GivenUp | None = None
        self._open_again: dict[str, float] = {}  # peer -> when ours is opened for it again
        self._reported_at = float("-inf")

    @property
    def is_receiving(self) -> bool:
        """Whether a snapshot is on its way in."""
        return self._receiver is not None or self._restoring is not None or self._publishing

    def tick(self) -> bool:
        """Build a little more of the new state; let go of what nobody sends any more.

        Return whether more ticks are needed to go on.
        """
        if self._restoring is not None:
            self._restore_some(self._restoring)
        receiver = self._receiver
        if receiver is not None:
            overtaken = receiver.snapshot.index <= self._replica.applied_index
            silent = self._clock.monotonic() - receiver.progress_at > 2 * STALLED_S
            if overtaken or silent:
                self._give_up(receiver)
        return self._restoring is not None

    def _give_up(self, receiver: Receiver) -> None:
        """Let go of a receiver as soon as it has let go of its file."""
        receiver.close()
        if receiver.released:
            self._receiver = None

    # --- out ----------------------------------------------------------------------------------

    def send_to(self, peer: str) -> None:
        """Send the latest snapshot to a follower whose next entry is gone."""
        now = self._clock.monotonic()
        sender = self._senders.get(peer)
        if sender is not None:
            if self._replica.match_index(peer) >= sender.snapshot.index:
                self.stop_sending(peer)  # it is installed, and the log was cut again meanwhile
            elif now - sender.progress_at < STALLED_S:
                return
            else:
                self._hold(peer, BUSY_S)  # others may have its place
        if now < self._open_again.get(peer, now):
            return
        try:
            opened = self._files.open()
        except SnapshotBusy:
            self._open_again[peer] = now + BUSY_S
            return
        except (DiskError, SnapshotDamaged) as error:
            # Out of descriptors, perhaps, or rotten: the others of the group go on with us.
            self._open_again[peer] = now + STALLED_S
            self._failed(f"to {peer}: {error}")
            return
        if opened is None:
            raise ReplicaError(f"group {self._config.id}: the log is compacted without a snapshot")
        snapshot, reader = opened
        sender = Sender(
            snapshot,
            bounds=self._config.bounds.chunks,
            reader=reader,
            run_job=self._host.run_job,
            send=lambda chunk: self._host.send(self._config.id, peer, chunk),
            failed=lambda error: self._sending_failed(peer, error),
            now=now,
        )
        self._senders[peer] = sender
        sender.go_on(self._replica.term)

    def _hold(self, peer: str, wait_s: float) -> None:
        """End a transfer, and begin none for a while."""
        self.stop_sending(peer)
        self._open_again[peer] = self._clock.monotonic() + wait_s

    def _sending_failed(self, peer: str, error: BaseException) -> None:
        """Give up this transfer; the follower still needs one, so another is started later.

        Not at once: the sender, closed, stays in its place until it counts as stalled.
        """
        self._failed(f"to {peer}: {error}")

    def on_progress(self, peer: str, message: wire.SnapshotProgress) -> None:
        """Hear from a follower what it wants next."""
        sender = self._senders.get(peer)
        if sender is None or message.term != self._replica.term or not self._replica.is_leader:
            return
        if message.index != sender.snapshot.index:
            return
        if message.wait_ms:
            self._hold(peer, min(message.wait_ms / 1000, REFUSE_MAX_S))
        else:
            sender.on_progress(message, self._clock.monotonic())

    def stop_sending(self, peer: str | None = None) -> None:
        """Stop what goes to ``peer``, or to anyone."""
        for name in [peer] if peer is not None else list(self._senders):
            if (sender := self._senders.pop(name, None)) is not None:
                sender.close()

    def stop(self) -> None:
        """Stop everything."""
        self.stop_sending()
        if self._receiver is not None:
            self._receiver.close()
        if self._restoring is not None:
            self._restoring.file.abort()
            self._restoring = None

    # --- in -----------------------------------------------------------------------------------

    def on_chunk(self, peer: str, message: wire.SnapshotChunk) -> None:
        """Take a piece of a snapshot that is newer than what is here (H7)."""
        if not self._is_of_this_term(peer, message):
            return
        if message.index <= self._replica.applied_index:
            journal = self._replica.journal  # applied may be ahead of this node's own disk
            if message.index <= max(journal.durable_index, journal.first_index):
                self.acknowledge(peer, message.index)
            return
        if self._restoring is not None or self._publishing:
            return  # the one before is being loaded; the leader starts again if need be
        snapshot = SnapshotId(message.index, message.last_term, message.size_bytes)
        if self._is_refused(snapshot, peer):
            self._ask_to_wait_longer(snapshot, peer)
            return
        receiver = self._receiver
        if receiver is not None and (receiver.snapshot, receiver.peer) != (snapshot, peer):
            self._give_up(receiver)
            receiver = None
        if self._receiver is None:
            receiver = self._receiver = self._new_receiver(snapshot, peer)
        if receiver is not None:  # else the file of the one before is still being written
            receiver.take(message.offset, message.data, self._clock.monotonic())

    def _is_of_this_term(self, peer: str, message: wire.SnapshotChunk) -> bool:
        """Whether a leader of our term sends what may be of that term.

        Its term may be new to us: the group has learnt it before. One that is too far away to be
        learnt at once is not ours yet.
        """
        if message.term < self._replica.term:
            self._host.send(self._config.id, peer, wire.HigherTerm(self._replica.term))
            return False
        return message.term == self._replica.term and message.last_term <= message.term

    def _new_receiver(self, snapshot: SnapshotId, peer: str) -> Receiver | None:
        try:
            file = self._files.receive(snapshot)
        except SnapshotBusy:
            self._ask_to_wait(snapshot, peer, BUSY_S)
            return None
        except DiskError as error:
            self._refuse(snapshot, peer, error)
            return None
        return Receiver(
            snapshot,
            peer,
            bounds=self._config.bounds.chunks,
            file=file,
            run_job=self._host.run_job,
            report=partial(self._progress, snapshot, peer),
            ask_again=partial(self._progress, snapshot, peer, in_order=False),
            on_sealed=partial(self._received, snapshot, peer, file),
        )

    def _progress(
        self, snapshot: SnapshotId, peer: str, offset: int, *, in_order: bool = True
    ) -> None:
        term = self._replica.term
        message = wire.SnapshotProgress(term, snapshot.index, offset, in_order)
        self._host.send(self._config.id, peer, message)

    def _ask_to_wait(self, snapshot: SnapshotId, peer: str, wait_s: float) -> None:
        message = wire.SnapshotProgress(
            self._replica.term, snapshot.index, 0, in_order=False, wait_ms=round(wait_s * 1000) + 1
        )
        self._host.send(self._config.id, peer, message)

    def _received(
        self,
        snapshot: SnapshotId,
        peer: str,
        file: SnapshotReceiver,
        name: SnapshotName | None,
        error: BaseException | None,
    ) -> None:
        """Begin to build the state; a bad file is not acknowledged, so it is sent again (H6)."""
        self._receiver = None
        if name is None:
            self._refuse(snapshot, peer, error)
        elif (name.index, name.term) != (snapshot.index, snapshot.term):
            file.abort()
            why = f"it ends with entry {name.index} of term {name.term}, not as announced"
            self._refuse(snapshot, peer, ValueError(why))
        else:
            config = self._config
            restorer = StateMachine.restore(config.id.generation, config.owns, config.bounds.memory)
            self._restoring = _Restoring(snapshot, file, file.records(), restorer, peer)
            self._host.wake(self._config.id)

    def _is_refused(self, snapshot: SnapshotId, peer: str) -> bool:
        """Whether this snapshot, or this node's disk, has failed a short while ago."""
        refused = self._refused
        return (
            refused is not None
            and refused.what in {None, (snapshot, peer)}
            and self._clock.monotonic() < refused.until
        )

    def _ask_to_wait_longer(self, snapshot: SnapshotId, peer: str) -> None:
        """Say how long nothing is taken; the leader may have another snapshot before that."""
        refused = self._refused
        if refused is not None:
            wait_s = refused.until - self._clock.monotonic()
            of_any = refused.what is None
            self._ask_to_wait(snapshot, peer, wait_s if of_any else min(wait_s, STALLED_S))

    def _refuse(self, snapshot: SnapshotId, peer: str, error: BaseException | None) -> None:
        """Say what failed; take the same again only after a while, ever longer."""
        what = None if isinstance(error, DiskError) else (snapshot, peer)
        before, wait_s = self._refused, REFUSE_FIRST_S
        if before is not None and before.what == what:
            wait_s = min(2 * before.wait_s, REFUSE_MAX_S)
        until = self._clock.monotonic() + wait_s
        self._refused = _GivenUp(what, wait_s, until)
        self._ask_to_wait_longer(snapshot, peer)
        self._failed(f"from {peer}: {error}")

    def _failed(self, detail: str) -> None:
        event = Event("snapshot_failed", self._config.id, self._replica.term, detail)
        self._host.event(event)

    def _restore_some(self, building: _Restoring) -> None:
        """Build the new state in slices beside the old one; all of it, and it is published."""
        self._report_restoring(building)
        try:
            state = self._next_slice(building)
        except Exception as error:  # noqa: BLE001 -- a bug as well: nothing of ours was touched
            self._restoring = None
            building.file.abort()
            self._refuse(building.snapshot, building.peer, error)
            return
        if state is None:
            return
        self._restoring = None
        if building.snapshot.index <= self._replica.applied_index:  # overtaken
            building.file.abort()
            return
        self._publishing = True
        self._host.run_job(building.file.publish, partial(self._published, building, state))

    def _next_slice(self, building: _Restoring) -> StateMachine | None:
        """Load some records; return the state once all are loaded and its digest is right."""
        for _ in range(self._config.bounds.restore_records_per_tick):
            record = next(building.records, None)
            if record is None:
                return building.restorer.finish()
            building.restorer.feed(record)
        return None

    def _published(
        self, building: _Restoring, state: StateMachine, _: object, error: BaseException | None
    ) -> None:
        """Let the state be taken over: the snapshot that it was built from is durable."""
        self._publishing = False
        snapshot, peer = building.snapshot, building.peer
        if snapshot.index <= self._replica.applied_index:
            return  # overtaken meanwhile
        if isinstance(error, SnapshotStale):
            # Only one whose directory could not be synced is in place and was not installed. What
            # the disk has is unknown, and a sync that failed may not be tried again; a start can.
            raise ReplicaError(f"group {self._config.id}: {error}") from error
        if error is not None:
            self._refuse(snapshot, peer, error)
            return
        self._refused = None
        self._install(snapshot, state, peer)

    def _report_restoring(self, building: _Restoring) -> None:
        """Tell the sender now and then that nothing is missing, so that it does not start again."""
        now = self._clock.monotonic()
        if now - self._reported_at > STALLED_S / 5:
            self._reported_at = now
            self._progress(building.snapshot, building.peer, building.snapshot.size_bytes)

    def acknowledge(self, peer: str, index: int) -> None:
        """Acknowledge exactly what the snapshot covers: that is committed, and durable here."""
        response = wire.AppendResponse(self._replica.term, index + 1, success=True)
        self._host.send(self._config.id, peer, response)
