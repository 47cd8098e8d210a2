"""What the pages make of the facts."""

from typing import get_args, get_type_hints

import pytest

from raftkv.raft.host import Event
from raftkv.web import views

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
