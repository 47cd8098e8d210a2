"""What nodes tell operators of themselves and of the cluster, as values.

The engine fills them, and pages, metrics and the command line read them. As JSON they are the
documents of ``/v1/status`` and its neighbours (docs/http-api.md), so a field that goes or changes
its meaning is a change of the API.

They also cross versions: a node asks nodes of other versions, and a command line any cluster. What
this version does not know is left out when it is read, and what another one does not tell is None,
which counts as not known and never as good. Times are microseconds of a node's wall clock.
"""

from typing import Annotated, Literal, TypeVar

import msgspec

ROWS_MAX = 65_536
_YEAR_9999_US = 253_402_300_800_000_000

Count = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
TimeUs = Annotated[int, msgspec.Meta(ge=0, lt=_YEAR_9999_US)]
Name = Annotated[str, msgspec.Meta(max_length=255)]
Rows = msgspec.Meta(max_length=ROWS_MAX)
Recent = msgspec.Meta(max_length=1000)

Role = Literal["leader", "follower"]
LinkState = Literal["up", "down", "refused"]
Digests = Literal["agree", "differ", "not comparable now"]

F = TypeVar("F")


def read(told: object, kind: type[F]) -> F:
    """Return facts that were decoded as JSON or MessagePack, checked.

    Raises:
        msgspec.ValidationError: They are no facts of this kind; it says where.
    """
    return msgspec.convert(told, kind)


class Percentiles(msgspec.Struct, frozen=True):
    """In milliseconds; None: there are too few samples."""

    p50: float | None = None
    p99: float | None = None


class Histogram(msgspec.Struct, frozen=True):
    """How many durations fell up to each bound in seconds and beyond the last, and their sum."""

    bounds_s: tuple[float, ...]
    counts: tuple[Count, ...]
    sum_s: float


class DiskSpace(msgspec.Struct, frozen=True):
    """Of the file system that holds the data directory."""

    free_bytes: Count
    size_bytes: Count


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """Something that happened on a node."""

    at_us: TimeUs
    kind: Name
    shard: Count | None = None
    term: Count | None = None
    detail: str = ""
    node: Name | None = None


class Leadership(msgspec.Struct, frozen=True):
    """Who was known to lead from a moment on; None: nobody."""

    term: Count
    leader: Name | None
    at_us: TimeUs


# --- HTTP -------------------------------------------------------------------------------------


class WorkerFacts(msgspec.Struct, frozen=True, kw_only=True):
    """One HTTP worker; requests and errors since the engine's start, under its number."""

    worker: Count
    pid: Count
    as_of_us: TimeUs
    requests: Count
    errors: Count
    in_flight: Count
    body_bytes: Count
    cpu_s: float
    rss_bytes: Count


class SecondsFacts(msgspec.Struct, frozen=True, kw_only=True):
    """The last two minutes second by second; the last is ``until_s``, in seconds of wall clock."""

    until_s: int
    requests: tuple[Count, ...] = ()
    errors: tuple[Count, ...] = ()
    p50_ms: tuple[float | None, ...] = ()
    p99_ms: tuple[float | None, ...] = ()


class RouteCount(msgspec.Struct, frozen=True):
    """How many requests of a route were answered with a status."""

    route: Name
    status: Count
    count: Count


class HttpSummary(msgspec.Struct, frozen=True, kw_only=True):
    """What the HTTP workers of a node have answered lately."""

    as_of_us: TimeUs | None = None
    workers: tuple[WorkerFacts, ...] = ()
    seconds: SecondsFacts | None = None


class HttpFacts(HttpSummary, frozen=True, kw_only=True):
    """What the HTTP workers of a node have answered since the engine's start."""

    totals: tuple[RouteCount, ...] = ()
    histograms: dict[str, Histogram] = {}


# --- a shard on one node ------------------------------------------------------------------------


class SnapshotFacts(msgspec.Struct, frozen=True):
    """The latest snapshot of a replica."""

    index: Count
    bytes: Count
    at_us: TimeUs


class LoadRates(msgspec.Struct, frozen=True):
    """Means over the last seconds."""

    reads_per_s: float
    writes_per_s: float


class HotKey(msgspec.Struct, frozen=True):
    """A key with a large share of a shard's requests; ``key`` is None if it is not UTF-8."""

    key_hex: str
    key: str | None
    share: float


class SlowRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A request that took long, and in which stages its time went."""

    at_us: TimeUs
    kind: str
    request_id: str | None = None
    outcome: str = ""
    total_ms: float
    stages_ms: dict[str, float] = {}


class IdempotencyFacts(msgspec.Struct, frozen=True, kw_only=True):
    """How full a replica's idempotency table is; ``largest_share`` is that of one owner of it."""

    keys: Count | None = None
    sessions: Count | None = None
    bytes: Count | None = None
    used: float | None = None
    owners: Count | None = None
    largest_share: float | None = None


class PinFacts(msgspec.Struct, frozen=True):
    """Where an operator has put a leadership; until None: until that node stops."""

    node: Name
    until_us: Count | None = None


class FollowerFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What a leader knows of one of its followers."""

    match_index: Count | None = None
    lag_entries: Count | None = None
    lag_s: float | None = None
    contact_age_s: float | None = None
    in_touch: bool | None = None


class MemberFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What a replica says of its own copy."""

    role: Role | None = None
    term: Count | None = None
    applied_index: Count | None = None
    commit_index: Count | None = None
    digest: Name | None = None
    keys: Count | None = None
    last_index: Count | None = None
    log_bytes: Count | None = None
    snapshot: SnapshotFacts | None = None
    leader_contact_age_s: float | None = None
    digest_agreed_index: Count | None = None
    load: LoadRates | None = None
    waiting: Count | None = None
    installing_snapshot: bool | None = None


class Member(MemberFacts, frozen=True, kw_only=True):
    """A replica beside the others of its shard."""

    lag_entries: Count | None = None
    as_of_us: TimeUs | None = None


class ReplicaFacts(MemberFacts, frozen=True, kw_only=True):
    """What one replica tells of itself and of its shard."""

    shard: Count
    generation: Count | None = None
    replicas: Annotated[tuple[Name, ...], Rows] = ()
    leader: Name | None = None
    leader_since_us: TimeUs | None = None
    no_leader_since_us: TimeUs | None = None
    preferred_leader: Name | None = None
    leaders: Annotated[tuple[Leadership, ...], Recent] = ()
    leader_changes: Count | None = None
    elections: Count | None = None
    state_for_s: float | None = None
    first_index: Count | None = None
    bytes: Count | None = None
    revision: Count | None = None
    digest_mismatch: str | None = None
    reads: Count | None = None
    writes: Count | None = None
    hot_keys: tuple[HotKey, ...] = ()
    slow: SlowRequest | None = None
    idempotency: IdempotencyFacts | None = None
    match: dict[Name, Count | None] = {}
    followers: Annotated[dict[Name, FollowerFacts], Rows] = {}
    pinned: PinFacts | None = None
    kept_because: str | None = None


class ShardFacts(ReplicaFacts, frozen=True, kw_only=True):
    """A shard as all nodes that answer see it: its leader's view, and what each replica says.

    Of one node alone (:meth:`ClusterFacts.alone`) ``members`` is None.
    """

    as_of_us: TimeUs | None = None
    seen_by: Name | None = None
    margin: int | None = None
    """How many more replicas may fail; negative: the quorum is lost; None: not known."""
    quorum: bool | None = None
    digests: Digests | None = None
    members: dict[Name, Member] | None = None


# --- a node -------------------------------------------------------------------------------------


class LinkFacts(msgspec.Struct, frozen=True, kw_only=True):
    """A node's link to another, or what stands for it of the node itself."""

    name: Name
    connected: bool = False
    state: LinkState | None = None
    refused: str | None = None
    round_trip_ms: float | None = None
    since_us: TimeUs | None = None

    @property
    def is_refused(self) -> bool:
        """Whether handshakes with the peer are refused, by either side."""
        return self.refused is not None


class NodeCounts(msgspec.Struct, frozen=True, kw_only=True):
    """What an engine counts, since its start or at this moment."""

    groups_led: Count | None = None
    waiting_operations: Count | None = None
    routed_in_flight: Count | None = None
    wal_bytes: Count | None = None
    log_lines_dropped: Count | None = None
    snapshots: dict[str, Count] = {}
    events: dict[str, Count] = {}
    requests: dict[str, Count] = {}
    refused: dict[str, Count] = {}


class ProcessFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What a node tells of its process and its machine."""

    version: str | None = None
    pid: Count | None = None
    as_of_us: TimeUs | None = None
    uptime_s: float | None = None
    stopping: bool | None = None
    disagrees: str | None = None
    """Why it serves nothing: what differs from the other nodes' map and constants."""
    has_space: bool | None = None
    disk_silent_s: float | None = None
    """For how long the disk has not answered; 0: it does."""
    rss_bytes: Count | None = None
    cpu_s: float | None = None
    cpu_share: float | None = None
    disk: DiskSpace | None = None
    fdatasync_ms: Percentiles | None = None


class NodeFacts(ProcessFacts, frozen=True, kw_only=True):
    """All that one node knows by itself; its links are ``nodes``."""

    node: Name
    cluster: str | None = None
    map_epoch: Count | None = None
    http: HttpFacts = HttpFacts()
    stages: dict[str, Histogram] = {}
    fdatasync: Histogram | None = None
    nodes: Annotated[tuple[LinkFacts, ...], Rows] = ()
    shards: Annotated[tuple[ReplicaFacts, ...], Rows] = ()
    events: Annotated[tuple[Event, ...], Recent] = ()
    metrics: NodeCounts = NodeCounts()


class NodeSummary(ProcessFacts, frozen=True, kw_only=True):
    """A node as another sees it: the link to it, and what it says of itself if it answers."""

    name: Name
    reachable: bool = False
    refused: str | None = None
    round_trip_ms: float | None = None
    link_since_us: TimeUs | None = None
    led: tuple[Count, ...] | None = None
    http: HttpSummary | None = None
    links: tuple[LinkFacts, ...] = ()
    waiting_operations: Count | None = None
    wal_bytes: Count | None = None


# --- the cluster --------------------------------------------------------------------------------


class RingShape(msgspec.Struct, frozen=True):
    """What :class:`raftkv.core.ring.RingParameters` hold, as JSON with names."""

    kind: str
    shards: tuple[Count, ...]
    vnodes: Count | None = None


class ClusterFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What all nodes that answer know together, put together by ``node``."""

    node: Name | None = None
    cluster: str | None = None
    map_epoch: Count | None = None
    as_of_us: TimeUs | None = None
    not_answering: tuple[Name, ...] = ()
    ring: RingShape | None = None
    nodes: tuple[NodeSummary, ...] = ()
    shards: tuple[ShardFacts, ...] = ()
    events: tuple[Event, ...] = ()

    @property
    def is_of_one_node(self) -> bool:
        """Whether the other nodes have not been asked."""
        return bool(self.shards) and all(row.members is None for row in self.shards)

    @property
    def answering(self) -> frozenset[str]:
        """The names of the nodes that answer."""
        return frozenset(row.name for row in self.nodes if row.reachable)

    @property
    def silent(self) -> list[str]:
        """The names of the nodes that do not answer, in the map's order."""
        return [row.name for row in self.nodes if not row.reachable]

    def shard(self, number: int) -> ShardFacts | None:
        """Return one shard; None: there is none of this number."""
        return next((row for row in self.shards if row.shard == number), None)

    def named(self, name: str) -> NodeSummary | None:
        """Return one node; None: there is none of this name."""
        return next((row for row in self.nodes if row.name == name), None)


def node_summary(link: LinkFacts, facts: NodeFacts | None, *, reachable: bool) -> NodeSummary:
    """Return one node: the link to it, and what it says of itself if it answered."""
    summary = NodeSummary(
        name=link.name,
        reachable=reachable,
        refused=link.refused,
        round_trip_ms=link.round_trip_ms,
        link_since_us=link.since_us,
    )
    if facts is None:
        return summary
    http = facts.http
    return msgspec.structs.replace(
        summary,
        **{name: getattr(facts, name) for name in ProcessFacts.__struct_fields__},
        led=tuple(row.shard for row in facts.shards if row.role == "leader"),
        http=HttpSummary(as_of_us=http.as_of_us, workers=http.workers, seconds=http.seconds),
        links=facts.nodes,
        waiting_operations=facts.metrics.waiting_operations,
        wal_bytes=facts.metrics.wal_bytes,
    )


def shard_facts(row: ReplicaFacts) -> ShardFacts:
    """Return a shard as one replica sees it."""
    return ShardFacts(**{name: getattr(row, name) for name in ReplicaFacts.__struct_fields__})


def alone(facts: NodeFacts) -> ClusterFacts:
    """Return what one node knows by itself, as a view of the cluster: its links for answers."""
    return ClusterFacts(
        node=facts.node,
        cluster=facts.cluster,
        map_epoch=facts.map_epoch,
        as_of_us=facts.as_of_us,
        nodes=tuple(
            node_summary(link, facts if link.name == facts.node else None, reachable=link.connected)
            for link in facts.nodes
        ),
        shards=tuple(map(shard_facts, facts.shards)),
        events=facts.events,
    )


# --- answers about one thing --------------------------------------------------------------------


class Check(msgspec.Struct, frozen=True):
    """One of the checks of readiness."""

    name: str
    ok: bool
    detail: str = ""


class Readiness(msgspec.Struct, frozen=True, kw_only=True):
    """Whether a node can serve, and which checks fail if not."""

    ready: bool
    failing: tuple[str, ...] = ()
    checks: tuple[Check, ...] = ()


class KeyFacts(msgspec.Struct, frozen=True, kw_only=True):
    """Where a key lives, and why; the last fields are of the replica on the node that was asked."""

    key_hex: str
    hashed_part_hex: str
    hash_tag: bool
    hash: str
    partitioner: str
    shard: Count
    generation: Count
    replicas: tuple[Name, ...]
    preferred_leader: Name | None
    map_epoch: Count
    asked: Name
    leader: Name | None = None
    leader_since_us: TimeUs | None = None
    no_leader_since_us: TimeUs | None = None
    term: Count | None = None
    local_revision: Count | None = None
    applied_index: Count | None = None
    lag_entries: Count | None = None
    state: ShardFacts | None = None
    not_answering: tuple[Name, ...] = ()


class HandedOver(msgspec.Struct, frozen=True):
    """A leadership that was transferred."""

    shard: Count
    leader: Name | None
    target: Name


class Nothing(msgspec.Struct, frozen=True):
    """The answer to what is only told."""
