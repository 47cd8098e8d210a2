"""What a leader sends to followers, believes of them, and commits (Raft paper 5.3, figure 2).

No pickled snapshot chunks (H1, H6), no pieces of entries (H13), a bounded window per follower, no
copy of the log's tail.
"""

from collections.abc import Callable, Sequence
from functools import partial
from operator import attrgetter

import msgspec

from raftkv.raft import messages as wire
from raftkv.raft import quorum
from raftkv.raft.clock import Clock
from raftkv.raft.journal import GroupJournal
from raftkv.raft.outbox import Outbox
from raftkv.raft.progress import Progress
from raftkv.raft.ready import EntriesLost, SnapshotNeeded
from raftkv.raft.stock import Stock
from raftkv.raft.timing import Timing
from raftkv.raft.windows import PEER_WINDOW_BYTES, SHARE_BYTES, PeerWindow

MESSAGE_BYTES_MAX = 512 * 1024
"""Entries per append are cut here (a single larger entry still goes whole)."""

WINDOW_BYTES = 4 * 1024 * 1024
"""Bytes of entries in flight to one follower before the leader waits for its answers.

All groups that this node leads share another window per follower, see
:mod:`raftkv.raft.windows`.
"""


_match_of = attrgetter("match")


class AppendBounds(msgspec.Struct, frozen=True):
    """How much a leader sends to one follower; the constants say what each is for."""

    message_bytes_max: int = msgspec.field(default_factory=lambda: MESSAGE_BYTES_MAX)
    window_bytes: int = msgspec.field(default_factory=lambda: WINDOW_BYTES)
    peer_window_bytes: int = msgspec.field(default_factory=lambda: PEER_WINDOW_BYTES)


class Replication:
    """The sending end of replication.

    Args:
        appends: how much is sent at a time.
        window_to: the window to a peer, which all groups of the node share.
        take_turn: called when that of a peer has room again for what this group waits to send;
            :meth:`go_on` should follow.
    """

    def __init__(
        self,
        *,
        peers: Sequence[str],
        stock: Stock,
        journal: GroupJournal,
        outbox: Outbox,
        clock: Clock,
        timing: Timing,
        appends: AppendBounds,
        window_to: Callable[[str], PeerWindow],
        take_turn: Callable[[str], None],
    ) -> None:
        self.progress = {peer: Progress() for peer in peers}
        self._stock = stock
        self._journal = journal
        self._outbox = outbox
        self._clock = clock
        self._timing = timing
        self._message_bytes_max = appends.message_bytes_max
        self._window_bytes = appends.window_bytes
        self._majority = quorum.majority(len(peers) + 1)
        self._windows = {peer: window_to(peer) for peer in peers}
        self._turns = {peer: partial(take_turn, peer) for peer in peers}
        self._told = (-1, 0, 0)  # term, last and commit index at the last heartbeat

    # --- leaderships --------------------------------------------------------------------------

    def begin(self) -> None:
        """Know nothing of the followers, as a leadership begins with its no-op (H10)."""
        next_index, now = self._stock.no_op_index or 0, self._clock.monotonic()
        for peer, progress in self.progress.items():
            self.lose_in_flight(peer)
            progress.begin(next_index, now)

    def end(self) -> None:
        """Count nothing as in flight any more: no answer to it would be listened to."""
        for peer in self.progress:
            self.lose_in_flight(peer)

    def lose_in_flight(self, peer: str) -> None:
        """The same for one peer, whose link is lost or whose log is not what we thought."""
        if lost := self.progress[peer].lose_in_flight():
            self._windows[peer].release(lost)

    def is_heard_since(self, then: float) -> bool:
        """Whether a majority, this leader included, has spoken after ``then``."""
        heard = 1
        for progress in self.progress.values():
            if progress.heard_at > then:
                heard += 1
        return heard >= self._majority

    # --- answers ------------------------------------------------------------------------------

    def on_append_response(self, peer: str, message: wire.AppendResponse) -> None:
        """Believe answers of this term only, and never move backwards on success (H2, H10)."""
        stock = self._stock
        if message.term > stock.term:
            stock.learn_term(message.term)
        if not stock.is_leader or message.term != stock.term:
            return
        progress, last_index = self.progress[peer], self._journal.last_index
        now = self._clock.monotonic()
        progress.answered(now)
        if message.success:
            if message.next_index - 1 > last_index:
                return  # nobody can hold what we never sent
            if answered := progress.acknowledged(message.next_index - 1):
                self._windows[peer].release(answered)
            if progress.next <= last_index:
                self._append_to(peer, progress)
        elif not progress.is_old_refusal(message.next_index, now, self._timing.election_min_s):
            self._go_back(peer, progress, message)

    def _go_back(self, peer: str, progress: Progress, message: wire.AppendResponse) -> None:
        """Send from where a follower says that its log ends, or agrees."""
        self.lose_in_flight(peer)
        lost = progress.refused(message.next_index, message.refused, self._journal.last_index)
        if lost:
            self._outbox.notify(EntriesLost(peer, message.next_index, lost))
        if progress.next > self._journal.first_index:
            self._append_to(peer, progress)
        else:
            self._outbox.notify(SnapshotNeeded(peer))

    # --- appends ------------------------------------------------------------------------------

    def send_all(self) -> None:
        """Send to every linked follower what it lacks, or a heartbeat."""
        stock = self._stock
        stock.heartbeat_deadline = self._clock.monotonic() + self._heartbeat_wait_s()
        linked = stock.linked
        for peer, progress in self.progress.items():
            if peer in linked and not self._append_to(peer, progress):
                self._send_append(peer, progress.next, ())

    def _heartbeat_wait_s(self) -> float:
        """How long after this heartbeat the next one is due: longer if there is nothing to tell.

        That is, if all linked followers have everything, and heard of all that is committed by the
        heartbeat before. With many groups most are idle, and heartbeats are all their cost.
        """
        stock, timing, last_index = self._stock, self._timing, self._journal.last_index
        told, self._told = self._told, (stock.term, last_index, stock.commit_index)
        if told != self._told or stock.commit_index < last_index:
            return timing.heartbeat_s
        for peer, progress in self.progress.items():
            if progress.match < last_index and peer in stock.linked:
                return timing.heartbeat_s
        return timing.idle_heartbeat_s

    def _append_to(self, peer: str, progress: Progress, *, in_turn: bool = False) -> bool:
        """Send entries within the windows; whether anything was sent.

        ``in_turn``: those that wait for the shared window have let this replica go on.
        """
        journal = self._journal
        first, last_index = progress.next, journal.last_index
        if first <= journal.first_index:
            self._outbox.notify(SnapshotNeeded(peer))
            # A heartbeat that proves nothing: the follower says again where its log ends.
            self._send_append(peer, journal.first_index + 1, ())
            return True
        if first > last_index:
            return False
        shared = self._windows[peer]
        room = self._window_bytes - progress.in_flight_bytes
        while progress.next <= last_index and room > 0:
            bytes_max, share = self._message_bytes_max, not (in_turn or shared.is_open)
            if share:
                shared.wait(self._turns[peer])
                if progress.has_in_flight:
                    break
                bytes_max = min(bytes_max, SHARE_BYTES)
            in_turn = False
            entries = journal.entries_from(progress.next, bytes_max)
            size = sum([len(command) for command, _ in entries])
            if share and size > bytes_max:
                break  # a single entry is larger
            self._send_append(peer, progress.next, entries)
            progress.sent(progress.next + len(entries) - 1, size)
            shared.take(size)
            room -= size
        return progress.next > first

    def go_on(self, peer: str) -> None:
        """Go on where this replica waited for the shared window, if it still leads."""
        if self._stock.is_leader and peer in self._stock.linked:
            self._append_to(peer, self.progress[peer], in_turn=True)

    def _send_append(self, peer: str, start: int, entries: tuple[tuple[bytes, int], ...]) -> None:
        stock, prev_term = self._stock, self._journal.term_at(start - 1)
        self._outbox.send(
            peer,
            wire.AppendEntries(stock.term, start - 1, prev_term or 0, stock.commit_index, entries),
        )

    # --- commitment ---------------------------------------------------------------------------

    def committable(self) -> int:
        """Up to where a majority holds the log durably, this node's own disk included (H9, H10)."""
        stock, journal = self._stock, self._journal
        if stock.commit_index == journal.last_index:
            return stock.commit_index
        held = [journal.durable_index, *map(_match_of, self.progress.values())]
        return quorum.committable(held, journal, stock.term, stock.commit_index)

    def advance_commit(self) -> None:
        """Commit what may be committed."""
        self._stock.commit_index = self.committable()
