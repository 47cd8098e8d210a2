"""The clients: threads that take operations from the workloads at a steady rate."""

import threading
import time
from collections.abc import Callable, Sequence
from random import Random
from types import TracebackType
from typing import Self

from raftkv.chaos.recorder import Recorder
from raftkv.chaos.store import Store
from raftkv.chaos.workloads import Workload

JOIN_S = 60.0
"""How long the last operations may take; far more than a client's own time-out."""
JOIN_INTERRUPTED_S = 1.0
"""The same if nobody wants to know any more."""


class Load:
    """Clients at work until :meth:`stop`.

    Args:
        connect: Makes the store of the client with this number.
        workloads: Each operation is of one of them, chosen anew.
        recorder: Performs and records.
        clients: How many, each with one operation at a time; process ``n`` is client ``n``.
        rate_per_s: Operations a second of all together, while the store keeps up.
        seed: Decides what each client does.
    """

    def __init__(
        self,
        connect: Callable[[int], Store],
        workloads: Sequence[Workload],
        recorder: Recorder,
        *,
        clients: int,
        rate_per_s: float,
        seed: int,
    ) -> None:
        self._connect = connect
        self._workloads = workloads
        self._recorder = recorder
        self._pause_s = clients / rate_per_s
        self._seed = seed
        self._stopping = threading.Event()
        self.crashes: list[Exception] = []
        """What ended a client other than :meth:`stop`: a fault of the harness."""
        self.unanswered = 0
        """Clients that were still waiting when :meth:`stop` gave up waiting for them."""
        self._threads = [
            threading.Thread(target=self._run, args=(n,), name=f"client {n}", daemon=True)
            for n in range(clients)
        ]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop(JOIN_S if kind is None else JOIN_INTERRUPTED_S)

    def stop(self, patience_s: float = JOIN_S) -> None:
        """Let every client finish its operation."""
        self._stopping.set()
        deadline = time.monotonic() + patience_s
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        self.unanswered = sum(thread.is_alive() for thread in self._threads)

    def _run(self, number: int) -> None:
        try:
            self._work(number, Random(f"{self._seed} client {number}"))  # noqa: S311 -- a seed
        except Exception as error:  # noqa: BLE001 -- told of by whoever waits for the clients
            self.crashes.append(error)

    def _work(self, number: int, random: Random) -> None:
        store = self._connect(number)
        try:
            while not self._stopping.wait(self._pause_s * random.uniform(0.5, 1.5)):
                operation = random.choice(self._workloads).next(number, random)
                if operation is not None:
                    self._recorder.perform(number, operation, store)
        finally:
            store.close()
