"""What operators are told, as plain facts: JSON-able, cheap, and available without a quorum."""

import asyncio
import os
import resource
import statistics
from collections.abc import Callable
from typing import Any, Protocol

import msgspec

from raftkv.core.cluster_map import ClusterMap, GroupId
from raftkv.core.ring import hash_tag
from raftkv.engine.balancer import Balancer
from raftkv.engine.group_host import GroupHost
from raftkv.engine.router import Router
from raftkv.raft.clock import Clock
from raftkv.raft.group import Group
from raftkv.rpc.messages import Facts
from raftkv.version import __version__

CHANNEL_STATUS = 5
"""(number, facts or None): a question has no facts, an answer does."""

ASK_TIMEOUT_S = 0.7
"""Pages must show within a second what the nodes that answer know."""

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class Links(Protocol):
    """What is needed of the peer links."""

    @property
    def connected(self) -> frozenset[str]:
        """Peers that can be sent to."""

    def send(self, peer: str, channel: int, payload: bytes, *, bulk: bool = False) -> bool:
        """Queue a message."""

    def round_trip_s(self, peer: str) -> float | None:
        """Smoothed round trip time."""


class Status:
    """Collects the facts of this node and asks the others for theirs."""

    def __init__(
        self,
        *,
        node: str,
        cluster_map: ClusterMap,
        host: GroupHost,
        router: Router,
        balancer: Balancer,
        links: Links,
        clock: Clock,
        loop: asyncio.AbstractEventLoop,
        started_us: int,
    ) -> None:
        self._node = node
        self._map = cluster_map
        self._host = host
        self._router = router
        self._balancer = balancer
        self._links = links
        self._clock = clock
        self._loop = loop
        self._started_us = started_us
        self._number = 0
        self._questions: dict[int, _Question] = {}
        self.stopping = False

    # --- this node ----------------------------------------------------------------------------

    def local(self) -> dict[str, Any]:
        """Everything this node knows by itself."""
        host, now_us = self._host, self._clock.time_us()
        connected = self._links.connected
        return {
            "node": self._node,
            "cluster": self._map.cluster_id,
            "version": __version__,
            "pid": os.getpid(),
            "map_epoch": self._map.epoch,
            "as_of_us": now_us,
            "uptime_s": round((now_us - self._started_us) / 1e6, 1),
            "stopping": self.stopping,
            "has_space": host.has_space(),
            "rss_bytes": _resident_bytes(),
            "cpu_s": round(sum(resource.getrusage(resource.RUSAGE_SELF)[:2]), 2),
            "fdatasync_ms": self._sync_percentiles(),
            "fdatasync": host.sync_durations.facts(),
            "nodes": [self._peer_facts(name, connected) for name in self._map.nodes],
            "shards": [self._shard_facts(group) for group in host.groups.values()],
            "events": [
                {
                    "at_us": at_us,
                    "kind": event.kind,
                    "shard": event.group.shard,
                    "term": event.term,
                    "detail": event.detail,
                }
                for at_us, event in list(host.events)[-50:]
            ],
            "metrics": self._metrics(),
        }

    def _peer_facts(self, name: str, connected: frozenset[str]) -> dict[str, Any]:
        if name == self._node:
            return {"name": name, "connected": True, "round_trip_ms": 0.0}
        round_trip_s = self._links.round_trip_s(name)
        return {
            "name": name,
            "connected": name in connected,
            "round_trip_ms": None if round_trip_s is None else round(round_trip_s * 1000, 3),
        }

    def _shard_facts(self, group: Group) -> dict[str, Any]:
        placement = self._map.placement(group.id.shard)
        facts: dict[str, Any] = {
            "shard": group.id.shard,
            "generation": group.id.generation,
            "replicas": list(placement.replicas),
            "preferred_leader": placement.preferred_leader,
            "role": "leader" if group.is_leader else "follower",
            "leader": group.leader if self._has_leader(group) else None,
            "term": group.term,
            "elections": group.elections,
            "state_for_s": round(self._clock.monotonic() - group.leader_since, 1),
            "leader_contact_age_s": group.leader_contact_age_s,
            "commit_index": group.commit_index,
            "applied_index": group.applied_index,
            "last_index": group.last_index,
            "first_index": group.first_index,
            "log_bytes": group.log_bytes,
            "keys": group.state.key_count,
            "bytes": group.state.bytes_total,
            "revision": group.state.last_revision,
            "digest": f"{group.state.digest:032x}",
            "digest_mismatch": group.digest_mismatch,
            "waiting": group.waiting_operations,
            "installing_snapshot": group.installing_snapshot,
        }
        if group.is_leader:
            facts["match"] = {
                peer: group.match_index(peer) for peer in placement.replicas if peer != self._node
            }
        return facts

    def _has_leader(self, group: Group) -> bool:
        """Whether the leader was heard recently; an old belief is worth nothing to an operator."""
        age = group.leader_contact_age_s
        return age is not None and age < 2 * group.config.timing.election_max_s

    def _sync_percentiles(self) -> dict[str, float | None]:
        samples = sorted(self._host.sync_seconds)
        if len(samples) < 2:  # noqa: PLR2004 - quantiles need two
            return {"p50": None, "p99": None}
        cuts = statistics.quantiles(samples, n=100)
        return {"p50": round(cuts[49] * 1000, 3), "p99": round(cuts[98] * 1000, 3)}

    def _metrics(self) -> dict[str, Any]:
        groups = self._host.groups.values()
        return {
            "groups_led": sum(group.is_leader for group in groups),
            "waiting_operations": sum(group.waiting_operations for group in groups),
            "routed_in_flight": self._router.in_flight,
            "wal_bytes": self._host.wal.bytes_on_disk,
            "events": dict(self._host.event_counts),
            "requests": dict(self._router.served),
            "refused": dict(self._router.refused),
        }

    def ready(self) -> dict[str, Any]:
        """Which checks fail before this node should be sent requests."""
        failing = [
            f"shard {group.id.shard}: no leader, or not caught up"
            for group in self._host.groups.values()
            if not group.is_ready
        ]
        if self.stopping:
            failing.append("the node is stopping")
        if not self._host.has_space():
            failing.append("the disk is full")
        return {"ready": not failing, "failing": failing}

    def explain(self, key: bytes) -> dict[str, Any]:
        """Where ``key`` lives, and why."""
        shard = self._map.shard_of(key)
        placement = self._map.placement(shard)
        group = self._host.groups.get(placement.id)
        tag = hash_tag(key)
        facts: dict[str, Any] = {
            "key_hex": key.hex(),
            "hashed_part_hex": tag.hex(),
            "hash_tag": tag != key,
            "partitioner": self._map.ring.kind,
            "shard": shard,
            "generation": placement.generation,
            "replicas": list(placement.replicas),
            "preferred_leader": placement.preferred_leader,
            "map_epoch": self._map.epoch,
            "asked": self._node,
        }
        if group is not None:
            entry = group.state.get(key).entry
            facts |= {
                "leader": group.leader if self._has_leader(group) else None,
                "term": group.term,
                "local_revision": None if entry is None else entry.mod_revision,
                "applied_index": group.applied_index,
                "lag_entries": group.commit_index - group.applied_index,
            }
        return facts

    # --- all nodes ----------------------------------------------------------------------------

    def cluster(self, done: Callable[[Facts], None]) -> None:
        """Ask every connected node; answer when all have, or in time with those that have."""
        self._number += 1
        number = self._number
        question = _Question(self._links.connected, lambda: self._answer(number, done))
        self._questions[number] = question
        for peer in sorted(question.missing):
            self._links.send(peer, CHANNEL_STATUS, msgspec.msgpack.encode((number, None)))
        if question.missing:
            question.timer = self._loop.call_later(ASK_TIMEOUT_S, question.finish)
        else:
            question.finish()

    def on_message(self, peer: str, payload: bytes) -> None:
        """Take a question of another node, or its answer to ours."""
        number, facts = msgspec.msgpack.decode(payload, type=tuple[int, dict[str, Any] | None])
        if facts is None:
            answer = msgspec.msgpack.encode((number, self.local()))
            self._links.send(peer, CHANNEL_STATUS, answer)
        elif (question := self._questions.get(number)) is not None:
            question.take(peer, facts)

    def _answer(self, number: int, done: Callable[[Facts], None]) -> None:
        answers = {self._node: self.local(), **self._questions.pop(number).answers}
        done(Facts(self._merged(answers)))

    def _merged(self, answers: dict[str, dict[str, Any]]) -> dict[str, Any]:
        nodes = []
        for name in self._map.nodes:
            facts = answers.get(name)
            row = {"name": name, "reachable": facts is not None}
            row["round_trip_ms"] = self._peer_facts(name, self._links.connected)["round_trip_ms"]
            if facts is not None:
                for fact in ("version", "pid", "uptime_s", "has_space", "rss_bytes", "cpu_s"):
                    row[fact] = facts[fact]
                row["fdatasync_ms"] = facts["fdatasync_ms"]
                row["led"] = [s["shard"] for s in facts["shards"] if s["role"] == "leader"]
                row["as_of_us"] = facts["as_of_us"]
            nodes.append(row)
        return {
            "node": self._node,
            "cluster": self._map.cluster_id,
            "map_epoch": self._map.epoch,
            "as_of_us": self._clock.time_us(),
            "not_answering": [name for name in self._map.nodes if name not in answers],
            "nodes": nodes,
            "shards": [self._merged_shard(group.id, answers) for group in self._map.groups],
        }

    def _merged_shard(self, group: GroupId, answers: dict[str, dict[str, Any]]) -> dict[str, Any]:
        """One row per shard: the leader's view if it answered, and what each replica says."""
        placement = self._map.placement(group.shard)
        views = {
            name: shard
            for name, facts in answers.items()
            for shard in facts["shards"]
            if (shard["shard"], shard["generation"]) == group
        }
        leading = [name for name, view in views.items() if view["role"] == "leader"]
        newest = max(leading, key=lambda name: int(views[name]["term"]), default=None)
        if newest is not None:
            row = dict(views[newest])
        elif views:
            row = dict(max(views.values(), key=lambda view: (view["term"], view["applied_index"])))
        else:
            row = {"shard": group.shard, "generation": group.generation, "leader": None}
            row["term"] = None
        row["replicas"] = list(placement.replicas)
        row["members"] = {
            name: {
                fact: view[fact]
                for fact in ("role", "term", "applied_index", "commit_index", "digest", "keys")
            }
            for name, view in views.items()
        }
        return row


class _Question:
    """Facts of several nodes, asked at once."""

    def __init__(self, peers: frozenset[str], complete: Callable[[], None]) -> None:
        self.missing = set(peers)
        self.answers: dict[str, dict[str, Any]] = {}
        self.timer: asyncio.TimerHandle | None = None
        self._complete = complete
        self._finished = False

    def take(self, peer: str, facts: dict[str, Any]) -> None:
        """Take one node's answer."""
        self.answers[peer] = facts
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


def _resident_bytes() -> int:
    """Resident memory of this process, from the kernel."""
    with open("/proc/self/statm", encoding="ascii") as statm:  # noqa: PTH123 - a path for nobody
        return int(statm.read().split()[1]) * _PAGE_BYTES
