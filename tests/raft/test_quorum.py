"""What a majority says, for every small group there is."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raftkv.raft.quorum import committable, majority

LAST_INDEXES = st.lists(st.integers(min_value=0, max_value=30), min_size=1, max_size=7)
LOG = st.lists(st.integers(min_value=1, max_value=4), min_size=1, max_size=30).map(sorted)
"""Terms of the entries 1, 2 and so on: they never go back along a log."""


class TermsOf:
    """A log of which only the terms matter."""

    def __init__(self, terms: list[int]) -> None:
        self._terms = terms
        self.last_index = len(terms)

    def term_at(self, index: int) -> int | None:
        """Term of an entry; the first has index 1."""
        return self._terms[index - 1] if 0 < index <= self.last_index else None


@pytest.mark.parametrize("members", range(1, 8))
def test_any_two_majorities_share_a_member(members: int) -> None:
    """And one member less would not do: then there are two without a common member."""
    size = majority(members)
    everyone = range(members)
    for one, other in itertools.product(itertools.combinations(everyone, size), repeat=2):
        assert set(one) & set(other)
    assert 2 * (size - 1) <= members


@given(LAST_INDEXES, LOG, st.integers(min_value=0, max_value=30), st.integers(0, 1))
def test_committed_is_what_a_majority_holds_of_this_term(
    indexes: list[int], log: list[int], committed: int, elections: int
) -> None:
    """Raft paper, figure 2: the highest N that a majority holds with log[N].term == currentTerm."""
    commit_index = min(committed, len(log))
    term = log[-1] + elections
    allowed = [
        index
        for index in range(commit_index + 1, len(log) + 1)
        if sum(last >= index for last in indexes) >= majority(len(indexes))
        and log[index - 1] == term
    ]
    found = committable(
        indexes,
        TermsOf(log),
        term,
        commit_index,
    )
    assert found == max(allowed, default=commit_index)


def test_an_entry_of_an_older_term_is_not_committed_by_counting() -> None:
    """Figure 8 of the paper: S1 leads in term 4, and a majority holds its entry of term 2."""
    log = TermsOf([1, 2, 4])
    assert committable([3, 2, 2, 1, 1], log, term=4, commit_index=1) == 1
    assert committable([3, 3, 3, 1, 1], log, term=4, commit_index=1) == 3


def test_nobody_holds_more_than_the_leader_has() -> None:
    """An acknowledgement from beyond the leader's log commits nothing that is not in it."""
    assert committable([9, 9, 2], TermsOf([1, 1]), term=1, commit_index=1) == 2
