"""Reading request bodies on the event loop: bounded in size, in time and in total memory.

A client that sends its body a byte a second costs a coroutine here, never a thread, and only
until its time is up.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from raftkv.web.api.limits import BodyLimit
from raftkv.web.api.problems import HttpError
from raftkv.web.api.routes import too_large

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]

_SWEEP_EVERY_S = 0.25


def _broken_off() -> HttpError:
    """Return the error for a body that ended early: a client that left, or no HTTP."""
    return HttpError(
        "invalid",
        "the body broke off before it was complete",
        headers=((b"connection", b"close"),),
    )


class BodyIntake:
    """Reads bodies for one worker and keeps account of what they hold.

    One sweep for all slow readers, instead of a timer for each request: nearly every body is
    there at once, and arming and cancelling a timer would cost more than the rest of the read.
    """

    def __init__(self, *, timeout_s: float, bytes_max: int) -> None:
        self._timeout_s = timeout_s
        self._bytes_max = bytes_max
        self._deadlines: dict[asyncio.Task[Any], float] = {}
        self._expired: set[asyncio.Task[Any]] = set()
        self._armed = False
        self.bytes_held = 0

    async def read(self, receive: Receive, limit: BodyLimit, length: int | None = None) -> bytes:
        """Return the whole body; the caller gives it back with :meth:`release`.

        ``length``, if it is known, tells that nothing more comes: the server only says so in a
        message of its own, for which its threads and this loop would have to wake once more.

        Raises:
            HttpError: 413 over ``limit``, 408 too slow, 503 too many bodies in memory, 400
                if it broke off.
        """
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("bodies are read in tasks only")
        self._deadlines[task] = time.monotonic() + self._timeout_s
        if not self._armed:
            self._arm()
        held = 0
        try:
            message = await receive()
            body: bytes = message.get("body", b"")
            held = self._hold(body, 0, limit)
            if held == length:
                return body
            chunks = [body]
            while message["type"] == "http.request" and message.get("more_body", False):
                message = await receive()
                chunks.append(message.get("body", b""))
                held = self._hold(chunks[-1], held, limit)
                if held == length:
                    break
        except asyncio.CancelledError:
            self.release(held)
            if task not in self._expired:
                raise
            task.uncancel()
            raise self._too_slow() from None
        except HttpError:
            self.release(held)
            raise
        finally:
            del self._deadlines[task]
            self._expired.discard(task)
        if message["type"] != "http.request":
            self.release(held)
            raise _broken_off()
        return b"".join(chunks)

    def release(self, size: int) -> None:
        """Give back ``size`` bytes of a body that is not needed any more."""
        self.bytes_held -= size

    def _hold(self, chunk: bytes, held: int, limit: BodyLimit) -> int:
        if held + len(chunk) > limit.bytes_max:
            raise too_large(limit)
        if self.bytes_held + len(chunk) > self._bytes_max:
            raise HttpError(
                "overloaded",
                "this worker holds as many request bodies as it may",
                headers=((b"connection", b"close"),),
            )
        self.bytes_held += len(chunk)
        return held + len(chunk)

    def _too_slow(self) -> HttpError:
        return HttpError(
            "request_timeout",
            f"the body was not complete within {self._timeout_s:g} s",
            headers=((b"connection", b"close"),),
        )

    def _arm(self) -> None:
        self._armed = True
        asyncio.get_running_loop().call_later(_SWEEP_EVERY_S, self._sweep)

    def _sweep(self) -> None:
        self._armed = False
        now = time.monotonic()
        for task, deadline in self._deadlines.items():
            if deadline < now and task not in self._expired:
                self._expired.add(task)
                task.cancel()
        if self._deadlines:
            self._arm()
