"""What a node tells operators of itself: cheap, and without a quorum."""

import os
import resource
import statistics
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec

from raftkv.core.cluster_map import GroupId
from raftkv.core.ring import hash_tag, position_of
from raftkv.core.shard.outcomes import OutcomeMemory
from raftkv.engine.agreement import Agreement
from raftkv.engine.directory import Directory
from raftkv.engine.group_host import GroupHost
from raftkv.engine.http_traffic import HttpTraffic
from raftkv.engine.peer_wire import Links
from raftkv.engine.replica_table import ReplicaRecord
from raftkv.engine.router import Router
from raftkv.raft.clock import Clock
from raftkv.raft.group import Group
from raftkv.raft.stages import StageDurations
from raftkv.rpc import logs
from raftkv.rpc.process import resident_bytes
from raftkv.status.facts import (
    Check,
    DiskSpace,
    FollowerFacts,
    IdempotencyFacts,
    KeyFacts,
    LinkFacts,
    NodeCounts,
    NodeFacts,
    Percentiles,
    PinFacts,
    Readiness,
    ReplicaFacts,
    SnapshotFacts,
)
from raftkv.status.merging import EVENTS_SHOWN
from raftkv.version import __version__

REFUSED_AGAIN_S = 10.0
"""Refused requests become an event this often at most, with how many they were."""


class LocalStatus:
    """Collects the facts of one node.

    Args:
        leading: for each shard, who leads it by an operator's will, and why it stays where it is.
        data_path: the node's data directory; on a simulated disk its facts are not known.
        snapshot_path: where a group's snapshot is, if there is one.
    """

    def __init__(
        self,
        *,
        node: str,
        directory: Directory,
        host: GroupHost,
        router: Router,
        http: HttpTraffic,
        durations: StageDurations,
        links: Links,
        agreement: Agreement,
        clock: Clock,
        data_path: Path,
        snapshot_path: Callable[[GroupId], Path],
        leading: Callable[[], Mapping[int, tuple[PinFacts | None, str | None]]] = dict,
    ) -> None:
        self._node = node
        self._directory = directory
        self._host = host
        self._router = router
        self._http = http
        self._durations = durations
        self._links = links
        self._agreement = agreement
        self._clock = clock
        self._data_path = data_path
        self._snapshot_path = snapshot_path
        self._leading = leading
        self._started_us = clock.time_us()
        self._cpu = (clock.monotonic(), _cpu_s())
        self._cpu_share: float | None = None
        self._refused: dict[str, int] = {}  # as it was when it last became an event
        self._refused_nodes: dict[str, str] = {}  # likewise
        self.snapshots = {"written": 0, "failed": 0}
        """How many snapshots this node has written, and how many it could not."""
        self.stopping = False

    def each_second(self) -> None:
        """Let the windows move on, over which rates are means."""
        now = self._clock.monotonic()
        (before, cpu_before), self._cpu = self._cpu, (now, _cpu_s())
        if now > before:
            self._cpu_share = round((self._cpu[1] - cpu_before) / (now - before), 3)
        for replica in self._host.replicas:
            group = replica.group
            replica.committed_before = group.commit_index
            if group.is_leader:
                replica.trail.note(now, group.commit_index)
            else:
                replica.trail.clear()
            replica.load.each_second()
        self._note_refusals()
        self._note_refused_nodes()

    def _note_refused_nodes(self) -> None:
        """Make an event of each node that is refused, and again when the reason is another one."""
        refused = dict(self._links.refusals)
        for name in sorted(refused):
            if refused[name] != self._refused_nodes.get(name):
                self._host.recent.add("node_refused", f"{name}: {refused[name]}")
        self._refused_nodes = refused

    def _note_refusals(self) -> None:
        """Make one event of all requests that were refused lately."""
        refused = self._router.refused
        new = {code: count - self._refused.get(code, 0) for code, count in refused.items()}
        said = ", ".join(f"{count} {code}" for code, count in sorted(new.items()) if count)
        if said and self._host.recent.add_at_most_every(REFUSED_AGAIN_S, "refused", said):
            self._refused = dict(refused)

    def facts(self) -> NodeFacts:
        """Everything this node knows by itself."""
        host, now_us = self._host, self._clock.time_us()
        connected, leading = self._links.connected, self._leading()
        return NodeFacts(
            node=self._node,
            cluster=self._directory.map.cluster_id,
            version=__version__,
            pid=os.getpid(),
            map_epoch=self._directory.epoch,
            as_of_us=now_us,
            uptime_s=round((now_us - self._started_us) / 1e6, 1),
            stopping=self.stopping,
            disagrees=self._agreement.refusal,
            has_space=host.has_space(),
            disk_silent_s=round(host.disk_silent_s, 1),
            rss_bytes=resident_bytes(),
            cpu_s=round(_cpu_s(), 2),
            cpu_share=self._cpu_share,
            disk=self._disk(),
            http=self._http.facts(),
            stages={
                stage: counts.histogram() for stage, counts in self._durations.by_stage.items()
            },
            fdatasync_ms=self._sync_percentiles(),
            fdatasync=host.sync_durations.histogram(),
            nodes=tuple(self._link(name, connected) for name in self._directory.map.nodes),
            shards=tuple(
                self._replica(replica, *leading.get(replica.group.id.shard, (None, None)))
                for replica in host.replicas
            ),
            events=host.recent.facts(EVENTS_SHOWN, self._node),
            metrics=self._counts(),
        )

    def _disk(self) -> DiskSpace | None:
        try:
            facts = os.statvfs(self._data_path)
        except OSError:  # the directory of a simulated node is on no real disk
            return None
        return DiskSpace(facts.f_bavail * facts.f_frsize, facts.f_blocks * facts.f_frsize)

    def _link(self, name: str, connected: frozenset[str]) -> LinkFacts:
        if name == self._node:
            return LinkFacts(name=name, connected=True, state="up", round_trip_ms=0.0)
        round_trip_s = self._links.round_trip_s(name)
        refused = self._links.refusal(name)
        return LinkFacts(
            name=name,
            connected=name in connected,
            state="up" if name in connected else "down" if refused is None else "refused",
            refused=refused,
            round_trip_ms=None if round_trip_s is None else round(round_trip_s * 1000, 3),
            since_us=self._links.changed_us(name),
        )

    def _replica(
        self, replica: ReplicaRecord, pinned: PinFacts | None, kept_because: str | None
    ) -> ReplicaFacts:
        group, load, leaderships = replica.group, replica.load, replica.leaderships
        placement = self._directory.map.placement(group.id.shard)
        self._host.note_leader(replica)  # its leader may have been silent for too long by now
        others = [peer for peer in placement.replicas if peer != self._node]
        followers = {peer: self._follower(replica, peer) for peer in others if group.is_leader}
        return ReplicaFacts(
            shard=group.id.shard,
            generation=group.id.generation,
            replicas=placement.replicas,
            preferred_leader=placement.preferred_leader,
            role="leader" if group.is_leader else "follower",
            leader=leaderships.leader,
            leader_since_us=leaderships.since_us,
            no_leader_since_us=leaderships.nobody_since_us,
            leaders=leaderships.facts(),
            leader_changes=leaderships.changes,
            term=group.term,
            elections=group.elections,
            state_for_s=round(self._clock.monotonic() - group.leader_since, 1),
            leader_contact_age_s=group.leader_contact_age_s,
            commit_index=group.commit_index,
            applied_index=group.applied_index,
            last_index=group.last_index,
            first_index=group.journal.first_index,
            log_bytes=group.journal.bytes_total,
            keys=group.state.key_count,
            bytes=group.state.bytes_total,
            revision=group.state.last_revision,
            digest=f"{group.state.digest:032x}",
            digest_mismatch=group.digests.mismatch,
            digest_agreed_index=group.digests.agreed_index,
            snapshot=self._snapshot(group),
            load=load.rates(),
            reads=load.reads,
            writes=load.writes,
            hot_keys=load.hot_keys(),
            slow=replica.slow,
            waiting=group.waiting_operations,
            installing_snapshot=group.installing_snapshot,
            idempotency=_idempotency(group.state.memory),
            match={peer: told.match_index for peer, told in followers.items()},
            followers=followers,
            pinned=pinned,
            kept_because=kept_because,
        )

    def _follower(self, replica: ReplicaRecord, peer: str) -> FollowerFacts:
        """What a leader knows of one of its followers: nothing of who has not answered it yet."""
        group = replica.group
        age_s = group.follower_contact_age_s(peer)
        in_touch = age_s is not None and age_s < 2 * group.config.timing.election_max_s
        if age_s is None or not group.has_answered(peer):
            return FollowerFacts(in_touch=in_touch)
        match_index, commit_index = group.match_index(peer), group.commit_index
        return FollowerFacts(
            match_index=match_index,
            lag_entries=max(0, commit_index - match_index),
            lag_s=replica.trail.lag_s(self._clock.monotonic(), match_index, commit_index),
            contact_age_s=round(age_s, 3),
            in_touch=in_touch,
        )

    def _snapshot(self, group: Group) -> SnapshotFacts | None:
        try:
            facts = self._snapshot_path(group.id).stat()
        except OSError:  # there is none yet, or the disk is a simulated one
            return None
        index = group.compaction.snapshot_index
        return SnapshotFacts(index, facts.st_size, facts.st_mtime_ns // 1000)

    def _sync_percentiles(self) -> Percentiles:
        samples = sorted(self._host.sync_seconds)
        if len(samples) < 2:  # noqa: PLR2004 -- quantiles need two
            return Percentiles()
        cuts = statistics.quantiles(samples, n=100)
        return Percentiles(round(cuts[49] * 1000, 3), round(cuts[98] * 1000, 3))

    def _counts(self) -> NodeCounts:
        groups = self._host.replicas.groups()
        return NodeCounts(
            groups_led=sum(group.is_leader for group in groups),
            waiting_operations=sum(group.waiting_operations for group in groups),
            routed_in_flight=self._router.in_flight,
            wal_bytes=self._host.wal.bytes_on_disk,
            log_lines_dropped=logs.dropped() + self._http.log_lines_dropped,
            snapshots=dict(self.snapshots),
            events=dict(self._host.event_counts),
            requests=dict(self._router.served),
            refused=dict(self._router.refused),
        )

    def ready(self) -> Readiness:
        """Which checks fail before this node should be sent requests."""
        checks: dict[str, str | None] = {}
        for replica in self._host.replicas:
            group = replica.group
            # What is being applied at this very moment is no backlog. A follower goes on believing
            # in a leader that died with the quorum.
            goal = replica.committed_before
            caught_up = group.applied_index >= (group.commit_index if goal is None else goal)
            well = group.has_role and caught_up and group.leader_heard is not None
            checks[f"shard {group.id.shard}"] = None if well else "no leader, or not caught up"
        checks["cluster map"] = self._agreement.failure
        checks["node"] = "it is stopping" if self.stopping else None
        checks["disk"] = None if self._host.has_space() else "it is full"
        return Readiness(
            ready=not any(checks.values()),
            failing=tuple(f"{name}: {failure}" for name, failure in checks.items() if failure),
            checks=tuple(
                Check(name, failure is None, failure or "") for name, failure in checks.items()
            ),
        )

    def explain(self, key: bytes) -> KeyFacts:
        """Where ``key`` lives, and why."""
        shard = self._directory.map.shard_of(key)
        placement = self._directory.map.placement(shard)
        tag = hash_tag(key)
        facts = KeyFacts(
            key_hex=key.hex(),
            hashed_part_hex=tag.hex(),
            hash_tag=tag != key,
            hash=f"{position_of(key):016x}",
            partitioner=self._directory.map.ring.kind,
            shard=shard,
            generation=placement.generation,
            replicas=placement.replicas,
            preferred_leader=placement.preferred_leader,
            map_epoch=self._directory.epoch,
            asked=self._node,
        )
        replica = self._host.replicas.by_shard.get(shard)
        if replica is None:
            return facts
        group = replica.group
        entry = group.read_local(lambda state: state.get(key)).entry
        return msgspec.structs.replace(
            facts,
            local_revision=None if entry is None else entry.mod_revision,
            applied_index=group.applied_index,
            lag_entries=group.commit_index - group.applied_index,
        )


def _idempotency(memory: OutcomeMemory) -> IdempotencyFacts:
    """How full a replica's idempotency table is, and with whose names."""
    return IdempotencyFacts(
        keys=memory.free_key_count,
        sessions=memory.session_count,
        bytes=memory.bytes,
        used=round(memory.used(), 4),
        owners=memory.owner_count,
        largest_share=round(memory.largest_share(), 4),
    )


def _cpu_s() -> float:
    """Processor time that this process has used."""
    return sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
