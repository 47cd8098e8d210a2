"""What a peer says beside Raft and calls may be of another version: its link stays."""

from types import SimpleNamespace

import msgspec
import pytest

from raftkv.engine.balancer import NodeState
from raftkv.engine.engine import Engine
from raftkv.engine.peer_wire import CHANNEL_LEADERSHIP, CHANNEL_NODE_STATE


class Hears:
    """In place of the balancer: what was understood."""

    def __init__(self) -> None:
        self.heard: list[object] = []

    def hear(self, peer: str, state: NodeState) -> None:
        """Remember it."""
        self.heard.append((peer, state))

    def hear_of(self, word: object) -> None:
        """Remember it."""
        self.heard.append(word)

    def full_peers(self) -> frozenset[str]:
        """Nobody."""
        return frozenset()


@pytest.mark.parametrize(
    ("channel", "payload"),
    [
        (CHANNEL_NODE_STATE, b"\xc1"),
        (CHANNEL_NODE_STATE, msgspec.msgpack.encode({"has_space": "much"})),
        (CHANNEL_LEADERSHIP, msgspec.msgpack.encode(["moved", 1])),
        (61, b"of a later version"),
    ],
)
def test_what_cannot_be_understood_is_ignored_in_one_line(
    channel: int, payload: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """Raising would close the link, and Raft's messages would be lost with it."""
    engine, balancer = object.__new__(Engine), Hears()
    engine.__dict__.update(_balancer=balancer, host=SimpleNamespace(full_peers=None))
    engine.on_message("n2", channel, payload)
    assert balancer.heard == []
    (line,) = caplog.messages
    assert "n2" in line
    state = NodeState(has_space=True, stopping=False)
    engine.on_message("n2", CHANNEL_NODE_STATE, msgspec.msgpack.encode(state))
    assert balancer.heard == [("n2", state)]
