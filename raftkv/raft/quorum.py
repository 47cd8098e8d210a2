"""What a majority says, and what may be committed (Raft paper, sections 5.3 and 5.4). Pure."""

from collections.abc import Iterable
from typing import Protocol


class Log(Protocol):
    """What is asked of a leader's log."""

    @property
    def last_index(self) -> int:
        """Where it ends."""

    def term_at(self, index: int) -> int | None:
        """Term of the entry at ``index``, None if there is none."""


def majority(members: int) -> int:
    """How many of ``members`` are a majority: any two of that size share a member."""
    return members // 2 + 1


def committable(last_indexes: Iterable[int], log: Log, term: int, commit_index: int) -> int:
    """Up to where a leader of ``term`` may commit; never less than ``commit_index``.

    Only an entry of the leader's own term says so (Raft paper 5.4.2, figure 8): with it everything
    before it is committed. Without one, what is committed stays.

    ``last_indexes`` say up to where each member holds ``log``, the leader's, durably: itself
    included. Nobody can hold more of it than there is.
    """
    held = sorted(last_indexes, reverse=True)
    index = held[len(held) // 2]  # a majority holds it, and none a higher one
    if index <= commit_index:  # as nearly always
        return commit_index
    index = min(index, log.last_index)
    return index if index > commit_index and log.term_at(index) == term else commit_index
