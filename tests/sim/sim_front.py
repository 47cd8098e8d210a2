"""Clients in front of one simulated node."""

import asyncio
from random import Random

from sim_parts import Bench, Cluster, small_options

from raftkv.rpc.messages import (
    GetRequest,
    Request,
    Response,
)
from raftkv.sim.client import ClientNetwork
from raftkv.sim.front_end import Lost

READ = GetRequest(b"k")


class Front:
    """The real way to a real node, and a client's loop."""

    def __init__(self, seed: int = 1) -> None:
        self.cluster = Cluster(small_options(seed))
        self.bench = Bench(scheduler=self.cluster.world.scheduler)
        self.loop = self.bench.loop
        self.client_network = ClientNetwork(self.bench.scheduler, self.loop, Random(1))

    def ask(
        self,
        request: Request = READ,
        remaining_ms: int = 2000,
    ) -> "asyncio.Task[Response]":
        """Ask the node; read a key, unless something else is asked for."""
        return self.loop.create_task(
            self.client_network.ask(self.cluster.machine, request, remaining_ms)
        )

    def lost(self, task: "asyncio.Task[Response]") -> bool:
        """Whether the request had been sent when the answer was lost."""
        error = task.exception()
        assert isinstance(error, Lost)
        return error.sent
