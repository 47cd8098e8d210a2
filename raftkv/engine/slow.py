"""Requests that took long, with where their time went: the newest of each shard, and a log line."""

import logging

import msgspec

from raftkv.engine.replica_table import ReplicaRecord
from raftkv.engine.requests import Pending, is_write
from raftkv.raft.clock import Clock
from raftkv.raft.stages import STAGES
from raftkv.rpc.messages import Failure, Response, Served
from raftkv.status.facts import SlowRequest

_KINDS = {
    "GetRequest": "get",
    "ScanRequest": "scan",
    "WriteRequest": "write",
    "BatchRequest": "batch",
    "TransferRequest": "transfer",
}

_logger = logging.getLogger(__name__)


class SlowRequests:
    """Logs slow requests, and remembers the newest that each replica here has served.

    Args:
        threshold_s: a request that takes this long in the engine is slow.
    """

    def __init__(self, clock: Clock, threshold_s: float) -> None:
        self.threshold_s = threshold_s
        self._clock = clock

    def note(
        self, pending: Pending, replica: ReplicaRecord | None, response: Response, served: Served
    ) -> None:
        """Take a request that was just answered; ``replica`` is the one here that served it."""
        now = self._clock.monotonic()
        stages_ms: dict[str, float] = {}
        if replica is not None and is_write(pending.request):
            entry = replica.group.stages.of_write(pending.started)
            if entry is not None:
                took = entry.seconds()
                stages_ms = {stage: _ms(took[stage]) for stage in STAGES if stage in took}
        outcome = response.code if isinstance(response, Failure) else "ok"
        slow = SlowRequest(
            at_us=self._clock.time_us(),
            kind=_KINDS[type(pending.request).__name__],
            request_id=pending.request_id or None,
            outcome=outcome,
            total_ms=_ms(now - pending.started),
            stages_ms=stages_ms,
        )
        if replica is not None:
            replica.slow = slow
        facts = {**msgspec.structs.asdict(slow), "shard": pending.shard, "served_by": served.node}
        del facts["at_us"]
        _logger.warning(
            "slow %s of shard %d: %.1f ms", slow.kind, pending.shard, slow.total_ms,
            extra={"facts": facts},
        )  # fmt: skip


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 3)
