"""What a node does about HTTP workers that did not take over what was reread."""

import asyncio
import signal
from pathlib import Path

import pytest
from msgspec.structs import replace

from raftkv.engine.config import (
    ClusterOptions,
    NodeConfig,
    NodeOptions,
    SecurityOptions,
    TokenOptions,
)
from raftkv.engine.jobs import ThreadJobs
from raftkv.engine.node import Node
from raftkv.engine.rereading import Reread, reread
from raftkv.engine.security import LinkSecurity
from raftkv.rpc import logs

REVOKED = TokenOptions(role="read", sha256="0" * 64, name="revoked")


class WorkersShortOfMemory:
    """The first succession fails, as no process can be started; the next does not."""

    def __init__(self) -> None:
        self.asked: list[NodeConfig] = []

    async def renew(self, config: NodeConfig) -> bool:
        """Remember what was asked for."""
        self.asked.append(config)
        return len(self.asked) > 1


class NoEngine:
    """Takes over anything."""

    def renew(self, config: NodeConfig, security: LinkSecurity) -> None:
        """Do nothing."""


def config_in(directory: Path) -> NodeConfig:
    """What one node is told."""
    return NodeConfig(
        cluster=ClusterOptions(id="c", nodes={"n1": "127.0.0.1:1"}, replicas=1),
        node=NodeOptions(name="n1", data_dir=str(directory)),
        security=SecurityOptions(secret="s" * 32),
    )


def test_a_node_that_starts_rereads_once_it_has_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What is in the files may be newer than what the start has read; the log says when it will."""
    caplog.set_level("INFO")
    config = config_in(tmp_path)

    async def scenario() -> None:
        go_on = asyncio.Event()

        async def start_slowly(node: Node, _: asyncio.AbstractEventLoop) -> None:
            node.__dict__.update(_jobs=ThreadJobs(asyncio.get_running_loop(), 1, "jobs"))
            await go_on.wait()

        def read_again() -> NodeConfig:
            raise OSError("no such file")

        async def said(text: str) -> None:
            while text not in caplog.text:  # noqa: ASYNC110 -- by a thread
                await asyncio.sleep(0.001)

        monkeypatch.setattr(Node, "_start", start_slowly)
        starting = asyncio.create_task(Node(config, read_again).start())
        await asyncio.sleep(0)
        signal.raise_signal(signal.SIGHUP)
        await said("SIGHUP: the configuration is reread when the node has started")
        assert "no such file" not in caplog.text
        go_on.set()
        await starting
        await said("nothing was taken over from the configuration: no such file")

    asyncio.run(scenario())


def test_workers_that_were_not_succeeded_are_with_the_next_reread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is the same as before then; a revoked token must not live on in the old workers."""
    monkeypatch.setattr(logs, "change", lambda *_: None)  # the log is that of all tests
    new = config_in(tmp_path)
    old = replace(new, security=replace(new.security, tokens=(REVOKED,)))

    async def scenario() -> None:
        node, workers = Node(old), WorkersShortOfMemory()
        node.__dict__.update(_engine=NoEngine(), _workers=workers)

        def again() -> Reread:
            return reread(node._config, new)

        await node._take_over(again())
        assert len(workers.asked) == 1
        await node._take_over(again())
        assert workers.asked == [new, new]
        await node._take_over(again())
        assert len(workers.asked) == 2

    asyncio.run(scenario())
