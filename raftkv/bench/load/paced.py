"""Load beside a measurement: paced writers, and filling a store in batches."""

import itertools
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Self

from raftkv.client import Client, Put, PutResult, RaftkvError

BATCH = 1000
_KEY_SPREAD = 0x9E3779B97F4A7C15
"""Odd, so multiplying by it is one to one modulo 2^64: distinct keys in an order like random."""


def key_of(number: int) -> bytes:
    """The 16 bytes of a key; consecutive numbers are far apart, as real keys are."""
    return b"%016x" % (number * _KEY_SPREAD % 2**64)


class PacedWriter:
    """Writes at a fixed rate from a few threads until it is stopped; remembers what was answered.

    Args:
        next_key: of each write; called by all threads in turn, under a lock.
        per_s: writes per second of all threads together.
    """

    def __init__(
        self,
        urls: Sequence[str],
        next_key: Callable[[], bytes],
        value: bytes,
        *,
        per_s: float,
        threads: int = 4,
    ) -> None:
        self.acknowledged: set[bytes] = set()
        self.failed = 0
        self._client = Client(urls)
        self._next_key = next_key
        self._value = value
        self._interval_s = threads / per_s
        self._stop = threading.Event()
        self._lock = threading.Lock()  # guards next_key and both counts
        self._threads = [
            threading.Thread(target=self._run, name=f"writer-{number}", daemon=True)
            for number in range(threads)
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
        self._stop.set()
        for thread in self._threads:
            thread.join()
        self._client.close()

    def _run(self) -> None:
        due = time.monotonic()
        while not self._stop.wait(max(0.0, due - time.monotonic())):
            # After a stall it goes on at its pace: catching up would be another load.
            due = max(due + self._interval_s, time.monotonic())
            with self._lock:
                key = self._next_key()
            try:
                self._client.put(key, self._value)
            except RaftkvError:
                with self._lock:
                    self.failed += 1
            else:
                with self._lock:
                    self.acknowledged.add(key)


def fill(
    urls: Sequence[str],
    keys: int,
    value: bytes,
    *,
    threads: int = 4,
    progress: Callable[[int], None],
) -> float:
    """Put ``keys`` keys in batches and return the seconds that it took.

    Raises:
        RaftkvError: One of them could not be written.
    """
    began = time.monotonic()
    with Client(urls, timeout_s=60.0, attempt_timeout_s=30.0) as client:

        def put(numbers: Sequence[int]) -> int:
            results = client.batch([Put(key_of(number), value) for number in numbers])
            for result in results:
                if isinstance(result, RaftkvError):
                    raise result
                assert isinstance(result, PutResult)  # noqa: S101 -- what a put answers
            return len(results)

        with ThreadPoolExecutor(threads) as pool:
            done = 0
            for count in pool.map(put, _batches(keys)):
                done += count
                progress(done)
    return time.monotonic() - began


def _batches(keys: int) -> Iterator[Sequence[int]]:
    for first in range(0, keys, BATCH):
        yield range(first, min(first + BATCH, keys))


def numbered_keys(prefix: bytes) -> Callable[[], bytes]:
    """New keys without end."""
    numbers = itertools.count()
    return lambda: prefix + b"%d" % next(numbers)
