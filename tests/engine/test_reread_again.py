"""What a node does about HTTP workers that did not take over what was reread."""

import asyncio
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


def test_workers_that_were_not_succeeded_are_with_the_next_reread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is the same as before then; a revoked token must not live on in the old workers."""
    monkeypatch.setattr(logs, "change", lambda *_: None)  # the log is that of all tests
    new = NodeConfig(
        cluster=ClusterOptions(id="c", nodes={"n1": "127.0.0.1:1"}, replicas=1),
        node=NodeOptions(name="n1", data_dir=str(tmp_path)),
        security=SecurityOptions(secret="s" * 32),
    )
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
