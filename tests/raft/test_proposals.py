"""Who is answered what when an entry is applied: the results are the proposer's own or nobody's."""

from collections.abc import Sequence
from typing import Any

import pytest
import scenarios
from group_world import make_group_world

from raftkv.core.operations import Command, Put, PutResult, WriteResult
from raftkv.raft.proposals import GroupFailure, Limits, Proposal, ProposalQueue

RESULTS = (PutResult(7, 1),)


class Waiter:
    """A caller and the answer that it got."""

    def __init__(self) -> None:
        self.answer: Sequence[WriteResult] | GroupFailure | None = None

    def take(self, answer: Sequence[WriteResult] | GroupFailure) -> None:
        """Take the answer."""
        self.answer = answer


def offered(queue: ProposalQueue, waiter: Waiter, now: float = 0.0) -> GroupFailure | None:
    """Offer one write at a time."""
    return queue.offer(Proposal((Command(Put(b"k", b"v")),), waiter.take, now))


def proposed(queue: ProposalQueue, index: int, term: int) -> Waiter:
    """Propose one write as the entry (``index``, ``term``)."""
    waiter = Waiter()
    assert offered(queue, waiter) is None
    queue.take(index, term)
    return waiter


def apply(queue: ProposalQueue, index: int, term: int) -> None:
    """Apply the entry (``index``, ``term``) and hand out the answers."""
    for done, answer in queue.applied(index, term, RESULTS):
        done(answer)


def test_the_own_entry_is_answered_with_its_results() -> None:
    """Index and term are those under which it was proposed."""
    queue = ProposalQueue(Limits())
    waiter = proposed(queue, 5, 3)
    apply(queue, 5, 3)
    assert waiter.answer == RESULTS
    assert (queue.operations, queue.bytes) == (0, 0)


@pytest.mark.parametrize("term", [2, 4])
def test_another_entry_at_its_index_is_not_taken_for_it(term: int) -> None:
    """Neither of a newer term nor of an older one, which a later leader may yet commit there.

    The older one: ``b`` led term 2 and kept an entry to itself, ``a`` led term 3 and did so too,
    and ``b``, elected again, committed its entry of term 2 under a no-op of term 4.
    """
    queue = ProposalQueue(Limits())
    waiter = proposed(queue, 5, 3)
    apply(queue, 5, term)
    assert isinstance(waiter.answer, GroupFailure)
    assert (waiter.answer.reason, waiter.answer.definite) == ("discarded", True)
    assert (queue.operations, queue.bytes) == (0, 0)


def test_only_a_newer_term_speaks_for_later_indexes() -> None:
    """After an entry of an older term ours may still follow; after a newer one it cannot."""
    queue = ProposalQueue(Limits())
    waiter = proposed(queue, 6, 3)
    apply(queue, 5, 2)
    assert waiter.answer is None
    apply(queue, 5, 4)
    assert isinstance(waiter.answer, GroupFailure)


def test_a_queue_that_does_not_move_takes_no_more() -> None:
    """Once the oldest has waited too long, new ones are refused at once, definite."""
    queue = ProposalQueue(Limits(waiting_s_max=1.0))
    assert offered(queue, Waiter(), now=10.0) is None
    assert offered(queue, Waiter(), now=11.0) is None
    refused = offered(queue, Waiter(), now=11.1)
    assert refused is not None
    assert (refused.reason, refused.definite, queue.operations) == ("busy", True, 2)


def test_a_queue_that_moves_takes_more() -> None:
    """Only what still waits for the log counts: what is in it may take its time."""
    queue = ProposalQueue(Limits(waiting_s_max=1.0))
    assert offered(queue, Waiter(), now=10.0) is None
    queue.take(1, 1)
    assert offered(queue, Waiter(), now=99.0) is None


def test_entries_at_one_index_in_two_terms_are_both_answered() -> None:
    """A leader that leads again may propose where an older entry of its own still is undecided."""
    queue = ProposalQueue(Limits())
    older = proposed(queue, 6, 1)
    newer = proposed(queue, 6, 3)
    apply(queue, 6, 3)
    assert newer.answer == RESULTS
    assert isinstance(older.answer, GroupFailure)
    assert (queue.operations, queue.bytes) == (0, 0)


def test_no_room_on_a_majority_is_no_room() -> None:
    """A write that could not be committed is refused for certain, before the log has it."""
    world = scenarios.led_by_a(make_group_world)
    node, before = world.nodes["a"], world.nodes["a"].group.last_index
    for full, refused in (("bc", True), ("b", False), ("", False)):
        node.full_peers = frozenset(full)
        outcomes: list[Any] = []
        node.group.propose((Command(Put(b"k", full.encode())),), outcomes.append)
        world.run(0.5)
        (outcome,) = outcomes
        if refused:
            assert (outcome.reason, outcome.definite) == ("disk_full", True)
            assert outcome.detail == "the disks of b, c are full"
            assert node.group.last_index == before
        else:
            assert not isinstance(outcome, GroupFailure)


def test_what_waits_when_a_majority_has_no_room_any_more_is_refused() -> None:
    """It had not reached the log."""
    world = scenarios.led_by_a(make_group_world)
    node = world.nodes["a"]
    outcomes: list[Any] = []
    node.group.propose((Command(Put(b"k", b"v")),), outcomes.append)
    node.full_peers = frozenset("bc")
    world.run(0.5)
    assert [outcome.reason for outcome in outcomes] == ["disk_full"]
