"""A whole simulated cluster: machines, the network between them, one timeline."""

from collections.abc import Callable
from itertools import permutations
from random import Random

from raftkv.core.shard.outcomes import MemoryLimits
from raftkv.engine.config import (
    ClusterOptions,
    HttpOptions,
    LimitOptions,
    NodeConfig,
    NodeOptions,
    RaftOptions,
    SecurityOptions,
)
from raftkv.engine.connection import LinkLimits
from raftkv.raft.host import GroupBounds
from raftkv.raft.proposals import Limits
from raftkv.raft.replication import AppendBounds
from raftkv.raft.snapshot_transfer import ChunkBounds
from raftkv.sim.fabric import Fabric
from raftkv.sim.front_end import FrontLimits
from raftkv.sim.machine import Bounds, Machine
from raftkv.sim.options import Options
from raftkv.sim.scheduler import Scheduler
from raftkv.sim.trace import Trace

CLUSTER_ID = "simulated"


class World:
    """Machines that are installed but not yet started, and everything around them.

    Args:
        after_turn: called with a machine after each turn of its process.
        ended: called with a machine when its process has ended.
        broke: called with a machine and an exception that no fault explains.
        write: gets the trace, line by line.
    """

    def __init__(
        self,
        options: Options,
        *,
        after_turn: Callable[[Machine], None] = lambda _: None,
        ended: Callable[[Machine], None] = lambda _: None,
        broke: Callable[[Machine, BaseException], None],
        write: Callable[[str], None] | None = None,
    ) -> None:
        self.options = options
        self.scheduler = Scheduler(Random(f"order {options.seed}"))
        self.trace = Trace(self.scheduler, write)
        self.fabric = Fabric(
            self.scheduler,
            Random(f"network {options.seed}"),
            self.trace.note,
            kernel_bytes=options.kernel_bytes,
        )
        names = [f"n{number}" for number in range(1, options.nodes + 1)]
        self.machines = {
            name: Machine(
                node_config(options, names, name),
                scheduler=self.scheduler,
                fabric=self.fabric,
                seed=f"machine {options.seed}",
                bounds=bounds(options),
                note=self.trace.note,
                after_turn=after_turn,
                ended=ended,
                broke=broke,
            )
            for name in names
        }
        for machine in self.machines.values():
            machine.speed.sync_us = machine.speed.jitter_us = options.sync_us
        self.calm_network()

    @property
    def names(self) -> tuple[str, ...]:
        """The machines' names, sorted."""
        return tuple(self.machines)

    def calm_paths(self) -> None:
        """Let every path be as fast and reliable as it was in the beginning."""
        for source, target in permutations(self.names, 2):
            path = self.fabric.path(source, target)
            path.delay_us = path.jitter_us = self.options.delay_us
            path.loss = 0.0
            path.bytes_per_s = None

    def calm_network(self) -> None:
        """Let everybody hear everybody, too."""
        self.calm_paths()
        for source, target in permutations(self.names, 2):
            self.fabric.speak(source, target)


def node_config(options: Options, names: list[str], name: str) -> NodeConfig:
    """What the node called ``name`` is told."""
    return NodeConfig(
        cluster=ClusterOptions(
            id=CLUSTER_ID,
            nodes={node: f"{node}:7000" for node in names},
            shards=options.shards,
            replicas=options.replicas,
        ),
        node=NodeOptions(name=name, data_dir="/data"),
        # Simulated machines have names instead of loopback addresses.
        security=SecurityOptions(secret="unused", insecure=True),  # noqa: S106 -- see machine.SECRET
        raft=RaftOptions(
            heartbeat_ms=options.heartbeat_ms,
            election_timeout_ms_min=options.election_ms,
            election_timeout_ms_max=2 * options.election_ms,
        ),
        http=HttpOptions(value_bytes_max=proposal_bytes_max(options) // 2),
        limits=LimitOptions(
            snapshot_after_entries=options.snapshot_after_entries,
            snapshot_after_bytes=4 * options.segment_bytes,
            wal_segment_bytes=options.segment_bytes,
            entry_bytes_max=options.segment_bytes // 2,
            entry_operations_max=options.entry_commands,
            waiting_operations_max=options.queue_commands,
            waiting_bytes_max=4 * 2**20,
        ),
    )


def proposal_bytes_max(options: Options) -> int:
    """The largest write that is taken: a large value and a little more."""
    return options.value_bytes + 4096


def bounds(options: Options) -> Bounds:
    """Every other bound of a node, as small as the options say."""
    return Bounds(
        links=_link_limits(options),
        queues=Limits(
            proposal_bytes_max=proposal_bytes_max(options),
            reads_waiting_max=options.reads_waiting,
            batch_operations_max=options.batch_operations,
            batch_bytes_max=proposal_bytes_max(options),
        ),
        groups=GroupBounds(
            appends=AppendBounds(
                options.append_bytes,
                options.append_window * options.append_bytes,
                # No more than one group's own, so that groups wait for each other.
                peer_window_bytes=options.append_window * options.append_bytes,
            ),
            chunks=ChunkBounds(options.chunk_bytes, options.chunk_window),
            memory=MemoryLimits(
                free_keys_max=options.free_keys_max, sessions_max=options.sessions_max
            ),
            name_lifetime_s=options.name_lifetime_s,
            apply_operations_per_tick=options.apply_operations,
            restore_records_per_tick=options.restore_records,
        ),
        front=FrontLimits(options.in_flight_max, options.worker_life_s),
    )


def _link_limits(options: Options) -> LinkLimits:
    """Links that notice silence within four pings, as the shipped ones do."""
    ping_s = options.ping_ms / 1000
    # A large value takes some round trips, not hundreds: clients wait for two seconds.
    bulk_bytes = max(options.bulk_chunks * options.chunk_bytes, options.value_bytes // 8)
    window_bytes = options.append_window * options.append_bytes + proposal_bytes_max(options)
    send_bytes_max = options.link_windows * (window_bytes + 2**16)
    return LinkLimits(
        tick_s=ping_s / 5,
        ping_interval_s=ping_s,
        dead_after_s=4 * ping_s,
        send_bytes_max=send_bytes_max,
        small_bytes=options.chunk_bytes,
        small_waiting_bytes_max=send_bytes_max // 4,
        calls_waiting_bytes_max=4 * proposal_bytes_max(options),
        answers_waiting_bytes_max=4 * proposal_bytes_max(options),
        bulk_window_bytes=bulk_bytes,
        bulk_queue_bytes_max=2 * bulk_bytes,
        bulk_piece_bytes=max(1, options.chunk_bytes // 2, bulk_bytes // 16),
        connect_deadline_s=0.5,  # there are no names here
    )
