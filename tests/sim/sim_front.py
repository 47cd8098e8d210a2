"""Clients in front of one simulated node."""

import asyncio
from random import Random

from sim_parts import Bench, Cluster, small_options

from raftkv.rpc.messages import (
    GetRequest,
    Response,
)
from raftkv.sim.client import Doors, Lost


class Front:
    """Real doors to a real node, and a client's loop."""

    def __init__(self) -> None:
        self.cluster = Cluster(small_options())
        self.bench = Bench(scheduler=self.cluster.world.scheduler)
        self.loop = self.bench.loop
        self.doors = Doors(self.bench.scheduler, self.loop, Random(1))

    def ask(self, remaining_ms: int = 2000) -> "asyncio.Task[Response]":
        """Read a key."""
        return self.loop.create_task(
            self.doors.ask(self.cluster.machine, GetRequest(b"k"), remaining_ms)
        )

    def lost(self, task: "asyncio.Task[Response]") -> bool:
        """Whether the request had been sent when the answer was lost."""
        error = task.exception()
        assert isinstance(error, Lost)
        return error.sent
