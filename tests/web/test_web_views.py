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
