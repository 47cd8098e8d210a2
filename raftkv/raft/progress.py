"""How far one follower is, as its leader knows (Raft paper, figure 2: nextIndex, matchIndex). Pure.

The window is what was sent and is not answered yet. Answers come in the order of what they answer,
or not at all, with the link.
"""

from collections import deque

NEVER = float("-inf")

SHARED_INDEX = 1
"""The entry that every log begins with: nobody goes back behind it."""


class Progress:
    """One follower. Indexes are of the leader's log, times in monotonic seconds."""

    __slots__ = (
        "_in_flight",
        "_went_back",
        "has_answered",
        "heard_at",
        "in_flight_bytes",
        "match",
        "next",
    )

    def __init__(self) -> None:
        self.match = 0
        """Up to here it durably agrees, as far as it has said in this term."""
        self.next = 0
        """The entry that it is sent next."""
        self.heard_at = NEVER
        """When it last answered, or this leadership began."""
        self.has_answered = False
        """Whether it has answered this leadership, so that its log is known."""
        self.in_flight_bytes = 0
        """Of entries sent and not answered yet."""
        self._in_flight: deque[tuple[int, int]] = deque()  # (last index, bytes)
        self._went_back = (0, 0.0)  # to which index, and when

    def begin(self, next_index: int, now: float) -> None:
        """Know nothing of it, as a leadership begins; nothing may be in flight."""
        self.match, self.next, self.heard_at = 0, next_index, now
        self.has_answered = False

    def answered(self, now: float) -> None:
        """It answers, whatever it says."""
        self.heard_at, self.has_answered = now, True

    @property
    def has_in_flight(self) -> bool:
        """Whether entries are sent and not answered yet."""
        return bool(self._in_flight)

    def sent(self, last_index: int, size_bytes: int) -> None:
        """Count entries up to ``last_index`` as in flight."""
        self.next = last_index + 1
        self.in_flight_bytes += size_bytes
        self._in_flight.append((last_index, size_bytes))

    def lose_in_flight(self) -> int:
        """Count nothing as in flight: the link is lost, or the log is not what we thought.

        Return the bytes that were.
        """
        lost, self.in_flight_bytes = self.in_flight_bytes, 0
        self._in_flight.clear()
        return lost

    def acknowledged(self, index: int) -> int:
        """It holds everything up to ``index``, durably: never a step back (H2).

        Return the bytes that are no longer in flight.
        """
        if index <= self.match:
            return 0
        self.match = index
        window, answered = self._in_flight, 0
        while window and window[0][0] <= index:
            answered += window.popleft()[1]
        self.in_flight_bytes -= answered
        if self.next <= index:
            self.next = index + 1
        return answered

    def is_old_refusal(self, next_index: int, now: float, lately_s: float) -> bool:
        """Whether a refusal asks for what has been sent again since, a short while ago.

        A follower that stood still finds many heartbeats, and refuses each. To go back for each of
        them would put as many windows on the link.
        """
        back_to, at = self._went_back
        if back_to == next_index and self._in_flight and now - at < lately_s:
            return True
        self._went_back = (next_index, now)
        return False

    def refused(self, next_index: int, refused_index: int, last_index: int) -> int:
        """Go back to where it says that its log ends, or agrees; nothing may be in flight.

        Return up to where it had acknowledged entries that it has lost, 0 if it has lost none.

        It refuses what it had acknowledged in this term: as answers come in order, this is no old
        one. The follower's log was cut, since a disk lost the end of it as if it had never been
        written. Insisting would mean to be refused for ever; what counted until now stays
        committed. One that backs off below what it had acknowledged, because its log differs above
        that, has lost nothing: it is asked there again.

        Args:
            next_index: where it wants to go on.
            refused_index: the entry that its log does not match.
            last_index: where the leader's log ends.
        """
        lost = self.match if max(next_index, refused_index) <= self.match else 0
        if lost:
            self.match = 0
        floor = max(self.match, SHARED_INDEX) + 1
        self.next = max(floor, min(next_index, last_index + 1))
        return lost
