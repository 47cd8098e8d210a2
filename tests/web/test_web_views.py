"""What the pages make of the facts."""

from typing import get_args, get_type_hints

import pytest

from raftkv.raft.host import Event
from raftkv.web import quantities as q
from raftkv.web import views


def event(kind: str, node: str, term: int, **more: object) -> dict[str, object]:
    """An event of shard 0."""
    return {"kind": kind, "node": node, "shard": 0, "term": term, "at_us": 1, "detail": "", **more}


def test_a_hand_over_is_one_line() -> None:
    """Who leads now and by whom it was handed over; what each node said of it adds nothing."""
    told = [
        event("transfer", "n1", 6, detail="to n2"),
        event("candidate", "n2", 7),
        event("leader", "n2", 7),
        event("follower", "n1", 7),
        event("follower", "n3", 7),
    ]
    (shown,) = views.events({"events": told})
    assert (shown.node, shown.text, shown.where) == ("n2", "became leader", "shard 0, term 7")
    assert shown.detail == "handed over by n1"
    election = [event("candidate", "n3", 8), event("leader", "n3", 8), event("follower", "n2", 8)]
    assert [(e.node, e.detail) for e in views.events({"events": election})] == [("n3", "")]


def test_what_led_to_no_leader_stays() -> None:
    """An election that nobody won and a transfer that was given up are news of their own."""
    told = [event("transfer", "n1", 6), event("candidate", "n2", 7), event("follower", "n2", 8)]
    other = {**event("leader", "n2", 7), "shard": 1}
    assert len(views.events({"events": [*told, other]})) == 4


def test_a_moment_has_a_clock_time() -> None:
    """In UTC; the date is told if it is another day, and nonsense is not known."""
    now = 1_790_000_000_000_000
    assert q.clock(now - 60_000_000, now) == "14:12:20"
    assert q.clock(now - 86_400_000_000, now) == "2026-09-20 14:13:20"
    assert q.clock(10**30, now) == q.clock(None, now) == q.UNKNOWN


def test_the_default_target_of_a_transfer_can_lead() -> None:
    """Not who leads already, who is silent or who is behind; the preferred node if it can."""
    names = ("n1", "n2", "n3", "n4")
    roles = {"n1": {"role": "leader"}, "n3": {"applied_index": 9}, "n4": {"applied_index": 9}}
    row = {"leader": "n1", "replicas": names, "members": roles, "commit_index": 9}
    facts = {"nodes": [{"name": name, "reachable": name != "n2"} for name in names]}
    for preferred, order in (("n1", "n3 n4 n2"), ("n2", "n3 n4 n2"), ("n4", "n4 n3 n2")):
        asked = {**row, "preferred_leader": preferred}
        targets = views.transfer_targets(asked, views.members(asked, facts))
        assert [target.name for target in targets] == order.split()


KINDS = get_args(get_type_hints(Event)["kind"])


@pytest.mark.parametrize("kind", KINDS)
def test_every_event_of_a_group_has_a_sign_and_words_of_its_own(kind: str) -> None:
    """What is not known is shown plainly, which damage must never be."""
    event = {"kind": kind, "at_us": 1, "shard": 0, "term": 2, "detail": "", "node": "n1"}
    (shown,) = views.events({"as_of_us": 2, "events": [event]})
    assert shown.sign != "·"
    alarming = kind in {"digest_mismatch", "entries_lost", "snapshot_failed"}
    assert (shown.kind == "bad") is alarming


def test_one_leader_is_shown() -> None:
    """A deposed one may still believe that it leads; the row says who does."""
    member = {"role": "leader"}
    row = {"replicas": ["n1", "n2"], "leader": "n2", "members": {"n1": member, "n2": member}}
    alive = {"n1", "n2"}
    assert [views.replica_cell(row, name, alive).kind for name in ("n1", "n2")] == [
        "good",
        "leader",
    ]
    assert [line.lag_entries for line in views.members(row, {"nodes": []})] == [None, 0]


@pytest.mark.parametrize(
    ("told", "said"),
    [
        (None, ""),
        ({"node": "n2", "until_us": None}, "pinned to n2 by an operator until that node stops"),
        (
            {"node": "n2", "until_us": 1_800_000_000_000_000},
            "pinned to n2 by an operator until 2027-01-15 08:00:00 UTC",
        ),
        ({"node": "n2", "until_us": 2**62}, "pinned to n2 by an operator until –"),  # noqa: RUF001
    ],
)
def test_what_an_operator_has_pinned_is_said_with_its_end(told: object, said: str) -> None:
    """In one sentence for status, explain and pages, whatever a node tells."""
    assert views.pinned({"pinned": told}) == said
