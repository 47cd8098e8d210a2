"""A greedy client of a simulated cluster uses up its own share of the idempotency table only."""

from collections import Counter
from typing import Any

import pytest

from raftkv.core.idempotency import OutcomeMemory
from raftkv.core.operations import Idempotency, Refused
from raftkv.sim.options import Options
from raftkv.sim.run import GREEDY, run

SMALL_TABLE: dict[str, Any] = {
    "nodes": 3, "replicas": 3, "shards": 1, "clients": 4, "operations_per_s": 4.0,
    "faults": ("kill",), "fault_every_s": 8.0, "snapshot_after_entries": 40,
    "workloads": ("register", "append"), "free_keys": 0, "sessions_max": 100,
    "name_lifetime_s": 120.0, "greedy": 1, "copies": 0.0,
}  # fmt: skip


def test_a_greedy_client_is_refused_and_nobody_else() -> None:
    """It has a session for every write; leaders change and snapshots are taken meanwhile."""
    refused: Counter[int] = Counter()
    honest = OutcomeMemory.recall

    def recall(self: OutcomeMemory, name: Idempotency, *args: Any, **named: Any) -> Any:
        result = honest(self, name, *args, **named)
        if isinstance(result, Refused) and result.reason in {"share_full", "table_full"}:
            refused[name.owner] += 1
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(OutcomeMemory, "recall", recall)
        report = run(Options.of(3, 1.0, **SMALL_TABLE))
    assert report.violation is None, report.violation
    assert refused[GREEDY + 1] > 30
    assert list(refused) == [GREEDY + 1]
