"""What a node remembers of its recent past: bounded, and the newest."""

from raftkv.engine.recent import EVENTS_KEPT, CommitTrail, Leaderships, RecentEvents
from raftkv.sim.clock import SimClock
from raftkv.status.facts import Leadership


def test_leaderships() -> None:
    """The latest leaders are kept; losing the last one ends its time and is no change of leader."""
    history = Leaderships()
    for term in range(1, 31):
        history.note(term, f"n{term}", term * 10)
    assert (history.since_us, history.changes) == (300, 30)
    assert [row.term for row in history.facts()] == list(range(11, 31))
    history.note(31, None, 310)
    assert (history.since_us, history.changes) == (None, 30)
    assert history.facts()[-1] == Leadership(31, None, 310)


def test_one_kind_of_trouble_does_not_drive_out_the_others() -> None:
    """What repeats is noted again only after a while; others are noted beside it."""
    clock = SimClock()
    events = RecentEvents(clock)
    assert events.add_at_most_every(10, "slow_disk", "first")
    assert not events.add_at_most_every(10, "slow_disk", "second")
    assert events.add_at_most_every(10, "refused", "1 busy")
    clock.advance(10)
    assert events.add_at_most_every(10, "slow_disk", "third")
    assert [event.detail for event in events.facts(9, "n1")] == ["first", "1 busy", "third"]
    for _ in range(EVENTS_KEPT + 1):
        events.add("link_up")
    assert len(events.facts(1000, "n1")) == EVENTS_KEPT


def test_lag_in_seconds() -> None:
    """A follower lags by the age of the first committed entry that it lacks."""
    trail = CommitTrail()
    for second, index in enumerate((10, 20, 20, 30)):
        trail.note(float(second), index)
    assert trail.lag_s(5.0, 30, 30) == 0
    assert trail.lag_s(5.0, 25, 30) == 2.0
    assert trail.lag_s(5.0, 10, 30) == 4.0
    assert trail.lag_s(5.0, 0, 30) == 5.0
    assert trail.lag_s(5.0, 30, 31) == 0  # committed since the last sample
