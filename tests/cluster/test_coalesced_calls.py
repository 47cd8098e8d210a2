"""Calls that share requests are linearizable on a cluster of real processes."""

import random
import threading
import time
from pathlib import Path

import pytest

from raftkv.check.checker import check
from raftkv.check.event import Event
from raftkv.check.history import pair
from raftkv.check.models import MODELS
from raftkv.check.verdict import Verdict
from raftkv.client import Client
from raftkv.testing import LocalCluster

pytestmark = pytest.mark.cluster

THREADS = 24
TURNS = 15
KEYS = 4


class _Recorder:
    """What the threads of one client saw. The lock guards the events."""

    def __init__(self, client: Client) -> None:
        self.events: list[Event] = []
        self._client = client
        self._lock = threading.Lock()

    def work(self, process: int) -> None:
        """Read and write a few keys that all others read and write too."""
        chance = random.Random(process)
        for turn in range(TURNS):
            key = f"k{chance.randrange(KEYS)}"
            if chance.random() < 0.5:
                self._invoke(process, "read", key, None)
                entry = self._client.get(key)
                value = None if entry is None else entry.value.decode()
                revision = None if entry is None else entry.revision
                self._ok(process, ("read", key), value, revision)
            else:
                value = f"{process}.{turn}"
                self._invoke(process, "write", key, value)
                revision = self._client.put(key, value).revision
                self._ok(process, ("write", key), value, revision)

    def _invoke(self, process: int, f: str, key: str, value: str | None) -> None:
        with self._lock:
            now = time.monotonic_ns()
            self.events.append(Event(process, "invoke", f, key, value, now))

    def _ok(self, process: int, call: tuple[str, str], value: str | None, told: int | None) -> None:
        with self._lock:
            now = time.monotonic_ns()
            self.events.append(Event(process, "ok", *call, value, now, {"revision": told}))


def test_a_history_of_coalesced_calls_is_linearizable(tmp_path: Path) -> None:
    """Reads and writes of the same keys by many threads of one client."""
    with (
        LocalCluster(tmp_path, nodes=3, shards=2, replicas=3) as cluster,
        cluster.client() as client,
    ):
        recorder = _Recorder(client)
        threads = [
            threading.Thread(target=recorder.work, args=(process,)) for process in range(THREADS)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60.0)
    operations = pair(recorder.events)
    assert len(operations) == THREADS * TURNS
    assert all(operation.status == "ok" for operation in operations)
    assert check(operations, MODELS["register"]).verdict is Verdict.VALID
