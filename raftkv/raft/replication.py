"""Log replication: what a follower accepts and acknowledges, what a leader sends and commits.

Raft paper, section 5.3 and figure 2. The receiver's rules, windows, and who counts towards a
majority are decided here. Stock code is left with appends that do not simply go on: those of a new
leader or term, and those that conflict or leave a gap.
"""

from collections import deque
from typing import Any

import msgspec

from raftkv.raft import messages as wire
from raftkv.raft.elections import Elections
from raftkv.raft.journal import FIRST_INDEX, REGULAR, LogEntry
from raftkv.raft.member import ReplicaError
from raftkv.raft.seams import TURN, PeerNode
from raftkv.raft.windows import PEER_WINDOW_BYTES, SHARE_BYTES

MESSAGE_BYTES_MAX = 512 * 1024
"""Entries per append are cut here (a single larger entry still goes whole)."""

WINDOW_BYTES = 4 * 1024 * 1024
"""Bytes of entries in flight to one follower before the leader waits for its answers.

All groups that this node leads share another window per follower, see
:mod:`raftkv.raft.windows`.
"""


class AppendBounds(msgspec.Struct, frozen=True):
    """How much a leader sends to one follower; the constants say what each is for."""

    message_bytes_max: int = msgspec.field(default_factory=lambda: MESSAGE_BYTES_MAX)
    window_bytes: int = msgspec.field(default_factory=lambda: WINDOW_BYTES)
    peer_window_bytes: int = msgspec.field(default_factory=lambda: PEER_WINDOW_BYTES)


class Replication(Elections):
    """The part of a replica that moves entries between logs.

    Args:
        appends: how much is sent at a time; otherwise as :class:`Member`.
    """

    def __init__(self, *, appends: AppendBounds, **member: Any) -> None:
        self._message_bytes_max = appends.message_bytes_max
        self._window_bytes = appends.window_bytes
        super().__init__(**member)

    # --- follower -----------------------------------------------------------------------------

    def _on_append(self, node: PeerNode, message: wire.AppendEntries) -> None:
        """Accept entries by the receiver's rules of the Raft paper (figure 2, steps 1 to 5).

        Stock deletes everything after ``prev_index`` without looking for a conflict (H2). So it
        is only shown what is really new, and not even that where nothing can conflict: the part
        that our log already holds is cut off here, and both the commit index and the
        acknowledgement stop where this message's proof stops.
        """
        if message.term < self.term:
            self._owner.send(node.name, wire.HigherTerm(self.term))
            return
        if self.is_leader and message.term == self.term:
            raise ReplicaError(f"{node.name} and this node both lead in term {self.term}")
        for _, term in message.entries:
            if term > message.term:  # it would raise ours with the next start
                return
        if message.term != self.term and not self._is_near(message.term):
            return
        self._leader_contact = self._clock.monotonic()
        self._starting = False
        if self._question is not None:
            self._drop_question()
        if self._goes_on(node, message):
            self._take_next(node, message)
            return
        prev_index, prev_term, entries = self._unknown_part(message)
        proven = max(message.prev_index + len(message.entries), self.journal.first_index)
        self._ack_limit, self._shown_index = proven, prev_index
        self._SyncObj__onMessageReceived(
            node,
            {
                "type": "append_entries",
                "term": message.term,
                "commit_index": min(message.commit_index, proven),
                "prevLogIdx": prev_index,
                "prevLogTerm": prev_term,
                "entries": entries,
            },
        )

    def _goes_on(self, node: PeerNode, message: wire.AppendEntries) -> bool:
        """Whether the leader that we follow sends what comes after our last entry, if anything.

        As nearly always: nothing about it is new but the entries, and nothing can conflict.
        """
        journal = self.journal
        return (
            message.prev_index == journal.last_index
            and message.prev_term == journal.last_term
            and message.term == self.term
            and self.leader_node is node
            and not self._SyncObj__transferInProgress
        )

    def _take_next(self, node: PeerNode, message: wire.AppendEntries) -> None:
        """Do what stock code would come to, for a message that only goes on."""
        self._SyncObj__raftElectionDeadline = self._leader_contact + self._election_timeout_s()
        journal, index = self.journal, message.prev_index
        for command, term in message.entries:
            index += 1
            journal.add(command, index, term)
        self._ack_limit = index
        self._SyncObj__sendNextNodeIdx(node, nextNodeIdx=index + 1, success=True)
        self._SyncObj__raftCommitIndex = max(self.commit_index, min(message.commit_index, index))

    def _unknown_part(
        self, message: wire.AppendEntries
    ) -> tuple[int, int, list[tuple[bytes, int, int]]]:
        """(prev index, prev term, entries) with what the log already has cut off the front."""
        journal, prev, first = self.journal, message.prev_index, self.journal.first_index
        entries = message.entries
        numbered = [(command, prev + 1 + i, term) for i, (command, term) in enumerate(entries)]
        if prev >= first and journal.term_at(prev) != message.prev_term:
            return prev, message.prev_term, []  # stock refuses this and asks for earlier entries
        known = 0
        for _, index, term in numbered:
            if index > first and journal.term_at(index) != term:
                break
            known += 1
        if known == len(numbered):
            return journal.last_index, journal.last_term, []
        conflict = numbered[known][1]
        if conflict <= self.commit_index:
            raise ReplicaError(
                f"entry {conflict} is committed here with term {journal.term_at(conflict)}, but "
                f"the leader of term {message.term} sends term {numbered[known][2]}"
            )
        return conflict - 1, journal.term_at(conflict - 1) or 0, numbered[known:]

    def _SyncObj__sendNextNodeIdx(  # noqa: N802
        self,
        node: PeerNode,
        reset: bool = False,  # noqa: FBT001, FBT002 - stock signature
        nextNodeIdx: int | None = None,  # noqa: N803
        success: bool = False,  # noqa: FBT001, FBT002
    ) -> None:
        """Answer an append, with our term (H10), and only for what is durable."""
        journal, peer = self.journal, node.name
        if not success:
            next_index = journal.last_index + 1
            if reset and nextNodeIdx is not None:
                # Back off by a term at a time (Raft paper 5.3); stock goes one entry a round.
                next_index = journal.first_index_of_term_at(nextNodeIdx, self.commit_index)
            refusal = wire.AppendResponse(
                self.term, next_index, success=False, refused=self._shown_index
            )
            self._answer(peer, refusal)
            return
        proven = min((nextNodeIdx or 1) - 1, self._ack_limit)
        if proven <= journal.durable_index:
            self._answer(peer, wire.AppendResponse(self.term, proven + 1, success=True))
            return
        self._hold(peer, wire.AppendResponse(self.term, proven + 1, success=True))
        if self._clock.monotonic() - self._answered > self._timing.heartbeat_s / 2:
            # A slow disk is not a lost node: tell the leader that we are here, and how far.
            durable = wire.AppendResponse(self.term, journal.durable_index + 1, success=True)
            self._answer(peer, durable)

    # --- leader -------------------------------------------------------------------------------

    def _SyncObj__onBecomeLeader(self) -> None:  # noqa: N802
        """Start a leadership with nothing known of the followers.

        In a group of one stock comes here with a term that the disk does not have yet, and would
        take it a second time after a crash: it stays a candidate until the disk has it (H8).
        """
        if not self.peers and not self.journal.synced:
            return
        self._starting = False
        self._match = dict.fromkeys(self.peers, 0)
        self.nothing_in_flight()
        self._sent_last_index = 0
        super()._SyncObj__onBecomeLeader()
        self._heard_nobody_s = max(self._SyncObj__lastResponseTime.values(), default=0.0)

    def _on_append_response(self, node: PeerNode, message: wire.AppendResponse) -> None:
        """Believe answers of this term only, and never move backwards on success (H2, H10)."""
        if message.term > self.term:
            self.learn_term(message.term)
        if not self.is_leader or message.term != self.term:
            return
        peer, last_index = node.name, self.journal.last_index
        self._SyncObj__lastResponseTime[node] = self._clock.monotonic()
        next_indexes = self._SyncObj__raftNextIndex
        if message.success:
            if message.next_index - 1 > last_index:
                return  # nobody can hold what we never sent
            match = self._match[peer] = max(self._match[peer], message.next_index - 1)
            window = self._in_flight.get(peer)
            while window and window[0][0] <= match:
                self._windows[peer].release(window.popleft()[1])
            next_index = next_indexes[node]
            if next_index <= match:
                next_index = next_indexes[node] = match + 1
            if next_index <= last_index:
                self._append_to(peer, node)
        elif not self._is_of_the_past(peer, message):
            self._go_back(peer, node, message)

    def _go_back(self, peer: str, node: PeerNode, message: wire.AppendResponse) -> None:
        """Send from where a follower says that its log ends, or agrees."""
        last_index, next_indexes = self.journal.last_index, self._SyncObj__raftNextIndex
        self._nothing_in_flight(peer)
        if max(message.next_index, message.refused) <= self._match[peer]:
            # It refuses what it had acknowledged in this term. Answers come in order, so this is
            # no old one: the follower's log was cut, since a disk lost the end of it as if it had
            # never been written. Insisting would mean to be refused for ever; what counted until
            # now stays committed. One that backs off below what it had acknowledged, because its
            # log differs above that, has lost nothing: it is asked there again.
            self._owner.entries_lost(peer, message.next_index, self._match[peer])
            self._match[peer] = 0
        floor = max(self._match[peer], FIRST_INDEX) + 1
        next_indexes[node] = max(floor, min(message.next_index, last_index + 1))
        if next_indexes[node] > self.journal.first_index:
            self._append_to(peer, node)
        else:
            self._owner.snapshot_needed(peer)

    def _is_of_the_past(self, peer: str, refusal: wire.AppendResponse) -> bool:
        """Whether a refusal asks for what has been sent again since, a short while ago.

        A follower that stood still finds many heartbeats, and refuses each. To go back for each of
        them would put as many windows on the link.
        """
        now = self._clock.monotonic()
        next_index, at = self._went_back.get(peer, (0, now))
        if (
            next_index == refusal.next_index
            and self._in_flight.get(peer)
            and now - at < self._timing.election_min_s
        ):
            return True
        self._went_back[peer] = (refusal.next_index, now)
        return False

    def _SyncObj__sendAppendEntries(self) -> None:  # noqa: N802
        """Send to every connected follower what it lacks, or a heartbeat.

        Replaces stock's method: no pickled snapshot chunks (H1, H6), no pieces of entries (H13),
        a bounded window per follower, no copy of the log's tail.
        """
        self._SyncObj__newAppendEntriesTime = self._clock.monotonic() + self._heartbeat_wait_s()
        self._sent_last_index = self.journal.last_index
        connected = self._SyncObj__connectedNodes
        for peer, node in self.peers.items():
            if node in connected and not self._append_to(peer, node):
                self._send_append(peer, self._SyncObj__raftNextIndex[node], ())

    def _heartbeat_wait_s(self) -> float:
        """How long after this heartbeat the next one is due: longer if there is nothing to tell.

        That is, if all linked followers have everything, and heard of all that is committed by the
        heartbeat before. With many groups most are idle, and heartbeats are all their cost.
        """
        last_index, commit_index, timing = self.journal.last_index, self.commit_index, self._timing
        told, self._told = self._told, (self.term, last_index, commit_index)
        if told != self._told or commit_index < last_index:
            return timing.heartbeat_s
        linked = self._SyncObj__connectedNodes
        for peer, node in self.peers.items():
            if node in linked and self._match[peer] < last_index:
                return timing.heartbeat_s
        return timing.idle_heartbeat_s

    def _append_to(self, peer: str, node: PeerNode, *, in_turn: bool = False) -> bool:
        """Send entries within the windows; whether anything was sent.

        ``in_turn``: those that wait for the shared window have let this replica go on.
        """
        journal = self.journal
        start, last_index = self._SyncObj__raftNextIndex[node], journal.last_index
        if start <= journal.first_index:
            self._owner.snapshot_needed(peer)
            # A heartbeat that proves nothing: the follower says again where its log ends.
            self._send_append(peer, journal.first_index + 1, ())
            return True
        if start > last_index:
            return False
        window, shared = self._in_flight.setdefault(peer, deque()), self._windows[peer]
        room, first = self._window_bytes - sum([size for _, size in window]), start
        while start <= last_index and room > 0:
            bytes_max, share = self._message_bytes_max, not (in_turn or shared.is_open)
            if share:
                shared.wait(self._turns[peer])
                if window:
                    break
                bytes_max = min(bytes_max, SHARE_BYTES)
            in_turn = False
            entries = journal.entries_from(start, bytes_max)
            size = sum([len(command) for command, _ in entries])
            if share and size > bytes_max:
                break  # a single entry is larger
            self._send_append(peer, start, entries)
            start += len(entries)
            window.append((start - 1, size))
            shared.take(size)
            room -= size
        self._SyncObj__raftNextIndex[node] = start
        return start > first

    def _take_turn(self, peer: str) -> None:
        """Go on where this replica waited for the shared window, if it still leads."""
        node = self.peers[peer]
        if not self.is_leader or node not in self._SyncObj__connectedNodes:
            return
        previous, TURN.clock = TURN.clock, self._clock
        try:
            self._append_to(peer, node, in_turn=True)
        finally:
            TURN.clock = previous

    def nothing_in_flight(self) -> None:
        """Count nothing as in flight any more: no answer to it would be listened to."""
        for peer in list(self._in_flight):
            self._nothing_in_flight(peer)

    def _nothing_in_flight(self, peer: str) -> None:
        """The same for one peer, whose link is lost or whose log is not what we thought."""
        for _, size in self._in_flight.pop(peer, ()):
            self._windows[peer].release(size)

    def _send_append(self, peer: str, start: int, entries: tuple[tuple[bytes, int], ...]) -> None:
        prev_term = self.journal.term_at(start - 1)
        self._owner.send(
            peer,
            wire.AppendEntries(self.term, start - 1, prev_term or 0, self.commit_index, entries),
        )

    def _checkCommandsToApply(self) -> None:  # noqa: N802 - stock name
        """Propose what waits as one entry, and send it at once (H14, H17, H21).

        Stock's command queue is never used: nothing is forwarded by PySyncObj, and no callback
        is lost in it.
        """
        if not self.is_leader:
            return
        while (command := self._owner.take_entry()) is not None:
            self.journal.add(REGULAR + command, self.journal.last_index + 1, self.term)
        if self.journal.last_index > self._sent_last_index:
            self._SyncObj__sendAppendEntries()

    def _committable(self) -> int:
        """Up to where a majority holds the log durably, this node's own disk included (H10).

        Only an entry of this term says so (Raft paper 5.4.2); without one, what is committed stays.
        """
        held = [self.journal.durable_index, *self._match.values()]
        held.sort(reverse=True)
        index = min(held[self._majority - 1], self.journal.last_index)
        if index > self.commit_index and self.journal.term_at(index) == self.term:
            return index
        return self.commit_index

    def _advance_commit(self) -> None:
        """Commit what may be committed.

        Stock counts the leader's copy unconditionally (H9); as it is not told how far followers
        are, its own count never comes to a majority.
        """
        self._SyncObj__raftCommitIndex = self._committable()

    def _SyncObj__getEntries(  # noqa: N802
        self,
        fromIDx: int | None,  # noqa: N803 - stock signature
        count: int | None = None,
        maxSizeBytes: int | None = None,  # noqa: N803
    ) -> list[LogEntry]:
        """Show stock code, in a group of one, only what the disk has (H9).

        Alone, its count of one copy is a majority, and it counts in the same tick in which it
        has elected itself; an entry that it does not see it does not commit.
        """
        if not self.peers and (fromIDx or 0) > self.journal.durable_index:
            return []
        entries: list[LogEntry] = super()._SyncObj__getEntries(fromIDx, count, maxSizeBytes)
        return entries
