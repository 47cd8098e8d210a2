"""What the front end needs of an engine: one call, asked from a coroutine or from a thread.

The front end depends on these protocols only and never imports the engine.
"""

import asyncio
import concurrent.futures
from typing import Protocol

from raftkv.rpc.messages import Failure, Reply, Request, Served

_GRACE_S = 1.0
"""The engine answers time-outs itself; waiting a little longer tells its answer from silence."""


class Engine(Protocol):
    """An engine, asked from the event loop."""

    async def call(self, request: Request, timeout_s: float, request_id: str = "") -> Reply:
        """Answer ``request`` within ``timeout_s``; errors are answers too, never exceptions."""
        ...


class SyncEngine(Protocol):
    """An engine, asked from a thread (the Flask side)."""

    def call(self, request: Request, timeout_s: float, request_id: str = "") -> Reply:
        """Answer ``request`` within ``timeout_s``; errors are answers too, never exceptions."""
        ...


class LoopBridge:
    """Lets threads ask an :class:`Engine` that lives on an event loop."""

    def __init__(self, engine: Engine, loop: asyncio.AbstractEventLoop, node_name: str) -> None:
        self._engine = engine
        self._loop = loop
        self._node_name = node_name

    def call(self, request: Request, timeout_s: float, request_id: str = "") -> Reply:
        """Ask on the loop and wait here; silence becomes an answer of unknown outcome."""
        calling = self._engine.call(request, timeout_s, request_id)
        future = asyncio.run_coroutine_threadsafe(calling, self._loop)
        try:
            return future.result(timeout_s + _GRACE_S)
        except concurrent.futures.TimeoutError:
            future.cancel()
            return Reply(
                id=0,
                response=Failure(code="timeout", detail="the engine did not answer in time"),
                served=Served(node=self._node_name),
            )
