"""Puts every key of a workload once, so that reads find them."""

import itertools
import socket
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from raftkv.bench.load.dialects import DIALECTS, Dialect
from raftkv.bench.load.http_load import is_complete
from raftkv.bench.load.workload import Workload

CONNECTIONS = 4
CONNECTIONS_WITHOUT_BATCHES = 64
_BATCH = 100
_BATCH_BYTES = 2**20
_TRIES = 5
_TIMEOUT_S = 30.0


class FillError(Exception):
    """Keys could not be put; the message has the answer."""


def fill_keys(
    addresses: Sequence[tuple[str, int]],
    workload: Workload,
    dialect: str = "raftkv",
    *,
    progress: Callable[[int], None] = lambda _done: None,
) -> None:
    """Put keys 0 to ``workload.keys - 1``, in batches where the store has them.

    Args:
        addresses: Of the nodes, which take turns.
        workload: Whose keys.
        dialect: How the store wants to be asked.
        progress: Called with how many keys are there now.

    Raises:
        FillError: A write was refused again and again.
    """
    asked = DIALECTS[dialect]
    requests = list(_requests(workload, asked))
    connections = CONNECTIONS if asked.has_batches else CONNECTIONS_WITHOUT_BATCHES
    done = itertools.count(1)

    def send_all(number: int) -> None:
        address = addresses[number % len(addresses)]
        with socket.create_connection(address, _TIMEOUT_S) as connection:
            for request in requests[number::connections]:
                _send(connection, request, asked)
                progress(min(workload.keys, next(done) * _size(workload, asked)))

    with ThreadPoolExecutor(connections) as pool:
        list(pool.map(send_all, range(connections)))


def _size(workload: Workload, dialect: Dialect) -> int:
    """Keys in one request."""
    if not dialect.has_batches:
        return 1
    return max(1, min(_BATCH, _BATCH_BYTES // (2 * workload.value_bytes + 1)))


def _requests(workload: Workload, dialect: Dialect) -> Iterator[bytes]:
    value = b"v" * workload.value_bytes
    size = _size(workload, dialect)
    for first in range(0, workload.keys, size):
        keys = [workload.key(n) for n in range(first, min(first + size, workload.keys))]
        if dialect.has_batches:
            yield dialect.batch([(key, value) for key in keys])
        else:
            yield from (dialect.put(key, value) for key in keys)


def _send(connection: socket.socket, request: bytes, dialect: Dialect) -> None:
    answer = b""
    for _ in range(_TRIES):
        connection.sendall(request)
        answer = connection.recv(2**16)
        while answer and not is_complete(answer):
            answer += connection.recv(2**16)
        is_whole = dialect.part_failed is None or dialect.part_failed not in answer
        if answer[9:10] == b"2" and is_whole:
            return
    raise FillError(f"a key could not be put: {answer[-300:].decode(errors='replace')}")
