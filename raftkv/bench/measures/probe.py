"""A modest, steady load that finds stalls: single puts and linearizable gets at every node.

Open loop: each request has its moment, and latency counts from there. A request that had to wait
because the one before it was stalled was stalled too. The probe runs in a process of its own, and
beside the requests it notes how late it wakes up when nothing holds it up but the machine: without
that a busy machine would be mistaken for a stalled store.
"""

import gc
import itertools
import multiprocessing
import random
import sys
import threading
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Event
from types import TracebackType
from typing import NamedTuple, Self

from raftkv.bench.load.paced import key_of
from raftkv.bench.load.summary import Summary, summarize
from raftkv.client import Client, RaftkvError

PUT = "put"
GET = "get"
WAKE_UP = "wake-up"
"""Not a request: how late the probe itself woke up."""

TIMEOUT_S = 30.0
_SWITCH_S = 0.001
_START_S = 1.0
_LOOK_S = 0.1


class Sample(NamedTuple):
    """One request, or one wake-up; times are monotonic seconds, the same in all processes."""

    node: str
    kind: str
    intended: float
    latency_s: float
    error: str = ""

    @property
    def ended(self) -> float:
        """When it was answered."""
        return self.intended + self.latency_s


class Window(NamedTuple):
    """A stretch of time."""

    begun: float
    ended: float


def within(samples: Iterable[Sample], windows: Iterable[Window]) -> list[Sample]:
    """The samples that were under way at any moment of any of the windows."""
    all_windows = list(windows)
    return [
        sample
        for sample in samples
        if any(
            sample.intended < window.ended and sample.ended > window.begun for window in all_windows
        )
    ]


def latencies(samples: Iterable[Sample], *kinds: str) -> Summary:
    """Of the requests of these kinds; those that failed count too, their caller has waited."""
    return summarize([sample.latency_s for sample in samples if sample.kind in kinds])


class Plan(NamedTuple):
    """What the probe sends, and where; ``per_s`` is of each kind to each node."""

    urls: dict[str, str]
    keys: int
    value: bytes
    per_s: float


class Probe:
    """Runs the load from ``with`` on; :meth:`finish` returns what it saw.

    Args:
        urls: of each node, by name.
        keys: how many keys :func:`raftkv.bench.load.paced.fill` has put; the load uses these.
        per_s: requests of each kind to each node.
    """

    def __init__(self, urls: Mapping[str, str], *, keys: int, value: bytes, per_s: float) -> None:
        context = multiprocessing.get_context("spawn")
        self._stop = context.Event()
        self._wanted = {name: context.Event() for name in urls}
        self._results, sending = context.Pipe(duplex=False)
        self._process = context.Process(
            target=_run,
            args=(Plan(dict(urls), keys, value, per_s), self._wanted, self._stop, sending),
            daemon=True,
        )
        for name in urls:
            self.resume(name)

    def __enter__(self) -> Self:
        self._process.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.join()

    def pause(self, node: str) -> None:
        """Send nothing to a node that is about to be stopped."""
        self._wanted[node].clear()

    def resume(self, node: str) -> None:
        """Go on there."""
        self._wanted[node].set()

    def finish(self) -> list[Sample]:
        """End the load and return all samples."""
        self._stop.set()
        rows: list[tuple[str, str, float, float, str]] = self._results.recv()
        return [Sample(*row) for row in rows]


def _run(plan: Plan, wanted: dict[str, Event], stop: Event, results: Connection) -> None:
    """The probe's process: one thread for each kind of request at each node."""
    with suppress(KeyboardInterrupt):  # Ctrl-C reaches us too; our parent cleans up
        gc.freeze()
        gc.disable()  # a pause of ours would count as one of theirs
        sys.setswitchinterval(_SWITCH_S)
        begun = time.monotonic() + _START_S
        places = list(itertools.product(plan.urls, (PUT, GET)))
        lanes = [
            _Lane(plan, node, kind, begun=begun + number / len(places) / plan.per_s)
            for number, (node, kind) in enumerate(places)
        ]
        for lane in lanes:
            lane.start(wanted[lane.node], stop)
        samples = _wake_ups(begun, plan.per_s, stop)
        for lane in lanes:
            lane.join()
            samples += lane.samples
        results.send([tuple(sample) for sample in samples])


def _wake_ups(begun: float, per_s: float, stop: Event) -> list[Sample]:
    """Sleep until each moment and note how late it became; until the end."""
    samples = []
    for number in itertools.count():
        intended = begun + number / (2 * per_s)
        time.sleep(max(0.0, intended - time.monotonic()))
        samples.append(Sample("", WAKE_UP, intended, time.monotonic() - intended))
        if stop.is_set():
            return samples
    raise AssertionError("counting has no end")


class _Lane:
    """One kind of request to one node, one after the other, each with its moment."""

    def __init__(self, plan: Plan, node: str, kind: str, *, begun: float) -> None:
        self.node = node
        self.samples: list[Sample] = []
        self._plan = plan
        self._kind = kind
        self._begun = begun
        self._numbers = random.Random(f"{node} {kind}")  # noqa: S311 -- keys to touch, no secrets
        self._thread: threading.Thread | None = None

    def start(self, wanted: Event, stop: Event) -> None:
        """Send while it is wanted, until the end, on a thread."""
        self._thread = threading.Thread(target=self._send_all, args=(wanted, stop), daemon=True)
        self._thread.start()

    def join(self) -> None:
        """Wait for the end."""
        if self._thread is not None:
            self._thread.join()

    def _send_all(self, wanted: Event, stop: Event) -> None:
        plan, number = self._plan, 0
        url = plan.urls[self.node]
        with Client(url, timeout_s=TIMEOUT_S, attempt_timeout_s=TIMEOUT_S) as client:
            while not stop.is_set():
                if not wanted.is_set():
                    wanted.wait(_LOOK_S)
                    # What was not sent while the node was away is nobody's latency.
                    number = int((time.monotonic() - self._begun) * plan.per_s) + 1
                    continue
                intended = self._begun + number / plan.per_s
                time.sleep(max(0.0, intended - time.monotonic()))
                error = self._send(client)
                latency_s = time.monotonic() - intended
                self.samples.append(Sample(self.node, self._kind, intended, latency_s, error))
                number += 1

    def _send(self, client: Client) -> str:
        """Send one request; say what went wrong."""
        key = key_of(self._numbers.randrange(self._plan.keys))
        try:
            if self._kind == PUT:
                client.put(key, self._plan.value)
            elif client.get(key) is None:
                return "the key is not there"
        except RaftkvError as error:
            return f"{type(error).__name__}: {error}"
        return ""
