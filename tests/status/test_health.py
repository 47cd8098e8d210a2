"""The verdict on the cluster: one sentence, one word, and how many more nodes may fail."""

from itertools import combinations
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raftkv.status.health import health_of, reachable, shard_health, shards_of


def cluster(
    replicas: list[str], *, silent: str = "", leader: str | None = None, shards: int = 4
) -> dict[str, Any]:
    """Facts of some equal shards on nodes of one letter."""
    names = sorted(set(replicas) | set(silent))
    there: dict[str, object] = {name: {} for name in replicas if name not in silent}
    return {
        "nodes": [{"name": name, "reachable": name not in silent} for name in names],
        "shards": [
            {"shard": n, "leader": leader, "replicas": replicas, "members": there}
            for n in range(shards)
        ],
    }


@pytest.mark.parametrize(
    ("facts", "state", "sentence"),
    [
        (
            cluster(["a", "b", "c"], leader="a"),
            "healthy",
            "All 4 shards have a leader and a quorum; one more node may fail.",
        ),
        (
            cluster(["a"], leader="a", shards=1),
            "healthy",
            "The only shard has a leader and a quorum; no node may fail.",
        ),
        (
            cluster(list("abcdefg"), leader="a"),
            "healthy",
            "All 4 shards have a leader and a quorum; three more nodes may fail.",
        ),
        (
            cluster(["a", "b", "c"], leader="a", silent="c"),
            "degraded",
            (
                "All 4 shards have a leader and a quorum, but c does not answer; "
                "no other node may fail."
            ),
        ),
        (
            cluster(["a", "b", "c"], leader=None),
            "unavailable",
            "All 4 shards have no leader: their keys cannot be read or written.",
        ),
        (
            cluster(["a", "b", "c"], leader="a", silent="bc"),
            "unavailable",
            (
                "All 4 shards have no quorum: their keys cannot be read or written; "
                "b and c do not answer."
            ),
        ),
        (
            cluster(["a", "b", "c"], silent="bc", shards=1),
            "unavailable",
            "Shard 0 has no quorum: its keys cannot be read or written; b and c do not answer.",
        ),
        ({}, "unavailable", "No shard is known here."),
    ],
)
def test_sentence(facts: dict[str, Any], state: str, sentence: str) -> None:
    """The sentence says what works, what does not, and what is left."""
    assert health_of(facts)[:2] == (state, sentence)


def test_shards_that_are_out_are_named() -> None:
    """Quorum and leader are told apart."""
    facts = cluster(["a", "b", "c"], leader="a", shards=4)
    facts["shards"][1]["leader"] = None
    facts["shards"][3]["members"] = {"a": {}}
    assert health_of(facts).sentence == (
        "Shard 3 has no quorum and shard 1 has no leader: their keys cannot be read or written."
    )


@pytest.mark.parametrize(
    ("where", "row", "reason"),
    [
        ("nodes", {"has_space": False}, "The disk of a is full: it leads no writes."),
        ("nodes", {"stopping": True}, "a is stopping."),
        ("shards", {"digests": "differ"}, "The replicas of shard 0 differ"),
        (
            "shards",
            {"members": {"a": {"installing_snapshot": True}, "b": {}, "c": {}}},
            "a is installing a snapshot of shard 0.",
        ),
    ],
)
def test_what_degrades(where: str, row: dict[str, Any], reason: str) -> None:
    """What works but is not as it should be is degraded, with the reason."""
    facts = cluster(["a", "b", "c"], leader="a")
    facts[where][0] |= row
    health = health_of(facts)
    assert health.state == "degraded"
    assert health.reasons[0].startswith(reason)


def test_the_leaders_view_of_its_replicas_counts_if_it_is_less() -> None:
    """A leader that reaches fewer replicas than the node that was asked has less in reserve."""
    facts = cluster(["a", "b", "c"], leader="a")
    facts["shards"][2]["margin"] = 0
    health = health_of(facts)
    assert (health.state, health.more_may_fail) == ("degraded", 0)
    facts["shards"][2]["margin"] = 7
    assert health_of(facts).more_may_fail == 1


def test_what_one_node_alone_knows() -> None:
    """Facts of one node have links instead of answers."""
    row = {"shard": 0, "leader": "a", "replicas": ["a", "b", "c"]}
    assert shard_health(row, ["a", "b"]).margin == 0
    assert reachable({"connected": True})
    assert not reachable({"reachable": False, "connected": True})


@given(st.data())
def test_how_many_more_may_fail_is_exact(data: st.DataObject) -> None:
    """Any so many may fail, and some set of one more takes a quorum: tried one by one."""
    names = [f"n{n}" for n in range(data.draw(st.integers(1, 6)))]
    placements = data.draw(
        st.lists(st.lists(st.sampled_from(names), min_size=1, unique=True), min_size=1, max_size=4)
    )
    down = data.draw(st.sets(st.sampled_from(names)))

    def facts(failed: set[str]) -> dict[str, Any]:
        return {
            "nodes": [{"name": name, "reachable": name not in failed} for name in names],
            "shards": [
                {"shard": n, "leader": replicas[0], "replicas": replicas}
                for n, replicas in enumerate(placements)
            ],
        }

    def serves(failed: set[str]) -> bool:
        return all(len(set(replicas) - failed) > len(replicas) // 2 for replicas in placements)

    more = health_of(facts(down)).more_may_fail
    assert more is not None
    alive = set(names) - down
    if not serves(down):
        assert more == 0
        assert any((s.margin or 0) < 0 for s in shards_of(facts(down)))
        return
    assert all(serves(down | set(failed)) for failed in combinations(alive, more))
    assert not all(serves(down | set(failed)) for failed in combinations(alive, more + 1))


@pytest.mark.parametrize(
    "facts",
    [
        {"shards": None, "nodes": 5},
        {"shards": [None, {}], "nodes": [{}]},
        {"shards": [{"replicas": 3, "members": 4, "margin": "x"}]},
    ],
)
def test_any_facts_are_taken(facts: dict[str, Any]) -> None:
    """Whatever an engine of another version reports, what is not known is not good."""
    assert health_of(facts).state == "unavailable"


def test_a_node_that_hears_nobody_may_be_cut_off() -> None:
    """From there a cluster that is down looks the same, so the verdict says that."""
    nodes = [{"name": name, "reachable": name == "n1"} for name in ("n1", "n2", "n3")]
    said = "n1 hears no other node: either all of them are down or it is cut off"
    assert said in health_of({"node": "n1", "nodes": nodes}).reasons[0]
    nodes[1]["reachable"] = True
    assert not health_of({"node": "n1", "nodes": nodes}).reasons
    assert not health_of({"node": "n1", "nodes": nodes[:1]}).reasons
