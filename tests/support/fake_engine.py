"""An engine in one process without log or peers: the real state machine behind web's protocol.

Tests can replace the next answers (``answers``) or those to a request (``told``), make every call
slow (``delay_s``) and see what was asked (``asked``).
"""

import asyncio
from collections import deque
from typing import Any

import msgspec

from raftkv.core.operations import BATCH_FORMAT, Batch, Command, Range
from raftkv.core.shard.machine import StateMachine
from raftkv.engine.http_traffic import HttpTraffic
from raftkv.raft.clock import SystemClock
from raftkv.rpc.messages import (
    BatchRequest,
    BatchResult,
    ExplainRequest,
    Facts,
    Failure,
    GetRequest,
    Reply,
    Request,
    Response,
    ScanRequest,
    Served,
    StatusRequest,
    TransferRequest,
    WorkerReport,
    WriteRequest,
)
from raftkv.status.facts import (
    Check,
    ClusterFacts,
    HandedOver,
    KeyFacts,
    LinkFacts,
    Member,
    NodeCounts,
    NodeFacts,
    NodeSummary,
    Nothing,
    Readiness,
    ReplicaFacts,
    shard_facts,
)

NODE = "n1"
SHARD = 0
TERM = 7
STALE_AGE_MS = 12

SHARDS = (
    ReplicaFacts(
        shard=0,
        generation=1,
        leader="n1",
        role="leader",
        term=TERM,
        replicas=("n1", "n2", "n3"),
        keys=3,
        commit_index=12,
    ),
    ReplicaFacts(shard=1, generation=1, role="follower", term=9, keys=5),
)
CLUSTER = ClusterFacts(
    node=NODE,
    cluster="test",
    map_epoch=1,
    nodes=(
        NodeSummary(name="n1", reachable=True),
        NodeSummary(name="n2", reachable=True, round_trip_ms=0.4),
        NodeSummary(name="n3"),
    ),
    shards=tuple(
        msgspec.structs.replace(shard_facts(row), members={"n1": Member(), "n2": Member()})
        for row in SHARDS
    ),
)
LOCAL = NodeFacts(
    node=NODE,
    cluster="test",
    map_epoch=1,
    nodes=(
        LinkFacts(name="n1", connected=True),
        LinkFacts(name="n2", connected=True, round_trip_ms=0.4),
        LinkFacts(name="n3"),
    ),
    shards=SHARDS,
    rss_bytes=4096,
    metrics=NodeCounts(wal_bytes=17, requests={"put": 3}),
)


def explained(key: bytes) -> KeyFacts:
    """What is told of any key."""
    return KeyFacts(
        key_hex=key.hex(),
        hashed_part_hex=key.hex(),
        hash_tag=False,
        hash="0" * 16,
        partitioner="ring",
        shard=SHARD,
        generation=1,
        replicas=("n1", "n2", "n3"),
        preferred_leader="n1",
        map_epoch=1,
        asked=NODE,
    )


class FakeEngine:
    """One state machine; :class:`AsyncFace` and :class:`SyncFace` are its two protocols."""

    def __init__(self) -> None:
        self.state = StateMachine(generation=1, owns=lambda _key: True)
        self.asked: list[Request] = []
        self.timeouts: list[float] = []
        self.request_ids: list[str] = []
        self.answers: deque[Response] = deque()
        self.told: dict[Request, Response] = {}
        self.failing: set[str] = set()
        self.delay_s = 0.0
        self.ready = True
        self.clock = SystemClock()
        self.http = HttpTraffic(self.clock)

    def answer(self, request: Request, timeout_s: float) -> Reply:
        """Answer at once."""
        self.asked.append(request)
        self.timeouts.append(timeout_s)
        if self.answers:
            response = self.answers.popleft()
        else:
            response = self.told.get(request) or self._answer(request)
        stale = isinstance(request, GetRequest | ScanRequest) and request.consistency == "stale"
        single = isinstance(request, GetRequest | WriteRequest)
        return Reply(
            id=0,
            response=response,
            served=Served(
                node=NODE,
                shard=SHARD if single else None,
                term=TERM if single else None,
                age_ms=STALE_AGE_MS if stale else None,
            ),
        )

    def _answer(self, request: Request) -> Any:
        match request:
            case GetRequest(key=key):
                return self.state.get(key)
            case ScanRequest():
                return self.state.range(
                    Range(
                        request.start,
                        request.end,
                        request.limit,
                        request.keys_only,
                        request.bytes_max,
                    )
                )
            case WriteRequest(command=command):
                return self._apply(command)
            case WorkerReport():
                self.http.take(request)
                return Facts.of(Nothing())
            case BatchRequest(operations=operations):
                return BatchResult(tuple(self._operation(o) for o in operations))
            case _:
                return self._operator(request)

    def _operation(self, operation: Command | GetRequest) -> Any:
        if isinstance(operation, GetRequest):
            return self.state.get(operation.key)
        return self._apply(operation)

    def _apply(self, command: Command) -> Any:
        # Revisions are as large as a leader's clock makes them.
        clock_us = self.clock.time_us()
        result: Any = self.state.apply(Batch(BATCH_FORMAT, 1, clock_us, (command,)))[0]
        return result

    def _operator(self, request: Request) -> Response:
        match request:
            case StatusRequest(scope=scope) if scope in self.failing:
                return Failure("unavailable", "no quorum", definite=True)
            case StatusRequest(scope="ready"):
                failing = () if self.ready else ("shard 0: no leader",)
                checks = (Check("shard 0", self.ready),)
                return Facts.of(Readiness(ready=self.ready, failing=failing, checks=checks))
            case StatusRequest(scope=scope):
                local = msgspec.structs.replace(LOCAL, http=self.http.facts())
                return Facts.of(CLUSTER if scope == "cluster" else local)
            case ExplainRequest(key=key):
                return Facts.of(explained(key))
            case TransferRequest(shard=shard, target=target):
                if shard >= len(CLUSTER.shards):
                    return Failure("not_found", "no such shard", definite=True)
                return Facts.of(HandedOver(shard, target or NODE, target or NODE))
            case _:
                raise TypeError(request)


class AsyncFace:
    """A fake engine, asked from the event loop."""

    def __init__(self, engine: FakeEngine) -> None:
        self._engine = engine

    async def call(self, request: Request, timeout_s: float, request_id: str = "") -> Reply:
        """Answer, after ``delay_s`` if there is one."""
        self._engine.request_ids.append(request_id)
        if self._engine.delay_s:
            await asyncio.sleep(self._engine.delay_s)
        return self._engine.answer(request, timeout_s)


class SyncFace:
    """A fake engine, asked from threads."""

    def __init__(self, engine: FakeEngine) -> None:
        self._engine = engine

    def call(self, request: Request, timeout_s: float, request_id: str = "") -> Reply:
        """Answer at once."""
        self._engine.request_ids.append(request_id)
        return self._engine.answer(request, timeout_s)
