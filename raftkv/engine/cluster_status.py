"""What all nodes together tell operators: each is asked, and whoever does not answer is named."""

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import msgspec

from raftkv.core.cluster_map import ClusterMap, GroupPlacement
from raftkv.engine.peer_facts import check_facts
from raftkv.engine.peer_wire import CHANNEL_STATUS, Links
from raftkv.engine.recent import LEADERSHIPS_KEPT
from raftkv.engine.status import EVENTS_SHOWN, LocalStatus
from raftkv.raft.clock import Clock
from raftkv.rpc.framing import DECODE_ERRORS
from raftkv.rpc.messages import Facts, Failure
from raftkv.rpc.sizes import SMALL_BYTES

ASK_TIMEOUT_S = 0.7
"""Pages must show within a second what the nodes that answer know."""

QUESTIONS_MAX = 4
"""So many questions are under way at once; who asks beyond that shares the answer to the newest.

The facts of a node with many shards are megabytes, which every question fetches from every node.
"""

_NODE_FACTS = (
    *("version", "pid", "uptime_s", "has_space", "rss_bytes", "cpu_s", "fdatasync_ms", "as_of_us"),
    *("stopping", "disagrees", "cpu_share", "disk"),
)
_MEMBER_FACTS = (
    *("role", "term", "applied_index", "commit_index", "digest", "keys", "last_index"),
    *("log_bytes", "snapshot", "leader_contact_age_s", "digest_agreed_index", "load", "waiting"),
    "installing_snapshot",
)

_LEADER_FACTS = ("leader", "leader_since_us", "no_leader_since_us", "term")

_Rows = dict[str, dict[str, Any]]

Answered = Callable[[Facts | Failure], None]

_logger = logging.getLogger(__name__)


class ClusterStatus:
    """Asks every node for its facts and makes one answer of them.

    Questions are numbered from 1 in every life: they are answered at once, so that an answer is
    lost with the link of its question, and never reaches another life.
    """

    def __init__(
        self,
        *,
        node: str,
        cluster_map: ClusterMap,
        local: LocalStatus,
        links: Links,
        clock: Clock,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._node = node
        self._map = cluster_map
        self._local = local
        self._links = links
        self._clock = clock
        self._loop = loop
        self._number = 0
        self._questions: dict[int, _Question] = {}

    def ask(self, done: Answered) -> None:
        """Ask every connected node; answer when all have, or in time with those that have."""
        self._ask(_Reader(lambda cluster: cluster, done))

    def explain(self, key: bytes, done: Answered) -> None:
        """Tell where ``key`` lives and why, and how all nodes see its shard."""
        self._ask(_Reader(lambda cluster: self._explained(key, cluster), done))

    def _explained(self, key: bytes, cluster: dict[str, Any]) -> dict[str, Any]:
        facts = self._local.explain(key)
        state = next(row for row in cluster["shards"] if row["shard"] == facts["shard"])
        # Who leads is what all nodes say together, as on every other page.
        known = {name: state.get(name) for name in _LEADER_FACTS}
        asked = {"state": state, "not_answering": cluster["not_answering"]}
        return {**facts, **known, **asked}

    def _ask(self, reader: "_Reader") -> None:
        if len(self._questions) >= QUESTIONS_MAX:
            next(reversed(self._questions.values())).readers.append(reader)
            return
        self._number += 1
        number = self._number
        question = _Question(self._links.connected, lambda: self._answer(number))
        question.readers.append(reader)
        self._questions[number] = question
        for peer in sorted(question.missing):
            self._links.send(peer, CHANNEL_STATUS, msgspec.msgpack.encode((number, None)))
        if question.missing:
            question.timer = self._loop.call_later(ASK_TIMEOUT_S, question.finish)
        else:
            question.finish()

    def on_message(self, peer: str, payload: bytes) -> None:
        """Take a question of another node, or its answer to ours.

        What does not fit is no reason to do without its link: it counts as no answer.
        """
        try:
            number, facts = msgspec.msgpack.decode(payload, type=tuple[int, Any])
        except DECODE_ERRORS as error:
            _logger.warning("the status message of %s cannot be read: %s", peer, error)
            return
        if facts is None:
            self._tell(peer, number)
            return
        question = self._questions.get(number)
        if question is None:
            return
        try:
            check_facts(facts)
        except DECODE_ERRORS as error:
            _logger.warning("what %s says of itself does not fit: %s", peer, error)
            question.done_with(peer)
        else:
            question.take(peer, facts)

    def _tell(self, peer: str, number: int) -> None:
        try:
            answer = msgspec.msgpack.encode((number, self._local.facts()))
        except Exception:
            _logger.exception("the facts that %s asks for cannot be told", peer)
        else:
            self._links.send(peer, CHANNEL_STATUS, answer, bulk=len(answer) > SMALL_BYTES)

    def _answer(self, number: int) -> None:
        """Answer; a bug met on the way is the readers', and no reason to stop the node."""
        question = self._questions.pop(number)
        cluster: dict[str, Any] | None = None
        try:
            cluster = self._merged({self._node: self._local.facts(), **question.answers})
        except Exception:
            _logger.exception("what the nodes say cannot be put together")
        for reader in question.readers:
            reader.done(_told(reader, cluster))

    # --- putting the answers together ---------------------------------------------------------

    def _merged(self, answers: _Rows) -> dict[str, Any]:
        links = {link["name"]: link for link in answers[self._node]["nodes"]}
        views = _views(answers)  # gathered once, as there may be many shards
        return {
            "node": self._node,
            "cluster": self._map.cluster_id,
            "map_epoch": self._map.epoch,
            "as_of_us": self._clock.time_us(),
            "not_answering": [name for name in self._map.nodes if name not in answers],
            "ring": msgspec.structs.asdict(self._map.ring),
            "nodes": [_node(links[name], answers.get(name)) for name in self._map.nodes],
            "shards": [
                _shard(placement, views.get(placement.id, {}), answers)
                for placement in self._map.groups
            ],
            "events": _events(answers),
        }


def _told(reader: "_Reader", cluster: dict[str, Any] | None) -> Facts | Failure:
    bug = Failure("internal", "a bug in the engine; its log has the trace")
    if cluster is None:
        return bug
    try:
        return Facts(reader.make(cluster))
    except Exception:
        _logger.exception("a question about the cluster cannot be answered")
        return bug


def _node(link: Mapping[str, Any], facts: Mapping[str, Any] | None) -> dict[str, Any]:
    """One node: our link to it, and what it says of itself if it answered."""
    row = {
        "name": link["name"],
        "reachable": facts is not None,
        "refused": link["refused"],
        "round_trip_ms": link["round_trip_ms"],
        "link_since_us": link["since_us"],
    }
    if facts is None:
        return row
    metrics = facts.get("metrics", {})
    http = facts.get("http") or {}
    return row | {
        **{name: facts.get(name) for name in _NODE_FACTS},
        "led": [shard["shard"] for shard in facts["shards"] if shard["role"] == "leader"],
        "http": {name: http.get(name) for name in ("as_of_us", "workers", "seconds")},
        "links": facts["nodes"],
        "waiting_operations": metrics.get("waiting_operations"),
        "wal_bytes": metrics.get("wal_bytes"),
    }


def _events(answers: _Rows) -> list[dict[str, Any]]:
    """Return what happened lately on all nodes, newest last, by each node's own clock."""
    events = [
        {**event, "node": name} for name, facts in answers.items() for event in facts["events"]
    ]
    return sorted(events, key=lambda event: (event["at_us"], event["node"]))[-EVENTS_SHOWN:]


def _views(answers: _Rows) -> dict[tuple[int, int], _Rows]:
    """What each replica says, by group and node."""
    views: dict[tuple[int, int], _Rows] = {}
    for name, facts in answers.items():
        for shard in facts["shards"]:
            views.setdefault((shard["shard"], shard["generation"]), {})[name] = shard
    return views


def _shard(placement: GroupPlacement, views: _Rows, answers: _Rows) -> dict[str, Any]:
    """One shard: the leader's view if it answered, and what each replica says."""
    leading = [name for name, view in views.items() if view["role"] == "leader"]
    seen_by = max(
        leading or views,
        key=lambda name: (views[name]["term"], views[name]["applied_index"]),
        default=None,
    )
    if seen_by is None:
        row: dict[str, Any] = {"shard": placement.shard, "generation": placement.generation}
        row |= {**dict.fromkeys(_LEADER_FACTS), "as_of_us": None}
    else:
        row = {**views[seen_by], "as_of_us": answers[seen_by]["as_of_us"]}
        row["leaders"] = _leaders(views, seen_by)
        if not leading:
            row |= _without_leader(views, row["leader"])
    margin = _margin(placement, views, row if leading else None)
    commit_index = row.get("commit_index")
    row |= {
        "replicas": list(placement.replicas),
        "seen_by": seen_by,
        "margin": margin,
        "quorum": None if margin is None else margin >= 0,
        "digests": _digests(views),
        "members": {
            name: {
                **{fact: view.get(fact) for fact in _MEMBER_FACTS},
                "lag_entries": max(0, (commit_index or 0) - view["applied_index"]),
                "as_of_us": answers[name]["as_of_us"],
            }
            for name, view in views.items()
        },
    }
    return row


def _without_leader(views: _Rows, believed: str | None) -> dict[str, Any]:
    """Say who leads if no node that answers says so of itself.

    It is whom others have heard lately, unless that node answers, and knows better. Otherwise there
    has been no leader since the last of those that answer heard one.
    """
    if believed is not None and believed not in views:
        return {}
    since = [view.get("no_leader_since_us") for view in views.values()]
    known = [moment for moment in since if moment is not None]
    return {
        "leader": None,
        "leader_since_us": None,
        "no_leader_since_us": max(known, default=None),
    }


def _leaders(views: _Rows, seen_by: str) -> list[dict[str, Any]]:
    """Return the latest leaders, newest last: as one replica saw them, and what it missed.

    It missed the leaders of terms in which it was down or cut off. A term has one leader.
    """
    told = [dict(entry) for entry in views[seen_by].get("leaders", ())]
    terms = {entry["term"] for entry in told if entry["leader"] is not None}
    for view in views.values():
        for entry in view.get("leaders", ()):
            if entry["leader"] is not None and entry["term"] not in terms:
                terms.add(entry["term"])
                told.append(dict(entry))
    told.sort(key=lambda entry: (entry["term"], entry["leader"] is None, entry["at_us"]))
    return told[-LEADERSHIPS_KEPT:]


def _margin(
    placement: GroupPlacement, views: _Rows, leader: Mapping[str, Any] | None
) -> int | None:
    """How many more replicas may fail; -1: there is no quorum; None: nobody who holds it answered.

    A leader's word counts, since it needs them in touch with itself; without one it is how many
    replicas answer here.
    """
    if not views:
        return None
    if leader is not None and "followers" in leader:
        there = 1 + sum(bool(f.get("in_touch")) for f in leader["followers"].values())
    else:
        there = len(views)
    return max(-1, there - (len(placement.replicas) // 2 + 1))


def _digests(views: _Rows) -> str:
    """Whether the replicas hold the same, as far as they can be compared.

    Compared are replicas that stand at the same entry, here, and what followers found when their
    leader told them its digest, which it does every second. While entries come in, the nodes
    answer at different ones, and only the latter says anything.
    """
    if any(view.get("digest_mismatch") for view in views.values()):
        return "differ"
    at_index: dict[int, set[str]] = {}
    for view in views.values():
        at_index.setdefault(view["applied_index"], set()).add(view["digest"])
    if any(len(digests) > 1 for digests in at_index.values()):
        return "differ"
    followers = [view for view in views.values() if view["role"] != "leader"]
    compared = len(views) > 1 and (
        len(at_index) == 1 or all(view.get("digest_agreed_index") for view in followers)
    )
    return "agree" if compared else "not comparable now"


class _Reader(NamedTuple):
    """Who waits for an answer, and what of the cluster's facts is wanted."""

    make: Callable[[dict[str, Any]], dict[str, Any]]
    done: Answered


class _Question:
    """Facts of several nodes, asked at once."""

    def __init__(self, peers: frozenset[str], complete: Callable[[], None]) -> None:
        self.missing = set(peers)
        self.answers: dict[str, dict[str, Any]] = {}
        self.readers: list[_Reader] = []
        self.timer: asyncio.TimerHandle | None = None
        self._complete = complete
        self._finished = False

    def take(self, peer: str, facts: dict[str, Any]) -> None:
        """Take one node's answer."""
        self.answers[peer] = facts
        self.done_with(peer)

    def done_with(self, peer: str) -> None:
        """Wait no longer for one node."""
        self.missing.discard(peer)
        if not self.missing:
            self.finish()

    def finish(self) -> None:
        """Go on with what there is."""
        if not self._finished:
            self._finished = True
            if self.timer is not None:
                self.timer.cancel()
            self._complete()
