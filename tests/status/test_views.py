"""What the pages make of the facts."""

from typing import get_args, get_type_hints

import pytest

from raftkv.raft.host import Event
from raftkv.status import quantities as q
from raftkv.status import views
from raftkv.status.facts import Event as RecentEvent
from raftkv.status.facts import Member, PinFacts, ShardFacts


def event(kind: str, node: str, term: int, *, shard: int = 0, detail: str = "") -> RecentEvent:
    """An event of a shard."""
    return RecentEvent(at_us=1, kind=kind, shard=shard, term=term, detail=detail, node=node)


def test_a_hand_over_is_one_line() -> None:
    """Who leads now and by whom it was handed over; what each node said of it adds nothing."""
    told = [
        event("transfer", "n1", 6, detail="to n2"),
        event("candidate", "n2", 7),
        event("leader", "n2", 7),
        event("follower", "n1", 7),
        event("follower", "n3", 7),
    ]
    (shown,) = views.events(told)
    assert (shown.node, shown.text, shown.where) == ("n2", "became leader", "shard 0, term 7")
    assert shown.detail == "handed over by n1"
    election = [event("candidate", "n3", 8), event("leader", "n3", 8), event("follower", "n2", 8)]
    assert [(e.node, e.detail) for e in views.events(election)] == [("n3", "")]


def test_what_led_to_no_leader_stays() -> None:
    """An election that nobody won and a transfer that was given up are news of their own."""
    told = [event("transfer", "n1", 6), event("candidate", "n2", 7), event("follower", "n2", 8)]
    other = event("leader", "n2", 7, shard=1)
    assert len(views.events([*told, other])) == 4


def test_a_moment_has_a_clock_time() -> None:
    """In UTC; the date is told if it is another day, and nonsense is not known."""
    now = 1_790_000_000_000_000
    assert q.clock(now - 60_000_000, now) == "14:12:20"
    assert q.clock(now - 86_400_000_000, now) == "2026-09-20 14:13:20"
    assert q.clock(10**30, now) == q.clock(None, now) == q.UNKNOWN


def test_the_default_target_of_a_transfer_can_lead() -> None:
    """Not who leads already, who is silent or who is behind; the preferred node if it can."""
    names = ("n1", "n2", "n3", "n4")
    up_to_date = Member(applied_index=9)
    members = {"n1": Member(role="leader"), "n3": up_to_date, "n4": up_to_date}
    for preferred, order in (("n1", "n3 n4 n2"), ("n2", "n3 n4 n2"), ("n4", "n4 n3 n2")):
        row = ShardFacts(
            shard=0,
            leader="n1",
            replicas=names,
            members=members,
            commit_index=9,
            preferred_leader=preferred,
        )
        targets = views.transfer_targets(row, views.members(row, set(members)))
        assert [target.name for target in targets] == order.split()


KINDS = get_args(get_type_hints(Event)["kind"])


@pytest.mark.parametrize("kind", KINDS)
def test_every_event_of_a_group_has_a_sign_and_words_of_its_own(kind: str) -> None:
    """What is not known is shown plainly, which damage must never be."""
    (shown,) = views.events([event(kind, "n1", 2)])
    assert shown.sign != "·"
    alarming = kind in {"digest_mismatch", "entries_lost", "snapshot_failed"}
    assert (shown.kind == "bad") is alarming


def test_one_leader_is_shown() -> None:
    """A deposed one may still believe that it leads; the row says who does."""
    member = Member(role="leader")
    alive = {"n1", "n2"}
    row = ShardFacts(
        shard=0, replicas=("n1", "n2"), leader="n2", members=dict.fromkeys(alive, member)
    )
    assert [views.replica_cell(row, name, alive).kind for name in ("n1", "n2")] == [
        "good",
        "leader",
    ]
    assert [line.lag_entries for line in views.members(row, set())] == [None, 0]


@pytest.mark.parametrize(
    ("told", "said"),
    [
        (None, ""),
        (PinFacts("n2"), "pinned to n2 by an operator until that node stops"),
        (
            PinFacts("n2", 1_800_000_000_000_000),
            "pinned to n2 by an operator until 2027-01-15 08:00:00 UTC",
        ),
        (PinFacts("n2", 2**62), "pinned to n2 by an operator until –"),  # noqa: RUF001
    ],
)
def test_what_an_operator_has_pinned_is_said_with_its_end(told: PinFacts | None, said: str) -> None:
    """In one sentence for status, explain and pages, whatever a node tells."""
    assert views.pinned(ShardFacts(shard=0, pinned=told)) == said
