"""What must hold when a run ends, beside its history."""

import threading
from pathlib import Path
from random import Random
from typing import Any

import pytest

from raftkv.chaos import run
from raftkv.chaos.load import Load
from raftkv.chaos.recorder import Recorder
from raftkv.check.history import HistoryWriter
from raftkv.client import UnavailableError
from raftkv.workloads.keys import RotatingKeys
from tests.chaos.memory_store import MemoryStore


class Refusing(MemoryStore):
    """A store that answers reads and refuses the first writes, for certain."""

    def __init__(self, refusals: int) -> None:
        super().__init__()
        self.left = refusals

    def put(self, *arguments: Any, **conditions: Any) -> Any:
        """Refuse, as long as there are refusals left."""
        if self.left:
            self.left -= 1
            raise UnavailableError("no leader")
        return super().put(*arguments, **conditions)


@pytest.mark.parametrize(("refusals", "writable"), [(0, True), (3, True), (10_000, False)])
def test_a_shard_that_refuses_every_write_is_not_healed(
    refusals: int, *, writable: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A few refusals are an election; only refusals are a shard that is stuck."""
    monkeypatch.setattr(run, "FINAL_READ_PAUSE_S", 0.0)
    assert run._writes(Refusing(refusals), "key") is writable


def test_a_client_that_is_never_answered_is_counted(tmp_path: Path) -> None:
    """Its operation alone would only be one of unknown outcome."""
    asked, answer = threading.Event(), threading.Event()

    class Silent(MemoryStore):
        def get(self, key: Any) -> Any:
            asked.set()
            answer.wait()
            return super().get(key)

    with HistoryWriter(tmp_path / "history.jsonl") as history:
        load = Load(
            lambda _: Silent(),
            ["append"],
            RotatingKeys(Random(1), 8),
            Recorder(history),
            clients=1,
            rate_per_s=1000.0,
            seed=1,
        )
        for thread in load._threads:
            thread.start()
        assert asked.wait(20.0)
        load.stop(patience_s=0.0)
        assert load.unanswered == 1
        answer.set()
        load.stop()
        assert load.unanswered == 0
