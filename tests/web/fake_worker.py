"""A real HTTP worker process over the fake engine; tests start it and speak to its port.

Reads a WebConfig from standard input, as the real one does. A line ``ready`` says that it serves;
end of the second descriptor given stands for the loss of the engine.
"""

import asyncio
import os
import sys

import uvloop

from raftkv.web import worker
from tests.support.fake_engine import AsyncFace, FakeEngine


async def _run() -> int:
    config = worker.read_config()
    engine = FakeEngine()
    engine.delay_s = float(os.environ.get("FAKE_ENGINE_DELAY_S", "0"))
    gone = asyncio.Event()
    if "FAKE_ENGINE_FD" in os.environ:
        fd = int(os.environ["FAKE_ENGINE_FD"])
        asyncio.get_running_loop().add_reader(fd, gone.set)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    return await worker.serve(config, AsyncFace(engine), gone)


worker.prepare_process()
os._exit(uvloop.run(_run()))
