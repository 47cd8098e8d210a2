"""One hardened member of a Raft group, as its host drives it: steps in, :class:`Ready` out.

It does no I/O, reads no clock of its own and calls nobody back: it is ticked, it is given messages,
and each step returns what its host has to carry out before the next one. Its parts, by what a
server does in the Raft paper::

    campaign.py     stands for election and votes
    follower.py     accepts and acknowledges
    replication.py  leads: sends, believes and commits (progress.py, quorum.py)
    outbox.py       holds back what the disk does not have yet
    stock.py        PySyncObj, which decides elections, terms, votes, and matches logs that differ
"""

from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Any

from raftkv.raft import messages as wire
from raftkv.raft.campaign import Campaign
from raftkv.raft.clock import Clock
from raftkv.raft.follower import Follower
from raftkv.raft.journal import REGULAR, GroupJournal
from raftkv.raft.outbox import Outbox
from raftkv.raft.progress import NEVER
from raftkv.raft.ready import CANDIDATE, FOLLOWER, LEADER, NOTHING, Ready
from raftkv.raft.replication import AppendBounds, Replication
from raftkv.raft.stock import Stock
from raftkv.raft.timing import RandomSource, Timing
from raftkv.raft.windows import PeerWindow

PAST_DEADLINE_S = 1e-4
"""Stock compares deadlines strictly: a tick at exactly the deadline does nothing."""


def _of(part: str, doc: str) -> Any:
    """Return a property that reads a part's attribute, without a call in Python."""
    return property(attrgetter(part), doc=doc)


class Replica:
    """One node's replica of one group.

    Args:
        name: this node.
        members: all nodes of the group, this one among them.
        journal: the log, recovered.
        applied_index: what the state machine around it has applied (its snapshot's index).
        preferred: ask for the leadership first when starting; pre-vote keeps this harmless.
        appends: how much is sent at a time.
        window_to: the window to a peer that this replica shares with others.
        take_turn: called with a peer whose window has room again; :meth:`send_more` should follow.
        entries_max: of committed entries that one step hands out.
    """

    def __init__(
        self,
        *,
        name: str,
        members: Sequence[str],
        journal: GroupJournal,
        applied_index: int,
        clock: Clock,
        random: RandomSource,
        timing: Timing,
        preferred: bool,
        appends: AppendBounds,
        window_to: Callable[[str], PeerWindow],
        take_turn: Callable[[str], None],
        entries_max: int,
    ) -> None:
        self.journal = journal
        self.peers = tuple(peer for peer in members if peer != name)
        self._clock = clock
        self._timing = timing
        self._entries_max = entries_max
        self._outbox = Outbox(journal)
        self._stock = Stock(
            name=name,
            peers=self.peers,
            journal=journal,
            applied_index=applied_index,
            clock=clock,
            random=random,
            timing=timing,
        )
        self._campaign = Campaign(
            name=name,
            peers=self.peers,
            stock=self._stock,
            journal=journal,
            outbox=self._outbox,
            clock=clock,
            random=random,
            timing=timing,
            preferred=preferred,
        )
        self._follower = Follower(
            stock=self._stock,
            journal=journal,
            outbox=self._outbox,
            campaign=self._campaign,
            clock=clock,
            timing=timing,
        )
        self._replication = Replication(
            peers=self.peers,
            stock=self._stock,
            journal=journal,
            outbox=self._outbox,
            clock=clock,
            timing=timing,
            appends=appends,
            window_to=window_to,
            take_turn=take_turn,
        )

    # --- what the group around it reads -------------------------------------------------------

    term: int = _of("_stock.term", "Current term.")
    commit_index: int = _of("_stock.commit_index", "Highest index known to be committed.")
    applied_index: int = _of("_stock.applied_index", "Highest index applied.")
    leader: str | None = _of("_stock.leader", "The leader as far as it is known.")
    is_leader: bool = _of("_stock.is_leader", "Whether it believes so; a read confirms it first.")
    leader_contact: float = _of(
        "_campaign.leader_contact", "When the leader was last heard, in monotonic seconds."
    )
    handed_over_term: int = _of(
        "_campaign.handed_over_term", "The newest term known to have begun by a transfer."
    )

    @property
    def no_op_applied(self) -> bool:
        """Whether the entry that opened this leadership is applied (dissertation 6.4, step 1)."""
        no_op = self._stock.no_op_index
        return no_op is not None and self._stock.applied_index >= no_op

    def match_index(self, peer: str) -> int:
        """Leader only: up to where ``peer`` durably agrees."""
        progress = self._replication.progress.get(peer)
        return 0 if progress is None else progress.match

    def is_linked(self, peer: str) -> bool:
        """Whether messages to ``peer`` go out at present."""
        return peer in self._stock.linked

    def follower_contact(self, peer: str) -> float | None:
        """Leader only: when ``peer`` last answered, or this leadership began, monotonic seconds."""
        heard_at = self._replication.progress[peer].heard_at
        return None if heard_at == NEVER else heard_at

    def has_answered(self, peer: str) -> bool:
        """Leader only: whether ``peer`` has answered in this term, so that its log is known."""
        return self._replication.progress[peer].has_answered

    def next_deadline(self) -> float:
        """When this replica must be ticked at the latest, in monotonic seconds."""
        stock = self._stock
        deadline = stock.heartbeat_deadline if stock.is_leader else stock.election_deadline
        return deadline + PAST_DEADLINE_S

    @property
    def has_work(self) -> bool:
        """Whether a tick would do something now, beside what time alone asks for.

        Nearly every entry brings a leader an acknowledgement and a sync that change nothing any
        more, and a follower a sync after which it only has to answer.
        """
        stock = self._stock
        if stock.commit_index > stock.applied_index or stock.role == CANDIDATE:
            return True
        return stock.is_leader and self._replication.committable() > stock.commit_index

    @property
    def awaits_sync(self) -> bool:
        """Whether something here waits for the disk."""
        journal = self.journal
        return self._outbox.is_holding or journal.durable_index < journal.last_index

    # --- steps --------------------------------------------------------------------------------

    def tick(self, *, disk_stalled: bool) -> Ready:
        """Do what is due; the committed entries that are not applied yet are ready then.

        Args:
            disk_stalled: whether this node's disk has not answered for an election time-out: then
                it does not lead any longer (H20).
        """
        stock = self._stock
        if stock.is_leader:
            if disk_stalled:
                self._step_down()
            else:
                self._replication.advance_commit()
        elif self.peers or self._campaign.is_withheld:
            self._campaign.gate()
        elif not self.journal.synced:
            # Nobody else remembers the term that it leads in: the disk first (H8).
            stock.election_deadline = self._clock.monotonic() + self._timing.heartbeat_s
            return self._ready()
        elif stock.role == CANDIDATE:
            stock.lead_alone()
        if not self._nothing_is_due():  # nearly every tick only commits, applies and proposes
            heard_at = {peer: p.heard_at for peer, p in self._replication.progress.items()}
            stock.tick(heard_at)
            self._campaign.pass_on(stock.take_said())
        ready, applied = self._ready(), stock.applied_index
        if applied == stock.commit_index:
            return ready
        last = min(stock.commit_index, applied + self._entries_max)
        return Ready(ready.notices, ready.messages, self.journal.between(applied + 1, last))

    def _nothing_is_due(self) -> bool:
        """Whether time asks for nothing of a leader or follower.

        That is no heartbeat, no election, and no end of a leadership whose followers have been
        silent for too long (H15).
        """
        stock, now = self._stock, self._clock.monotonic()
        if stock.is_leader:
            is_heard = self._replication.is_heard_since(now - self._timing.election_max_s)
            return is_heard and now <= stock.heartbeat_deadline
        return stock.role == FOLLOWER and now <= stock.election_deadline

    def _step_down(self) -> None:
        """Stop leading without an election of our own: another node will notice the silence."""
        stock = self._stock
        stock.follow_nobody()
        wait_s = self._timing.election_max_s + stock.election_timeout_s()
        stock.election_deadline = self._clock.monotonic() + wait_s

    def receive(self, peer: str, message: wire.RaftMessage) -> Ready:
        """Take one message from an authenticated member; others are not listened to (H10, H11)."""
        if peer not in self.peers:
            return self._ready()
        match message:
            case wire.AppendEntries():
                self._follower.on_append(peer, message)
            case wire.AppendResponse():
                self._replication.on_append_response(peer, message)
            case wire.RequestVote():
                self._campaign.on_request_vote(peer, message)
            case wire.VoteResponse():
                self._campaign.on_vote(peer, message)
            case wire.PreVote():
                self._campaign.on_pre_vote(peer, message)
            case wire.PreVoteResponse():
                self._campaign.on_pre_vote_response(peer, message)
            case wire.TimeoutNow():
                self._campaign.on_timeout_now(peer, message)
            case wire.HigherTerm():
                self._stock.learn_term(message.term)
            case _:
                raise TypeError(f"not for a replica: {type(message).__name__}")
        return self._ready()

    def learn_term(self, term: int) -> Ready:
        """Adopt the term of a message that is not for a replica, or take a step towards it."""
        self._stock.learn_term(term)
        return self._ready()

    def propose(self, command: bytes) -> None:
        """Leader only: put a command at the end of the log; :meth:`send_proposed` lets it go."""
        self.journal.add(REGULAR + command, self.journal.last_index + 1, self._stock.term)

    def send_proposed(self) -> Ready:
        """Leader only: send what was proposed at once, not with the next heartbeat."""
        self._replication.send_all()
        return self._ready()

    def send_more(self, peer: str) -> Ready:
        """Go on sending to ``peer``, to whom there is room again."""
        self._replication.go_on(peer)
        return self._ready()

    def wal_synced(self) -> Ready:
        """Let go what waited for the disk, and count our own copies."""
        self.journal.wal_synced()
        if self._outbox.release(self._stock.term):
            self._follower.answered()
        return self._ready()

    def withhold(self, withheld: bool) -> Ready:  # noqa: FBT001 -- a state, not an option
        """Neither lead nor stand for election from now on, or do so again."""
        self._campaign.withhold(withheld)
        return self._ready()

    def _ready(self) -> Ready:
        """End a step."""
        stock, outbox = self._stock, self._outbox
        if stock.changes or stock.appends_due:
            self._follow_stock()
        return outbox.take() if outbox.messages or outbox.notices else NOTHING

    def _follow_stock(self) -> None:
        """Do what follows from what stock left word of."""
        stock, replication = self._stock, self._replication
        for change in stock.take_changes():
            self._outbox.notify(change)
            if change.now == LEADER:
                self._campaign.leads()
                replication.begin()
            elif change.before == LEADER:
                replication.end()
        if stock.appends_due:
            stock.appends_due = False
            if stock.is_leader:
                replication.send_all()

    # --- what has happened around it ----------------------------------------------------------

    def peer_connected(self, peer: str) -> None:
        """Messages to ``peer`` go out from now on."""
        if peer in self.peers:
            self._replication.lose_in_flight(peer)
            self._stock.connect(peer)
            self._stock.heartbeat_deadline = 0.0  # a leader speaks to it at once
            self._campaign.begin_when_connected()

    def peer_disconnected(self, peer: str) -> None:
        """The link to ``peer`` is gone, with whatever was in flight."""
        if peer in self.peers:
            self._replication.lose_in_flight(peer)
            self._stock.disconnect(peer)
            self._campaign.peer_disconnected(peer)

    def applied(self, index: int) -> None:
        """The state machine has applied everything up to ``index``."""
        self._stock.applied_index = index

    def installed(self, index: int, term: int) -> None:
        """Take over a durable snapshot that the state machine has just loaded (H7)."""
        self.journal.restart_at(index, term)
        self._stock.applied_index = index
        self._stock.commit_index = max(self._stock.commit_index, index)

    def ask_to_lead(self, peer: str) -> wire.TimeoutNow | None:
        """Return what asks ``peer`` to take over, None unless it is fully caught up."""
        match = min(self.match_index(peer), self.journal.durable_index)
        return self._stock.ask_to_lead(peer, match)
