"""Small bounds are met in a run: what each is for happens, many times."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from raftkv.core.operations import Forget, Refused
from raftkv.core.shard.outcomes import OutcomeMemory
from raftkv.engine.engine import Engine
from raftkv.raft.proposals import ProposalQueue
from raftkv.raft.replication import Replication
from raftkv.raft.snapshot_transfer import Receiver, Sender
from raftkv.rpc.client import EngineClient
from raftkv.rpc.messages import Failure
from raftkv.sim.options import Options
from raftkv.sim.run import run

TIGHT: dict[str, Any] = {
    "nodes": 3, "replicas": 3, "shards": 1, "clients": 20, "operations_per_s": 12.0,
    "heartbeat_ms": 250, "snapshot_after_entries": 8,
    "faults": ("kill",), "fault_every_s": 8.0,
    "queue_commands": 2, "reads_waiting": 1, "entry_commands": 1, "batch_operations": 1,
    "append_bytes": 1, "append_window": 1, "chunk_bytes": 500, "chunk_window": 8,
    "bulk_chunks": 1, "delay_us": 3000, "sync_us": 200,
    "apply_operations": 1, "restore_records": 1, "free_keys_max": 5, "sessions_max": 4,
    "name_lifetime_s": 20.0, "in_flight_max": 2, "worker_life_s": 10.0, "cut_share": 0.1,
    "workloads": ("register", "pages", "txn"), "call_ms": 2000,
}  # fmt: skip
"""Everything as small as it may be."""


@pytest.fixture(scope="module")
def met() -> Counter[str]:
    """What happened in two minutes, and how often."""
    counts: Counter[str] = Counter()

    def watch(patch: pytest.MonkeyPatch, owner: type, name: str, look: Callable[..., Any]) -> None:
        honest = getattr(owner, name)

        def watched(self: Any, *args: Any, **named: Any) -> Any:
            result = honest(self, *args, **named)
            counts.update(look(self, args, result))
            return result

        patch.setattr(owner, name, watched)

    def handled(_self: Any, args: Any, _result: Any) -> list[str]:
        return [type(args[0].request).__name__]

    def refused(_self: Any, _args: Any, result: Any) -> list[str]:
        return [result.reason] if result is not None else []

    def recalled(_self: Any, _args: Any, result: Any) -> list[str]:
        if result is None:
            return []
        return [result.reason] if isinstance(result, Refused) else ["from memory"]

    def forgot(_self: Any, args: Any, _result: Any) -> list[str]:
        (forget,) = args
        assert isinstance(forget, Forget)
        return ["keys"] * len(forget.keys)

    def failed(_self: Any, args: Any, result: Any) -> list[str]:
        assert isinstance(result.response, Failure)
        return [f"client {args[0]}"]

    with pytest.MonkeyPatch.context() as patch:
        watch(patch, Engine, "handle", handled)
        watch(patch, ProposalQueue, "offer", refused)
        watch(patch, OutcomeMemory, "recall", recalled)
        watch(patch, OutcomeMemory, "forget", forgot)
        watch(patch, EngineClient, "_failed", failed)
        watch(patch, Receiver, "take", lambda *_: ["chunk"])
        watch(patch, Sender, "__init__", lambda *_: ["snapshot sent"])
        watch(
            patch, Sender, "on_progress", lambda _self, args, _: ["again"] * (not args[0].in_order)
        )
        watch(patch, Replication, "_send_append", lambda _self, args, _: [f"{len(args[2])} sent"])
        report = run(Options.of(3, 3.0, **TIGHT))
    assert report.violation is None, report.violation
    return counts


def test_queues_are_full_and_entries_are_too_large(met: Counter[str]) -> None:
    """Writers hear busy and too large."""
    assert met["busy"] > 10
    assert met["too_large"] > 0


def test_memories_are_full_reused_and_forgotten(met: Counter[str]) -> None:
    """Names are refused, answered from memory, and forgotten by name."""
    assert met["table_full"] > 10
    assert met["share_full"] > 10
    assert met["key_reused"] > 3
    assert met["from memory"] > 10
    assert met["keys"] > 3


def test_entries_and_snapshots_travel_in_pieces(met: Counter[str]) -> None:
    """One entry in a message; a snapshot in many, of which some come out of turn."""
    assert met["1 sent"] > 100
    assert not any(key.endswith(" sent") and key[0] in "23456789" for key in met)
    assert met["chunk"] > 5 * met["snapshot sent"] > 0
    assert met["again"] > 0


def test_workers_refuse_what_is_too_much_and_answer_for_lost_engines(met: Counter[str]) -> None:
    """Before it leaves them: busy. What has left them: unknown, or not done."""
    assert met["client busy"] > 3
    assert met["client unknown"] + met["client unavailable"] > 0
    assert met["ScanRequest"] > 10
    assert met["BatchRequest"] > 10
