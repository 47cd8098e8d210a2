"""Leadership transfer: the leader chooses who follows it (Raft dissertation, section 3.10).

Nothing is proposed until the target has the whole log; then it is asked to stand for election at
once. Writes wait meanwhile, they do not fail. A target that does not take over within an election
time-out, or whose link is lost, costs a pause only: the leader goes on with what waited.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from raftkv.raft.clock import Clock
from raftkv.raft.host import Event, GroupConfig, Host
from raftkv.raft.proposals import GroupFailure
from raftkv.raft.replica import Replica

TransferDone = Callable[[GroupFailure | None], None]
"""Called once: with None when this replica no longer leads, otherwise with why it still does."""


@dataclass(slots=True)
class _Transfer:
    """One that is under way; ``deadline`` is in monotonic seconds."""

    target: str
    deadline: float
    done: TransferDone
    asked: bool = False


class LeadershipTransfer:
    """The transfer of one replica's leadership; at most one is under way."""

    def __init__(self, config: GroupConfig, *, replica: Replica, host: Host, clock: Clock) -> None:
        self._config = config
        self._replica = replica
        self._host = host
        self._clock = clock
        self._transfer: _Transfer | None = None

    @property
    def is_under_way(self) -> bool:
        """Whether writes have to wait."""
        return self._transfer is not None

    def begin(self, target: str, done: TransferDone) -> None:
        """Hand the leadership to ``target``, or call ``done`` at once with why not."""
        why = self._why_not(target)
        if why is not None:
            done(GroupFailure("refused" if self._replica.is_leader else "not_leader", why))
            return
        deadline = self._clock.monotonic() + self._config.timing.election_min_s
        self._transfer = _Transfer(target, deadline, done)
        self._host.wake(self._config.id)

    def _why_not(self, target: str) -> str | None:
        replica = self._replica
        if not replica.is_leader:
            return "this replica does not lead"
        if target == self._config.node:
            return f"{target} leads already"
        if target not in replica.peers:
            return f"{target} holds no replica of shard {self._config.id.shard}"
        if self._transfer is not None:
            return "a transfer is under way"
        lag = replica.journal.last_index - replica.match_index(target)
        if lag > self._config.limits.entries_in_flight_max:
            return f"{target} lags by {lag} entries"
        return None if replica.is_linked(target) else f"there is no link to {target}"

    def tick(self) -> Sequence[tuple[TransferDone, GroupFailure | None]]:
        """Ask the target to stand once it has everything; return the answer if it is over."""
        transfer = self._transfer
        if transfer is None:
            return ()
        if not self._replica.is_leader:
            self._transfer = None
            return ((transfer.done, None),)
        why = None
        if not self._replica.is_linked(transfer.target):
            why = f"the link to {transfer.target} is lost"
        elif self._clock.monotonic() >= transfer.deadline:
            why = f"{transfer.target} did not take over in time"
        if why is not None:
            self._transfer = None
            self._host.wake(self._config.id)  # what waited goes on here
            return ((transfer.done, GroupFailure("refused", why)),)
        if transfer.asked:
            return ()
        request = self._replica.ask_to_lead(transfer.target)
        if request is not None:
            self._host.send(self._config.id, transfer.target, request)
            transfer.asked = True
            detail = f"to {transfer.target}"
            self._host.event(Event("transfer", self._config.id, self._replica.term, detail))
        return ()

    def next_deadline(self) -> float:
        """When the transfer is given up, in monotonic seconds; infinity if none is under way."""
        return float("inf") if self._transfer is None else self._transfer.deadline
