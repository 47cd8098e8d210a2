"""The clients: threads that go through workloads at a steady rate."""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from types import TracebackType
from typing import Self

from raftkv.chaos.play import play
from raftkv.chaos.recorder import Recorder
from raftkv.chaos.store import Store
from raftkv.workloads import WORKLOADS
from raftkv.workloads.keys import RotatingKeys
from raftkv.workloads.steps import Context

JOIN_S = 60.0
"""How long the last operations may take; far more than a client's own time-out."""
JOIN_INTERRUPTED_S = 1.0
"""The same if nobody wants to know any more."""


@dataclass(slots=True)
class LoadProcess:
    """One client as workloads see it."""

    number: int
    random: Random
    written: int = 0


class Load:
    """Clients at work until :meth:`stop`.

    Args:
        connect: Makes the store of the client with this number.
        workloads: The names of those of which one is chosen at each turn.
        keys: The keys that all clients work on.
        recorder: Writes the history.
        clients: How many, each with one operation at a time; process ``n`` is client ``n``.
        rate_per_s: Operations a second of all together, while the store keeps up.
        seed: Decides what each client does.
    """

    def __init__(
        self,
        connect: Callable[[int], Store],
        workloads: Sequence[str],
        keys: RotatingKeys,
        recorder: Recorder,
        *,
        clients: int,
        rate_per_s: float,
        seed: int,
    ) -> None:
        self._connect = connect
        self._workloads = workloads
        self._keys = keys
        self._banks: dict[str, object] = {}
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
        process = LoadProcess(number, random)
        context = Context(self._recorder.process(number), self._keys, banks=self._banks)
        try:
            while not self._stopping.wait(self._pause_s * random.uniform(0.5, 1.5)):
                workload = WORKLOADS[random.choice(self._workloads)]
                play(workload(process, context), store)
        finally:
            store.close()
