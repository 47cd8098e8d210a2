"""What several nodes tell, put together: one view of every node and every shard."""

from collections.abc import Mapping, Sequence

import msgspec

from raftkv.core.cluster_map import GroupPlacement
from raftkv.status.facts import (
    Digests,
    Event,
    Leadership,
    LinkFacts,
    Member,
    MemberFacts,
    NodeFacts,
    NodeSummary,
    ReplicaFacts,
    ShardFacts,
    node_summary,
    shard_facts,
)
from raftkv.status.health import quorum_margin

EVENTS_SHOWN = 100
LEADERSHIPS_SHOWN = 20

Answers = Mapping[str, NodeFacts]
"""What each node said, by its name."""

Views = Mapping[str, ReplicaFacts]
"""What each replica of a shard said, by its node's name."""


def nodes_of(links: Sequence[LinkFacts], answers: Answers) -> tuple[NodeSummary, ...]:
    """Return every node that there is a link to, in this order."""
    return tuple(
        node_summary(link, answers.get(link.name), reachable=link.name in answers) for link in links
    )


def events_of(answers: Answers) -> tuple[Event, ...]:
    """Return what happened lately on all nodes, newest last, by each node's own clock."""
    events = [
        msgspec.structs.replace(event, node=name)
        for name, facts in answers.items()
        for event in facts.events
    ]
    events.sort(key=lambda event: (event.at_us, event.node or ""))
    return tuple(events[-EVENTS_SHOWN:])


def shards_of(groups: Sequence[GroupPlacement], answers: Answers) -> tuple[ShardFacts, ...]:
    """Return every shard: its leader's view if it answered, and what each replica says."""
    views: dict[tuple[int, int | None], dict[str, ReplicaFacts]] = {}
    for name, facts in answers.items():  # gathered once, as there may be many shards
        for row in facts.shards:
            views.setdefault((row.shard, row.generation), {})[name] = row
    return tuple(
        _shard(placement, views.get((placement.shard, placement.generation), {}), answers)
        for placement in groups
    )


def _shard(placement: GroupPlacement, views: Views, answers: Answers) -> ShardFacts:
    leading = [name for name, view in views.items() if view.role == "leader"]
    seen_by = max(
        leading or views,
        key=lambda name: (views[name].term or 0, views[name].applied_index or 0),
        default=None,
    )
    if seen_by is None:
        row = ShardFacts(shard=placement.shard, generation=placement.generation)
    else:
        row = msgspec.structs.replace(
            shard_facts(views[seen_by]),
            as_of_us=answers[seen_by].as_of_us,
            leaders=_leaders(views, seen_by),
        )
        if not leading:
            row = _without_leader(row, views)
    margin = _margin(placement, views, row if leading else None)
    return msgspec.structs.replace(
        row,
        replicas=placement.replicas,
        seen_by=seen_by,
        margin=margin,
        quorum=None if margin is None else margin >= 0,
        digests=_digests(views),
        members={
            name: _member(view, row.commit_index or 0, answers[name].as_of_us)
            for name, view in views.items()
        },
    )


def _member(view: ReplicaFacts, commit_index: int, as_of_us: int | None) -> Member:
    own = {name: getattr(view, name) for name in MemberFacts.__struct_fields__}
    lag = None if view.applied_index is None else max(0, commit_index - view.applied_index)
    return Member(**own, lag_entries=lag, as_of_us=as_of_us)


def _without_leader(row: ShardFacts, views: Views) -> ShardFacts:
    """Say who leads if no node that answers says so of itself.

    It is whom others have heard lately, unless that node answers, and knows better. Otherwise there
    has been no leader since the last of those that answer heard one.
    """
    if row.leader is not None and row.leader not in views:
        return row
    since = [view.no_leader_since_us for view in views.values()]
    known = [moment for moment in since if moment is not None]
    return msgspec.structs.replace(
        row, leader=None, leader_since_us=None, no_leader_since_us=max(known, default=None)
    )


def _leaders(views: Views, seen_by: str) -> tuple[Leadership, ...]:
    """Return the latest leaders, newest last: as one replica saw them, and what it missed.

    It missed the leaders of terms in which it was down or cut off. A term has one leader, which may
    be lost and heard again in it: what one replica saw stays in the order in which it saw it.
    """
    told = list(views[seen_by].leaders)
    terms = {entry.term for entry in told if entry.leader is not None}
    for view in views.values():
        for entry in view.leaders:
            if entry.leader is not None and entry.term not in terms:
                terms.add(entry.term)
                moment = entry.term, entry.at_us
                later = (i for i, own in enumerate(told) if (own.term, own.at_us) > moment)
                told.insert(next(later, len(told)), entry)
    return tuple(told[-LEADERSHIPS_SHOWN:])


def _margin(placement: GroupPlacement, views: Views, leader: ShardFacts | None) -> int | None:
    """How many more replicas may fail; -1: there is no quorum; None: nobody who holds it answered.

    A leader's word counts, since it needs them in touch with itself; without one it is how many
    replicas answer here.
    """
    if not views:
        return None
    there = len(views) if leader is None else replicas_in_touch(leader)
    return quorum_margin(len(placement.replicas), there)


def replicas_in_touch(leader: ReplicaFacts) -> int:
    """How many replicas a leader is in touch with, itself among them."""
    return 1 + sum(follower.in_touch is True for follower in leader.followers.values())


def _digests(views: Views) -> Digests:
    """Whether the replicas hold the same, as far as they can be compared.

    Compared are replicas that stand at the same entry, here, and what followers found when their
    leader told them its digest, which it does every second. While entries come in, the nodes
    answer at different ones, and only the latter says anything.
    """
    if any(view.digest_mismatch for view in views.values()):
        return "differ"
    at_index: dict[int | None, set[str | None]] = {}
    for view in views.values():
        at_index.setdefault(view.applied_index, set()).add(view.digest)
    if any(len(digests) > 1 for digests in at_index.values()):
        return "differ"
    followers = [view for view in views.values() if view.role != "leader"]
    compared = len(views) > 1 and (
        len(at_index) == 1 or all(view.digest_agreed_index for view in followers)
    )
    return "agree" if compared else "not comparable now"
