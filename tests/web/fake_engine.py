"""An engine in one process without log or peers: the real state machine behind web's protocol.

Tests can replace the next answers (``answers``), make every call slow (``delay_s``) and see what
was asked (``asked``).
"""

import asyncio
from collections import deque
from typing import Any

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

NODE = "n1"
SHARD = 0
TERM = 7
STALE_AGE_MS = 12

FACTS: dict[str, Any] = {
    "node": NODE,
    "cluster": "test",
    "map_epoch": 1,
    "nodes": [
        {"name": "n1", "reachable": True},
        {"name": "n2", "reachable": True, "round_trip_ms": 0.4},
        {"name": "n3", "reachable": False},
    ],
    "shards": [
        {
            "shard": 0,
            "generation": 1,
            "leader": "n1",
            "role": "leader",
            "term": TERM,
            "replicas": ["n1", "n2", "n3"],
            "keys": 3,
            "commit_index": 12,
        },
        {"shard": 1, "generation": 1, "leader": None, "role": "follower", "term": 9, "keys": 5},
    ],
    "rss_bytes": 4096,
    "metrics": {"wal_bytes": 17, "requests": {"put": 3}},
}


class FakeEngine:
    """One state machine; :class:`AsyncFace` and :class:`SyncFace` are its two protocols."""

    def __init__(self) -> None:
        self.state = StateMachine(generation=1, owns=lambda _key: True)
        self.asked: list[Request] = []
        self.timeouts: list[float] = []
        self.request_ids: list[str] = []
        self.answers: deque[Response] = deque()
        self.failing: set[str] = set()
        self.delay_s = 0.0
        self.ready = True
        self.clock = SystemClock()
        self.http = HttpTraffic(self.clock)

    def answer(self, request: Request, timeout_s: float) -> Reply:
        """Answer at once."""
        self.asked.append(request)
        self.timeouts.append(timeout_s)
        response = self.answers.popleft() if self.answers else self._answer(request)
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
                return Facts({})
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
                checks = [{"name": "shard 0", "ok": self.ready, "detail": ""}]
                failing = [] if self.ready else ["shard 0: no leader"]
                return Facts({"ready": self.ready, "failing": failing, "checks": checks})
            case StatusRequest():
                http = self.http.facts()
                return Facts({**FACTS, "http": http} if http["totals"] else FACTS)
            case ExplainRequest(key=key):
                return Facts({"key_length": len(key), "shard": SHARD})
            case TransferRequest(shard=shard, target=target):
                if shard >= len(FACTS["shards"]):
                    return Failure("not_found", "no such shard", definite=True)
                return Facts({"leader": target or NODE})
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
