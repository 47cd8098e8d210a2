"""Load on ZooKeeper by kazoo: a fixed number of sets under way, spread over a client of each node.

The keys are children of ``/bench``, which :func:`fill` makes.
"""

import random
import threading
import time
from typing import Any

from kazoo.client import KazooClient
from kazoo.exceptions import KazooException, NodeExistsError
from kazoo.handlers.threading import KazooTimeoutError

from raftkv.bench.load.filling import FillError
from raftkv.bench.load.generator import (
    EXAMPLES_KEPT,
    REPORT_EVERY_S,
    Load,
    Recorder,
    begin_together,
    cpu_s,
    read_load,
    write,
)
from raftkv.bench.load.tally import Tally
from raftkv.bench.load.workload import Workload, chooser

ROOT = "/bench"
_DRAIN_S = 15.0
_SESSION_S = 30.0
"""Three times kazoo's default: a busy machine is no lost session."""
_FILL_AT_ONCE = 200


def fill(address: tuple[str, int], workload: Workload) -> None:
    """Make every key of a workload.

    Raises:
        FillError: ZooKeeper did not make one.
    """
    client = _connected(address)
    try:
        client.ensure_path(ROOT)
        value = b"v" * workload.value_bytes
        for first in range(0, workload.keys, _FILL_AT_ONCE):
            last = min(first + _FILL_AT_ONCE, workload.keys)
            under_way = [
                client.create_async(_path(workload, number), value) for number in range(first, last)
            ]
            for result in under_way:
                try:
                    result.get(_DRAIN_S)
                except NodeExistsError:
                    continue  # made by an earlier row
                except (KazooException, KazooTimeoutError) as error:
                    raise FillError(f"ZooKeeper did not make a key: {error!r}") from error
    finally:
        _end(client)


def _path(workload: Workload, number: int) -> str:
    return f"{ROOT}/{workload.key(number).decode()}"


def _connected(address: tuple[str, int]) -> Any:
    client = KazooClient(hosts="{}:{}".format(*address), timeout=_SESSION_S)
    client.start(timeout=_DRAIN_S)
    return client


def _end(client: Any) -> None:
    client.stop()
    client.close()


class _Sets:
    """Keeps sets under way; kazoo's threads call back, one for each client."""

    def __init__(self, load: Load, recorder: Recorder) -> None:
        self._workload = load.workload
        self._recorder = recorder
        self._until = recorder.begin + load.seconds
        random_ = random.Random(load.seed)  # noqa: S311 -- load, not secrets
        self._choose = chooser(load.workload.distribution, load.workload.keys, random_)
        self._value = random_.randbytes(load.workload.value_bytes)
        self._lock = threading.Lock()  # guards the recorder and all below
        self._under_way = 0
        self.errors: list[str] = []

    def start(self, client: Any) -> None:
        """Send one set, and another one whenever it is answered."""
        with self._lock:
            self._under_way += 1
            path = _path(self._workload, self._choose())
        started = time.monotonic()
        client.set_async(path, self._value).rawlink(
            lambda result: self._answered(client, result, started)
        )

    def _answered(self, client: Any, result: Any, started: float) -> None:
        now = time.monotonic()
        with self._lock:
            self._under_way -= 1
            self._recorder.note("200" if result.successful() else "error", started, now - started)
            if not result.successful() and len(self.errors) < EXAMPLES_KEPT:
                self.errors.append(repr(result.exception))
        if now < self._until:
            self.start(client)

    def is_over(self) -> bool:
        """Whether nothing is under way any more."""
        with self._lock:
            return self._under_way == 0


def make(load: Load) -> Tally:
    """Make the load; ``connections`` is how many sets are under way."""
    clients = [_connected(address) for address in load.addresses[: load.connections]]
    try:
        recorder = Recorder(load, begin_together())
        sets = _Sets(load, recorder)
        time.sleep(max(0.0, recorder.begin - load.warmup_s - time.monotonic()))
        for number in range(load.connections):
            sets.start(clients[number % len(clients)])
        time.sleep(max(0.0, recorder.begin - time.monotonic()))
        cpu_before = cpu_s()
        deadline = recorder.begin + load.seconds + _DRAIN_S
        while not sets.is_over() and time.monotonic() < deadline:
            time.sleep(REPORT_EVERY_S)
            write(recorder.progress)
        cpu_used = cpu_s() - cpu_before
    finally:
        for client in clients:
            _end(client)
    return Tally(recorder.windows(), errors=sets.errors, cpu_s=cpu_used)


if __name__ == "__main__":
    write(make(read_load()))
