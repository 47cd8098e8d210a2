"""What one node is told: the configuration as a value, with the rules that need no file.

The TOML file is read by :mod:`raftkv.cli.config`; here are only its shape, its defaults and the
combinations that cannot work. Everything is checked before anything is started, because a node
that refuses in one line beats one that half-runs on a guess.
"""

import ipaddress
import re
from collections.abc import Iterator
from typing import Annotated, Literal, NamedTuple

import msgspec

from raftkv.core.errors import StartError
from raftkv.raft.proposals import Limits

NODE_NAME = r"^[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?$"
NODES_MAX = 64
SHARDS_MAX = 256
"""As many as were shown to be good, see docs/partitioning.md."""

REPLICAS_MAX = 7
PORT_MAX = 65_535

NodeName = Annotated[str, msgspec.Meta(pattern=NODE_NAME)]
HostName = Annotated[
    str, msgspec.Meta(pattern=r"^\.?[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*$", max_length=253)
]
Milliseconds = Annotated[int, msgspec.Meta(ge=1, le=600_000)]
Count = Annotated[int, msgspec.Meta(ge=1)]
Role = Literal["read", "write", "admin"]
_QUEUES = Limits()


class InvalidOption(StartError, ValueError):  # noqa: N818 -- it names an option, and always becomes ConfigError
    """An option that cannot work: ``option`` is its dotted name, the message says why."""

    def __init__(self, option: str, reason: str) -> None:
        super().__init__(f"{option}: {reason}")
        self.option = option
        self.reason = reason


class Address(NamedTuple):
    """Where to listen or to connect; a plain (host, port) tuple for everything that wants one."""

    host: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach it; a name other than localhost is not trusted."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False


_ADDRESS = re.compile(r"(?:\[(?P<v6>[^\]]+)\]|(?P<host>[^:\[\]\s/]+)):(?P<port>[0-9]{1,5})")


def parse_address(option: str, text: str) -> Address:
    """Read ``host:port`` or ``[v6]:port``."""
    match = _ADDRESS.fullmatch(text)
    if match is None:
        raise InvalidOption(option, f"{text!r} is not host:port or [ipv6]:port")
    port = int(match["port"])
    if not 1 <= port <= PORT_MAX:
        raise InvalidOption(option, f"port {port} is not between 1 and {PORT_MAX}")
    if match["v6"] is not None:
        try:
            ipaddress.IPv6Address(match["v6"])
        except ValueError as error:
            raise InvalidOption(option, f"{match['v6']!r} is not an IPv6 address") from error
    return Address(match["v6"] or match["host"], port)


class Options(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of every table of the file: a misspelt option is an error, never ignored."""


class ClusterOptions(Options, frozen=True):
    """What all nodes agree on. It seeds the first map and must be the same on every node."""

    id: Annotated[str, msgspec.Meta(pattern=NODE_NAME)]
    nodes: dict[NodeName, str]
    shards: Annotated[int, msgspec.Meta(ge=1, le=SHARDS_MAX)] = 4
    replicas: Annotated[int, msgspec.Meta(ge=1, le=REPLICAS_MAX)] = 3


class NodeOptions(Options, frozen=True):
    """Who this node is and where it keeps its data."""

    name: NodeName
    data_dir: str
    pid_file: str | None = None


class PeerOptions(Options, frozen=True):
    """The port for the other nodes; by default the node's own address in ``cluster.nodes``."""

    listen: str | None = None


class HttpOptions(Options, frozen=True):
    """The port for clients."""

    listen: str = "127.0.0.1:8000"
    workers: Annotated[int, msgspec.Meta(ge=1, le=64)] = 1
    tls_cert: str | None = None
    tls_key: str | None = None
    value_bytes_max: Annotated[int, msgspec.Meta(ge=1, le=16 * 2**20)] = 2**20
    connections_max: Count = 10_000
    allowed_hosts: tuple[HostName, ...] = ()
    stop_delay_ms: Annotated[int, msgspec.Meta(ge=0, le=600_000)] = 0


class TokenOptions(Options, frozen=True):
    """One bearer token, kept hashed: the file shows what it may do, not what it is."""

    role: Role
    sha256: Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}$")]
    name: str = ""


class SecurityOptions(Options, frozen=True):
    """Who may talk to this node. ``secret`` holds the content of ``secret_file`` once loaded."""

    secret: str | None = None
    secret_file: str | None = None
    peer_ca: str | None = None
    peer_cert: str | None = None
    peer_key: str | None = None
    tokens: tuple[TokenOptions, ...] = ()
    insecure: bool = False

    def __repr__(self) -> str:
        """Leave the secret out: configurations end up in logs."""
        shown = "set" if self.secret else "not set"
        return f"SecurityOptions(secret {shown}, {len(self.tokens)} tokens)"

    @property
    def peer_tls(self) -> bool:
        """Whether peers speak mutual TLS."""
        return self.peer_ca is not None


class RaftOptions(Options, frozen=True):
    """Timing of every Raft group of this node.

    A killed process is noticed by its closed links, long before an election time-out; these times
    are for nodes that freeze or vanish, and for how long a slow disk or a busy machine is borne.
    """

    heartbeat_ms: Milliseconds = 100
    election_timeout_ms_min: Milliseconds = 1000
    election_timeout_ms_max: Milliseconds = 2000


class LimitOptions(Options, frozen=True):
    """Bounds of this node's queues and files. None of them changes what a replica applies."""

    entry_operations_max: Count = _QUEUES.entry_operations_max
    entry_bytes_max: Annotated[int, msgspec.Meta(ge=2**16, le=2**26)] = _QUEUES.entry_bytes_max
    waiting_operations_max: Count = _QUEUES.waiting_operations_max
    waiting_bytes_max: Annotated[int, msgspec.Meta(ge=2**20)] = _QUEUES.waiting_bytes_max
    snapshot_after_entries: Count = 50_000
    snapshot_after_bytes: Annotated[int, msgspec.Meta(ge=2**16)] = 64 * 2**20
    wal_segment_bytes: Annotated[int, msgspec.Meta(ge=2**20, le=2**31)] = 64 * 2**20


class LogOptions(Options, frozen=True):
    """What goes to standard error, and how it looks."""

    format: Literal["console", "json"] = "console"
    level: Literal["debug", "info", "warning", "error"] = "info"
    slow_request_ms: Milliseconds = 500


class NodeConfig(Options, frozen=True):
    """Everything in ``node.toml``. Build it, then call :func:`check`."""

    cluster: ClusterOptions
    node: NodeOptions
    peer: PeerOptions = PeerOptions()
    http: HttpOptions = HttpOptions()
    security: SecurityOptions = SecurityOptions()
    raft: RaftOptions = RaftOptions()
    limits: LimitOptions = LimitOptions()
    log: LogOptions = LogOptions()

    @property
    def addresses(self) -> dict[str, Address]:
        """Where every node's peer port is, this node's among them."""
        return {
            name: parse_address(f"cluster.nodes.{name}", text)
            for name, text in self.cluster.nodes.items()
        }

    @property
    def peers(self) -> dict[str, Address]:
        """Where every *other* node's peer port is."""
        return {name: at for name, at in self.addresses.items() if name != self.node.name}

    @property
    def peer_listen(self) -> Address:
        """Where to listen for peers."""
        if self.peer.listen is None:
            return self.addresses[self.node.name]
        return parse_address("peer.listen", self.peer.listen)

    @property
    def http_hosts(self) -> tuple[str, ...]:
        """Names that clients may know this node by, beside its IP addresses and ``localhost``."""
        own = self.addresses[self.node.name].host
        return (self.node.name, own, self.http_listen.host, *self.http.allowed_hosts)

    @property
    def http_listen(self) -> Address:
        """Where to listen for clients."""
        return parse_address("http.listen", self.http.listen)


def check(config: NodeConfig) -> None:
    """Raise :class:`InvalidOption` for the first combination of options that cannot work."""
    for rule in (check_cluster, _check_addresses, _check_raft, _check_tls, _check_exposure):
        rule(config)


def check_cluster(config: NodeConfig) -> None:
    """Raise :class:`InvalidOption` if the cluster cannot be, or the node is none of it."""
    cluster, name = config.cluster, config.node.name
    if not 1 <= len(cluster.nodes) <= NODES_MAX:
        raise InvalidOption(
            "cluster.nodes", f"lists {len(cluster.nodes)} nodes, not 1..{NODES_MAX}"
        )
    if name not in cluster.nodes:
        raise InvalidOption("node.name", f"{name!r} is not listed in cluster.nodes")
    if cluster.replicas > len(cluster.nodes):
        raise InvalidOption(
            "cluster.replicas", f"{cluster.replicas} replicas need more than {_nodes(cluster)}"
        )


def _nodes(cluster: ClusterOptions) -> str:
    return f"{len(cluster.nodes)} node" + ("s" if len(cluster.nodes) > 1 else "")


def _check_addresses(config: NodeConfig) -> None:
    seen: dict[Address, str] = {}
    for name, address in config.addresses.items():
        if address in seen:
            raise InvalidOption(
                f"cluster.nodes.{name}", f"{address} is already the address of {seen[address]}"
            )
        seen[address] = name
    if config.http_listen in {*seen, config.peer_listen}:
        raise InvalidOption("http.listen", f"{config.http_listen} is a peer address")


def _check_raft(config: NodeConfig) -> None:
    raft = config.raft
    if raft.election_timeout_ms_min > raft.election_timeout_ms_max:
        raise InvalidOption(
            "raft.election_timeout_ms_min",
            f"{raft.election_timeout_ms_min} is more than election_timeout_ms_max",
        )
    if raft.election_timeout_ms_min <= 3 * raft.heartbeat_ms:
        raise InvalidOption(
            "raft.election_timeout_ms_min",
            f"{raft.election_timeout_ms_min} is not more than three heartbeats "
            f"({3 * raft.heartbeat_ms} ms): one late heartbeat would depose a leader",
        )


def _check_tls(config: NodeConfig) -> None:
    http, security = config.http, config.security
    if (http.tls_cert is None) != (http.tls_key is None):
        missing = "http.tls_cert" if http.tls_cert is None else "http.tls_key"
        raise InvalidOption(missing, "is missing: tls_cert and tls_key go together")
    trio = {
        "security.peer_ca": security.peer_ca,
        "security.peer_cert": security.peer_cert,
        "security.peer_key": security.peer_key,
    }
    absent = [option for option, value in trio.items() if value is None]
    if absent and len(absent) < len(trio):
        raise InvalidOption(absent[0], "is missing: peer_ca, peer_cert and peer_key go together")


def _check_exposure(config: NodeConfig) -> None:
    """Refuse to be reachable from other machines by accident."""
    security = config.security
    if len(config.cluster.nodes) > 1 and not security.peer_tls and not security.secret:
        raise InvalidOption(
            "security.secret_file", "is missing: peers need a cluster secret or mutual TLS"
        )
    if security.insecure:
        return
    for option, address in _peer_addresses(config):
        if not address.is_loopback and not security.peer_tls:
            raise InvalidOption(
                option,
                f"{address} is not loopback: set security.peer_ca, peer_cert and peer_key "
                "(raftkv certs makes them), or say security.insecure = true",
            )
    if config.http_listen.is_loopback:
        return
    if config.http.tls_cert is None or not security.tokens:
        raise InvalidOption(
            "http.listen",
            f"{config.http_listen} is not loopback: set http.tls_cert, http.tls_key and "
            "[[security.tokens]], or say security.insecure = true",
        )


def _peer_addresses(config: NodeConfig) -> Iterator[tuple[str, Address]]:
    yield "peer.listen", config.peer_listen
    for name, address in config.addresses.items():
        yield f"cluster.nodes.{name}", address
