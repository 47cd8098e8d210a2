"""For the router's tests: a simulated loop, links that record, scripted groups."""

import itertools
from collections.abc import Callable, Iterable
from random import Random
from types import SimpleNamespace
from typing import Any

import msgspec

from raftkv.core.cluster_map import ClusterMap, GroupId
from raftkv.core.operations import Batch, Command, WriteResult
from raftkv.core.placement import seed_map
from raftkv.core.shard.machine import StateMachine
from raftkv.engine.directory import Directory
from raftkv.engine.replica_table import ReplicaTable
from raftkv.engine.router import Router
from raftkv.raft.group import Query
from raftkv.raft.proposals import GroupFailure, Limits
from raftkv.raft.reads import Voucher
from raftkv.raft.stages import EntryStages, StageDurations
from raftkv.rpc.messages import Call, Failure, Reply, Request, Response, Served
from raftkv.sim.clock import WALL_START_US, MachineClock, SimClock
from raftkv.sim.loop import SimLoop
from raftkv.sim.scheduler import SECOND_US, Scheduler


class TimedLoop(SimLoop):
    """A simulated loop on a timeline of its own, and its clock; it raises what a callback raises.

    Its turns come as late as in a simulation, a few microseconds. Both its clocks begin at 1000 s.
    """

    def __init__(self) -> None:
        self.scheduler = Scheduler(Random("order"))
        began_s = 1000
        self.clock = MachineClock(
            self.scheduler,
            booted_s=began_s,
            rate=1.0,
            wall_offset_us=began_s * SECOND_US - WALL_START_US,
        )
        self._raised: list[BaseException] = []
        super().__init__(self.scheduler, self.clock, Random("turns"), failed=self._raised.append)

    @property
    def now(self) -> float:
        """Seconds by the clock."""
        return self.clock.monotonic()

    def run(self, seconds: float) -> None:
        """Let time pass, running what falls due; it never ends for who spins, so that fails."""
        self.scheduler.run(self.scheduler.now_us + round(seconds * SECOND_US))
        if self._raised:
            raise self._raised.pop()


class FakeLinks:
    """Peer links that record what is sent."""

    def __init__(self, *connected: str) -> None:
        self.connected = frozenset(connected)
        self.sent: list[tuple[str, int, bytes]] = []
        self.lags: dict[str, float] = {}
        self.busy = False
        """Whether nothing leaves until the test lets it go."""
        self.waiting: list[tuple[str, int, int, Callable[[], bytes | None]]] = []

    def is_connected(self, peer: str) -> bool:
        """Whether the peer is there."""
        return peer in self.connected

    def lag_s(self, peer: str) -> float:
        """How late the peer's messages may be, as the test says."""
        return self.lags.get(peer, 0.0)

    def send_small(self, peer: str, channel: int, payload: bytes) -> bool:
        """Record, if the peer is there and takes small messages at once."""
        if peer not in self.connected or self.busy:
            return False
        self.sent.append((peer, channel, payload))
        return True

    def offer(
        self,
        peer: str,
        channel: int,
        size_bytes: int,
        encode: Callable[[], bytes | None],
        *,
        bytes_max: int,
    ) -> bool:
        """Let it wait if the links are busy and it fits, else record it at once."""
        if peer not in self.connected:
            return False
        waiting_bytes = sum(size for to, at, size, _ in self.waiting if (to, at) == (peer, channel))
        if size_bytes and waiting_bytes and waiting_bytes + size_bytes > bytes_max:
            return False
        self.waiting.append((peer, channel, size_bytes, encode))
        if not self.busy:
            self.let_go()
        return True

    def let_go(self, count: int | None = None) -> None:
        """Let what waits leave, or the oldest of it."""
        leaving, self.waiting = self.waiting[:count], [] if count is None else self.waiting[count:]
        for peer, channel, _, encode in leaving:
            payload = encode()
            if payload is not None:
                self.sent.append((peer, channel, payload))

    def calls(self) -> list[tuple[str, Call]]:
        """Return the calls forwarded so far, and forget them."""
        calls = [(to, msgspec.msgpack.decode(data, type=Call)) for to, _, data in self.sent]
        self.sent.clear()
        return calls


class FakeGroup:
    """A group whose answers the test decides; applies to a real state machine."""

    def __init__(self, cluster_map: ClusterMap, shard: int) -> None:
        self.id: GroupId = cluster_map.placement(shard).id
        self.state = StateMachine(self.id.generation, lambda _: True)
        self.is_leader = False
        self.leader: str | None = None
        self.term = 1
        self.held: list[Callable[[], None]] = []
        self.hold = False
        self.reject: GroupFailure | None = None
        self.vouchers: list[Voucher | None] = []
        self.stages = EntryStages(SimClock(), StageDurations())
        self.config = SimpleNamespace(limits=Limits())
        self.freshness = SimpleNamespace(age_ms=lambda: 42)

    def propose(self, commands: Any, done: Callable[[Any], None]) -> None:
        """Apply at once, or reject, or keep for later."""
        if self.reject is not None:
            done(self.reject)
        elif self.hold:
            self.held.append(lambda: done(self._apply(commands)))
        else:
            done(self._apply(commands))

    def _apply(self, commands: tuple[Command, ...]) -> list[WriteResult]:
        return self.state.apply(Batch(1, self.id.generation, 1, tuple(commands)))

    def read(self, query: Query, voucher: Voucher | None = None) -> None:
        """Let it be read at once, or reject, or keep for later."""
        self.vouchers.append(voucher)
        if self.hold:
            self.held.append(lambda: query(self.state))
        else:
            query(self.reject or self.state)

    def read_stale(self, query: Query, max_age_ms: int) -> None:
        """Be as fresh as the test says."""
        assert max_age_ms >= 0
        query(self.reject or self.state)

    def read_local(self, query: Callable[[StateMachine], Response]) -> Response:
        """Let it be read."""
        return query(self.state)


def table_of(groups: Iterable[Any], directory: Directory) -> ReplicaTable:
    """Return records of groups, which may be fakes, as if they had just been started."""
    table = ReplicaTable(directory)
    for group in groups:
        table.add(group, began_us=0)
    return table


class RouterWorld:
    """Node ``n1`` of three, with a fake group for each shard that it holds."""

    def __init__(self, shards: int = 2, nodes: int = 3, replicas: int = 3) -> None:
        names = [f"n{i}" for i in range(1, nodes + 1)]
        self.map = seed_map("test", names, shards, replicas)
        self.directory = Directory(self.map)
        self.loop = TimedLoop()
        self.links = FakeLinks(*names[1:])
        self.groups = {
            placement.id: FakeGroup(self.map, placement.shard)
            for placement in self.map.groups_of("n1")
        }
        self.replicas = table_of(self.groups.values(), self.directory)
        self.router = Router(
            node="n1",
            directory=self.directory,
            replicas=self.replicas,
            links=self.links,  # type: ignore[arg-type] # what a router needs of them
            clock=self.loop.clock,
            loop=self.loop.as_asyncio,
        )
        self.replies: list[Reply] = []

    def group(self, shard: int) -> FakeGroup:
        """Return the fake group of a shard."""
        return self.groups[self.map.placement(shard).id]

    def lead(self, *shards: int) -> None:
        """Make this node lead these shards."""
        for shard in shards:
            self.group(shard).is_leader = True
            self.group(shard).leader = "n1"

    def follow(self, leader: str | None, *shards: int) -> None:
        """Make another node lead these shards, or nobody."""
        for shard in shards:
            self.group(shard).is_leader = False
            self.group(shard).leader = leader

    def key(self, shard: int, number: int = 0) -> bytes:
        """Return the ``number``-th key that belongs to ``shard``."""
        keys = (b"k%d" % i for i in itertools.count())
        mine = (key for key in keys if self.map.shard_of(key) == shard)
        return next(itertools.islice(mine, number, None))

    def ask(self, request: Request, remaining_ms: int = 1000, hops: int = 0) -> None:
        """Send a request as the front end would."""
        call = Call(len(self.replies), remaining_ms, request, self.map.epoch, hops)
        self.router.handle(call, self.replies.append)

    def answer(self, call: Call, response: Response, node: str, shard: int | None = None) -> None:
        """Let another node answer a forwarded call."""
        reply = Reply(call.id, response, Served(node, shard), 1)
        self.router.on_reply(node, msgspec.msgpack.encode(reply))

    @property
    def response(self) -> Response:
        """The one answer that was given."""
        assert len(self.replies) == 1
        return self.replies[0].response

    @property
    def failure(self) -> Failure:
        """The one answer, which is a failure."""
        assert isinstance(self.response, Failure)
        return self.response
