"""Making a connection to a peer: each step has its own time, and the log says which was slow."""

import asyncio
import logging
import socket
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pytest
import uvloop
from test_late_connect import NoBook, NoHandler

from raftkv.cli.certs import make_certificates
from raftkv.engine.config import RaftOptions
from raftkv.engine.handshake import LinkHello
from raftkv.engine.jobs import ThreadJobs
from raftkv.engine.links import LinkLimits, PeerLinks
from raftkv.engine.network import ConnectDeadlines, TcpNetwork, TooSlow
from raftkv.engine.node import _seams
from raftkv.engine.security import LinkSecurity, peer_contexts
from raftkv.storage.disk import RealDisk

T = TypeVar("T")
SHORT_S = 0.05


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run on the loop of production, and fail if it hangs."""

    async def bounded() -> T:
        async with asyncio.timeout(20):
            return await main

    return uvloop.run(bounded())


class SlowNames(TcpNetwork):
    """Looks names up when it is told to, and counts how often it was asked."""

    def __init__(self, deadlines: ConnectDeadlines) -> None:
        super().__init__(deadlines)
        self.told = asyncio.Event()
        self.asked = 0

    async def _look_up(self, host: str, port: int) -> Sequence[Any]:
        del host
        self.asked += 1
        await self.told.wait()
        return await super()._look_up("127.0.0.1", port)


def no_protocol() -> asyncio.BufferedProtocol:
    """A protocol for a connection that a test only wants to be made."""
    return asyncio.BufferedProtocol()


def test_a_slow_name_takes_nothing_from_the_time_to_connect() -> None:
    """A look-up that takes longer than a connection may is waited for all the same."""

    async def main() -> None:
        network = SlowNames(ConnectDeadlines(resolve_s=20.0, connect_s=SHORT_S, tls_s=SHORT_S))
        loop = asyncio.get_running_loop()
        loop.call_later(4 * SHORT_S, network.told.set)
        with socket.create_server(("127.0.0.1", 0)) as listening:
            await network.connect(no_protocol, "slow.example", listening.getsockname()[1], None)

    run(main())


def test_who_asks_again_for_a_slow_name_waits_for_the_same_look_up() -> None:
    """There are few threads for look-ups, and none can be ended."""

    async def main() -> None:
        network = SlowNames(ConnectDeadlines(resolve_s=SHORT_S, connect_s=1.0, tls_s=1.0))
        with socket.create_server(("127.0.0.1", 0)) as listening:
            port = listening.getsockname()[1]
            for _ in range(3):
                with pytest.raises(TooSlow, match=r"looking up the name slow\.example took more"):
                    await network.connect(no_protocol, "slow.example", port, None)
            assert network.asked == 1
            network.told.set()
            await network.connect(no_protocol, "slow.example", port, None)
            assert network.asked == 1

    run(main())


def test_an_address_is_not_looked_up() -> None:
    """Names that are slow must not keep those from connecting that need none."""

    async def main() -> None:
        network = SlowNames(ConnectDeadlines())
        with socket.create_server(("127.0.0.1", 0)) as listening:
            await network.connect(no_protocol, "127.0.0.1", listening.getsockname()[1], None)
        assert network.asked == 0

    run(main())


def test_an_address_that_does_not_answer_is_followed_by_the_next() -> None:
    """Each has its own time; where none answers, the last failure is said."""

    async def main() -> None:
        full = socket.socket()
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        waiting = [socket.socket() for _ in range(8)]  # nobody accepts them, and there is no room
        for each in waiting:
            each.settimeout(0)
            each.connect_ex(full.getsockname())
        with socket.create_server(("127.0.0.1", 0)) as listening:

            class TwoAddresses(TcpNetwork):
                async def _look_up(self, host: str, port: int) -> Sequence[Any]:
                    del host
                    return [
                        (socket.AF_INET, socket.SOCK_STREAM, 0, "", full.getsockname()),
                        (socket.AF_INET, socket.SOCK_STREAM, 0, "", listening.getsockname()),
                    ][: port or 2]

            network = TwoAddresses(ConnectDeadlines(connect_s=SHORT_S))
            await network.connect(no_protocol, "two.example", 0, None)
            with pytest.raises(TooSlow, match=r"connecting to 127\.0\.0\.1 took more"):
                await network.connect(no_protocol, "two.example", 1, None)
        for each in (*waiting, full):
            each.close()

    run(main())


@pytest.mark.parametrize("step", ["name", "tls"])
def test_the_warning_says_which_step_was_too_slow(
    step: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """An operator looks at the name server then, or at the other node."""
    caplog.set_level(logging.WARNING)
    deadlines = ConnectDeadlines(resolve_s=SHORT_S, connect_s=SHORT_S, tls_s=SHORT_S)
    make_certificates(tmp_path, {"a": ["localhost"], "b": ["localhost"]})
    tls = peer_contexts(*(tmp_path / name for name in ("ca.crt", "a.crt", "a.key")))

    async def main(listening: socket.socket) -> None:
        network = SlowNames(deadlines) if step == "name" else TcpNetwork(deadlines)
        links = PeerLinks(
            hello=LinkHello("c", "a", "identity"),
            peers={"b": ("localhost", listening.getsockname()[1])},
            listen=("127.0.0.1", 0),
            security=LinkSecurity(secret=None, tls=tls),
            identities=NoBook(),
            handler=NoHandler(),
            network=network,
            limits=LinkLimits(reconnect_s=0.01),
        )
        await links.start()
        while "cannot be reached" not in caplog.text:  # noqa: ASYNC110 -- a log line has no event
            await asyncio.sleep(0.01)
        await links.close()

    with socket.create_server(("127.0.0.1", 0)) as listening:  # accepts, and says nothing
        run(main(listening))
    said = {"name": "looking up the name localhost took more than", "tls": "handshake"}
    assert said[step] in caplog.text


def test_times_of_links_follow_those_of_raft() -> None:
    """A link is not lost for a silence that leaders are forgiven, and a handshake is waited for."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        jobs = ThreadJobs(loop, 1, "jobs")
        usual = _seams(loop, RealDisk(), jobs, RaftOptions())
        patient = _seams(
            loop,
            RealDisk(),
            jobs,
            RaftOptions(
                heartbeat_ms=500, election_timeout_ms_min=8000, election_timeout_ms_max=16000
            ),
        )
        assert usual.link_limits.dead_after_s == 1.0
        assert patient.link_limits.dead_after_s == 8.0
        assert patient.link_limits.ping_interval_s == 2.0
        assert patient.link_limits.hello_deadline_s == 32.0
        assert isinstance(usual.network, TcpNetwork)
        assert isinstance(patient.network, TcpNetwork)
        assert usual.network._deadlines == ConnectDeadlines()
        assert patient.network._deadlines == ConnectDeadlines(80.0, 16.0, 32.0)
        for seams in (usual, patient):
            assert seams.link_limits.connect_deadline_s > seams.network._deadlines.tls_s  # type: ignore[attr-defined]
            seams.sync_jobs.close()
            seams.other_jobs.close()

    run(main())


def test_a_round_trip_of_a_quarter_second_with_tls_is_no_hindrance() -> None:
    """TCP takes one, TLS two, and the hello between nodes three."""
    deadlines, limits = ConnectDeadlines(), LinkLimits()
    assert deadlines.connect_s > 0.25 + 1.0, "a SYN that is lost comes again after a second"
    assert deadlines.tls_s > 3 * 0.25
    assert limits.hello_deadline_s > 4 * 0.25
