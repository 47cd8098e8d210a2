"""A raftkv cluster of our own: real nodes whose links, clocks and disks can be made to fail."""

import contextlib
import itertools
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from raftkv.chaos import disks
from raftkv.chaos.agreement import disagreements
from raftkv.chaos.errors import ChaosError
from raftkv.chaos.links import Link, Links
from raftkv.chaos.plan import FAULTS
from raftkv.chaos.waiting import wait_until
from raftkv.client import Client, RaftkvError
from raftkv.testing import LocalCluster
from raftkv.testing.launch import CLOCK_FILE, launcher
from raftkv.testing.ports import PortReservation, is_free
from raftkv.testing.processes import RAFTKV_COMMAND, NodeProcess

FAKETIME = tuple(
    Path(directory, "faketime/libfaketime.so.1")
    for directory in (
        "/usr/lib/x86_64-linux-gnu",
        "/usr/lib/aarch64-linux-gnu",
        "/usr/lib64",
        "/usr/lib",
        "/usr/local/lib",
    )
)
LINK_FAULTS = frozenset({"partition", "slow", "lossy", "reset"})
_OF_OTHERS = frozenset({"forwarder", "wipe"})
"""Their effect is seen by other nodes, or on them."""
DISK_SIZE = "48m"
SEGMENT_BYTES = 2**20
SNAPSHOT_AFTER_ENTRIES = 400
"""So few that logs are cut and snapshots are sent all through a run."""

ASK_S = 0.5
READY_S = 60.0
PORT_WAIT_S = 5.0
IMPATIENT_S = 1.0
PATIENCE = 5
"""Every other client waits so many election time-outs for one answer, as calls live in production;
the others ask another node after one, or a second if that is shorter."""
ONCE_ONLY_EVERY = 3
"""One client in so many sends nothing twice; the others repeat under an idempotency key."""


class RaftkvTarget:
    """Nodes ``n1``, ``n2``, ... as processes.

    Args:
        directory: Of the run; the cluster's files go into ``cluster/`` in it.
        nodes: How many.
        shards: How many.
        replicas: Of each shard; three by default, or as many as there are nodes.
        faults: What will be done to it; decides what has to be prepared.
        election_timeout_ms: The longest election time-out of the nodes; the shortest is half of it.
        seed: Decides what lossy links lose.
        snapshot_after_entries: After how many entries a replica writes a snapshot and cuts its log.
        command: How to run raftkv.
    """

    supported = frozenset(FAULTS)
    clean_exits = frozenset({0})

    def __init__(
        self,
        directory: Path,
        *,
        nodes: int,
        shards: int,
        replicas: int | None = None,
        faults: Sequence[str],
        election_timeout_ms: int,
        seed: int,
        snapshot_after_entries: int = SNAPSHOT_AFTER_ENTRIES,
        command: Sequence[str] = RAFTKV_COMMAND,
    ) -> None:
        self.title = f"raftkv, {nodes} nodes, {shards} shards"
        self.shards = shards
        self.election_timeout_s = election_timeout_ms / 1000
        self.down: set[str] = set()
        self._faults = frozenset(faults)
        self._seed = seed
        self._stack = contextlib.ExitStack()
        self._clients: dict[str, Client] = {}
        self._links: Links | None = None
        self._shared_memory: set[int] = set()
        self.cluster = LocalCluster(
            directory / "cluster",
            nodes=nodes,
            shards=shards,
            replicas=replicas,
            options={
                "raft": {
                    "heartbeat_ms": max(1, election_timeout_ms // 12),
                    "election_timeout_ms_min": election_timeout_ms // 2,
                    "election_timeout_ms_max": election_timeout_ms,
                },
                "limits": {
                    "wal_segment_bytes": SEGMENT_BYTES,
                    "snapshot_after_entries": snapshot_after_entries,
                },
            },
            ready_timeout_s=READY_S,
            command=launcher(command, faketime() if "clock" in self._faults else None),
        )

    # --- life -------------------------------------------------------------------------------

    def start(self) -> None:
        """Prepare disks, clocks and links as the faults need them, then start all nodes."""
        cluster = self.cluster
        self._stack.callback(self._remove_shared_memory)
        cluster.prepare()
        for name in self.names:
            self._prepare_node(name)
        if self._faults & LINK_FAULTS:
            self._links = self._open_links()
        self._stack.callback(cluster.stop)
        for name in self.names:
            self.start_node(name)
        cluster.wait_ready()

    def _prepare_node(self, name: str) -> None:
        node = self.cluster.node(name)
        self._clients[name] = Client(node.url, timeout_s=ASK_S, attempt_timeout_s=ASK_S)
        if "disk" in self._faults:
            disks.move_to_small_disk(self.data(name), DISK_SIZE)
            self._stack.callback(disks.unmount, self.data(name))
        if "clock" in self._faults:
            self.set_clock(name, 0)

    def _open_links(self) -> Links:
        """Put the proxy between each two nodes; the one with the smaller name dials."""
        pairs = list(itertools.combinations(sorted(self.names), 2))
        reservation = PortReservation(len(pairs))
        self._stack.callback(reservation.release)
        made = []
        for (dialer, acceptor), port in zip(pairs, reservation.ports, strict=True):
            real_port = self.cluster.node(acceptor).peer_port
            _redirect(self.cluster.node(dialer).config, acceptor, real_port, port)
            made.append(Link(dialer, acceptor, port, real_port))
        links = Links(made, self._seed)
        self._stack.callback(links.close)
        return links

    def close(self) -> None:
        """Stop all nodes and take away all that was put around them."""
        self._stack.close()
        for client in self._clients.values():
            client.close()

    def _remove_shared_memory(self) -> None:
        """Remove what libfaketime leaves behind of a process that was killed."""
        for pid in self._shared_memory:
            for name in (f"faketime_shm_{pid}", f"sem.faketime_sem_{pid}"):
                Path("/dev/shm", name).unlink(missing_ok=True)  # noqa: S108 -- that is where

    # --- nodes ------------------------------------------------------------------------------

    @property
    def names(self) -> tuple[str, ...]:
        """The nodes' names."""
        return self.cluster.names

    def process(self, name: str) -> NodeProcess:
        """The process of a node."""
        return self.cluster.process(name)

    def start_node(self, name: str) -> None:
        """Start a node that is down, once the one before has given its ports up."""
        node = self.cluster.node(name)
        wait_until(lambda: is_free(node.http_port) and is_free(node.peer_port), PORT_WAIT_S)
        self.cluster.start_node(name)
        self._shared_memory.add(self.cluster.pid(name))
        self.down.discard(name)

    def connect(self, client: int) -> Client:
        """A client of all nodes; some of them send nothing twice, every other one is patient."""
        idempotent = client % ONCE_ONLY_EVERY != ONCE_ONLY_EVERY - 1
        patience = PATIENCE if client % 2 else 1
        attempt_s = patience * self.election_timeout_s
        return Client(
            self.cluster.urls,
            timeout_s=5 * attempt_s,
            attempt_timeout_s=attempt_s if client % 2 else min(attempt_s, IMPATIENT_S),
            connections=1,
            idempotent=idempotent,
        )

    # --- what it is like --------------------------------------------------------------------

    def facts(self, name: str) -> Mapping[str, Any] | None:
        """What a node says of itself; None if it does not answer at once."""
        try:
            return self._clients[name].status("local")
        except RaftkvError:
            return None

    def leads(self, name: str) -> Mapping[int, int] | None:
        """The shards that a node says it leads, with their terms."""
        facts = self.facts(name)
        if facts is None:
            return None
        return {row["shard"]: row["term"] for row in facts["shards"] if row["role"] == "leader"}

    def committed(self) -> Mapping[int, int]:
        """How far each shard is committed, as far as anybody says."""
        return _committed(said for name in self.names if (said := self.facts(name)) is not None)

    def late(self, goal: Mapping[int, int]) -> str:
        """Whether a node is not ready yet, or has not applied as much as ``goal``."""
        facts = {name: self.facts(name) for name in self.names}
        silent = [name for name, said in facts.items() if said is None]
        if silent:
            return f"no answer from {', '.join(silent)}"
        unready = [name for name in self.names if not self.cluster.is_ready(name)]
        if unready:
            return f"not ready: {', '.join(unready)}"
        return _behind({name: said for name, said in facts.items() if said is not None}, goal)

    def disagreements(self) -> list[str]:
        """Shards whose replicas differ."""
        with self.cluster.client(timeout_s=10) as client:
            return disagreements(client, shards=self.shards)

    def keep_logs(self, directory: Path) -> None:
        """Copy each node's log and configuration."""
        for node in self.cluster.layout.nodes:
            for file in (node.log, node.config):
                if file.exists():
                    shutil.copy(file, directory / f"{node.name}.{file.name}")

    # --- what can be made to fail -----------------------------------------------------------

    @property
    def links(self) -> Links:
        """The links between the nodes."""
        if self._links is None:
            raise ChaosError("the links were not prepared: no fault of links was announced")
        return self._links

    def data(self, name: str) -> Path:
        """A node's data directory."""
        return self.cluster.node(name).directory / "data"

    def set_clock(self, name: str, seconds: int) -> None:
        """Set a node's wall clock off by so much."""
        file = self.cluster.node(name).directory / CLOCK_FILE
        temporary = file.with_suffix(".new")
        temporary.write_text(f"{seconds:+d}\n")
        temporary.rename(file)


def faketime() -> Path:
    """The library that shifts wall clocks.

    Raises:
        ChaosError: It is not installed.
    """
    for path in FAKETIME:
        if path.exists():
            return path
    raise ChaosError("needs libfaketime: apt-get install libfaketime")


def obstacle(kind: str, nodes: int) -> str | None:
    """Why this machine, or so few nodes, cannot have a fault; None if they can."""
    if nodes == 1 and kind in LINK_FAULTS:
        return "one node has no links: use --nodes 3"
    if nodes == 1 and kind in _OF_OTHERS:
        return "there are no other nodes: use --nodes 3"
    if kind == "disk" and not disks.can_mount():
        return "needs root that may mount"
    if kind == "clock":
        try:
            faketime()
        except ChaosError as error:
            return str(error)
    return None


def _redirect(config: Path, peer: str, real_port: int, port: int) -> None:
    """Have a node find a peer at another port."""
    text = config.read_text(encoding="utf-8")
    old, new = f'{peer} = "127.0.0.1:{real_port}"', f'{peer} = "127.0.0.1:{port}"'
    if old not in text:
        raise ChaosError(f"{config}: no address of {peer} to redirect")
    config.write_text(text.replace(old, new), encoding="utf-8")


def _committed(facts: Iterable[Mapping[str, Any]]) -> dict[int, int]:
    """The highest commit index of each shard that any node knows."""
    committed: dict[int, int] = {}
    for said in facts:
        for row in said["shards"]:
            committed[row["shard"]] = max(committed.get(row["shard"], 0), row["commit_index"])
    return committed


def _behind(facts: Mapping[str, Mapping[str, Any]], goal: Mapping[int, int]) -> str:
    """Which replica has not applied as much as the goal."""
    for name, said in facts.items():
        for row in said["shards"]:
            if row["applied_index"] < goal.get(row["shard"], 0) or row["installing_snapshot"]:
                return f"{name} is behind in shard {row['shard']}"
    return ""
