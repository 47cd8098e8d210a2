"""When the first write succeeds: after a leader was killed, or while a cluster starts."""

import asyncio
import time
from collections.abc import Sequence

from raftkv.bench.load.http_load import is_complete

EVERY_S = 0.02


class NoWriteError(Exception):
    """No write succeeded in time."""


def first_write(
    addresses: Sequence[tuple[str, int]], request: bytes, *, give_up_s: float = 30.0
) -> float:
    """Return the monotonic time at which some node has first said that a write is done.

    Every 20 ms the write is sent anew to each of the nodes on a new connection, while the earlier
    ones may still wait: what is measured is the cluster, not how a client waits between tries.

    Args:
        addresses: Of the nodes that are asked.
        request: The whole HTTP request.
        give_up_s: How long to try.

    Raises:
        NoWriteError: None succeeded.
    """
    return asyncio.run(_first(addresses, request, give_up_s))


async def _first(addresses: Sequence[tuple[str, int]], request: bytes, give_up_s: float) -> float:
    begun = time.monotonic()
    tries: set[asyncio.Task[float | None]] = set()
    try:
        while time.monotonic() - begun < give_up_s:
            tries |= {asyncio.create_task(_try(address, request)) for address in addresses}
            ended, tries = await asyncio.wait(
                tries, timeout=EVERY_S, return_when=asyncio.FIRST_COMPLETED
            )
            written = [task.result() for task in ended]
            if times := [moment for moment in written if moment is not None]:
                return min(times)
            await asyncio.sleep(EVERY_S if ended else 0)
    finally:
        for task in tries:
            task.cancel()
        await asyncio.gather(*tries, return_exceptions=True)
        await asyncio.sleep(0)  # for connections to be gone
    raise NoWriteError(f"no write succeeded within {give_up_s:.0f} s")


async def _try(address: tuple[str, int], request: bytes) -> float | None:
    """Send the request once; return when it has succeeded, None if it has not."""
    try:
        reader, writer = await asyncio.open_connection(*address)
    except OSError:
        return None
    try:
        writer.write(request)
        answer = b""
        while not is_complete(answer):
            data = await reader.read(2**16)
            if not data:
                return None
            answer += data
        return time.monotonic() if answer[9:10] == b"2" else None
    except OSError:
        return None
    finally:
        writer.transport.abort()
