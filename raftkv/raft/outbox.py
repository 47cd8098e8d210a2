"""What a replica says: to its peers, at once or once the disk has it, and to its host."""

from collections import deque

from raftkv.raft.journal import GroupJournal
from raftkv.raft.messages import AppendResponse, RaftMessage
from raftkv.raft.ready import Notice, Ready


class Outbox:
    """Gathers what a step says; its host takes it at the end of the step."""

    def __init__(self, journal: GroupJournal) -> None:
        self._journal = journal
        self.messages: list[tuple[str, RaftMessage]] = []
        """(peer, message) of this step."""
        self.notices: list[Notice] = []
        """What happened in it."""
        self._held: deque[tuple[int, int, str, RaftMessage]] = deque()  # (lsn, term, to, what)

    def send(self, peer: str, message: RaftMessage) -> None:
        """Send with this step."""
        self.messages.append((peer, message))

    def notify(self, notice: Notice) -> None:
        """Tell the host."""
        self.notices.append(notice)

    def hold(self, peer: str, message: RaftMessage, term: int) -> None:
        """Send once everything recorded so far is durable (H8), if we are in ``term`` still.

        By then ``peer`` may have started anew, and be on another link. What is held is true all the
        same: a term has one leader and one vote of ours, and neither a leader nor a candidate of it
        is one again in that term in its next life. So a vote or acknowledgement counts for nobody
        but whom it was meant for.
        """
        if self._journal.synced:
            self.send(peer, message)
        else:
            self._held.append((self._journal.lsn, term, peer, message))

    @property
    def is_holding(self) -> bool:
        """Whether something waits for the disk."""
        return bool(self._held)

    def release(self, term: int) -> bool:
        """Send what the disk has now; whether anything was."""
        durable, held, sent = self._journal.durable_lsn, self._held, False
        while held and held[0][0] <= durable:
            _, of_term, peer, message = held.popleft()
            if of_term != term:
                continue  # an acknowledgement of an older term proves nothing now (H2)
            if held and held[0][0] <= durable and _supersedes(held[0][3], message):
                continue
            self.send(peer, message)
            sent = True
        return sent

    def take(self) -> Ready:
        """Take out what was said since."""
        ready = Ready(self.notices, self.messages)
        self.notices, self.messages = [], []
        return ready


def _supersedes(later: RaftMessage, earlier: RaftMessage) -> bool:
    """Whether ``later``, sent to the same leader, says all that ``earlier`` says."""
    return isinstance(later, AppendResponse) and isinstance(earlier, AppendResponse)
