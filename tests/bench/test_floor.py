"""The skeleton of a put: what it must do to be a floor, and what is said of it."""

import asyncio
import http.client
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from unittest import mock

import msgspec
import pytest

from raftkv.bench.cluster import NODES
from raftkv.bench.load.run_load import Cost, Latency, LoadResult
from raftkv.bench.load.summary import spread
from raftkv.bench.measures.floor import Pair, figures, running_skeleton
from raftkv.bench.measures.skeleton import ANSWER, Engine, Node, Stream
from raftkv.bench.turns import in_turns
from raftkv.interpreter import PYTHON_M


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the skeleton has its logs."""
    return tmp_path_factory.mktemp("skeleton")


@pytest.fixture(scope="module")
def addresses(directory: Path) -> Iterator[tuple[tuple[str, int], ...]]:
    """Three nodes that run."""
    with running_skeleton(directory) as (found, pids):
        assert {part: len(of_part) for part, of_part in pids.items()} == {
            "engine": NODES,
            "worker": NODES,
        }
        yield found


def logs_with(directory: Path, value: bytes) -> int:
    """How many of the logs hold ``value``."""
    return sum(value in log.read_bytes()[:65536] for log in directory.glob("*/*/log"))


def test_an_answer_comes_when_two_logs_have_the_request(
    directory: Path, addresses: tuple[tuple[str, int], ...]
) -> None:
    """By way of every node and, as requests take turns, of every leader."""
    for host, port in addresses:
        with closing(http.client.HTTPConnection(host, port, timeout=10)) as connection:
            for number in range(2 * NODES):
                value = f"value {number} through {port}".encode()
                connection.request("PUT", "/v1/kv/key", body=value)
                answer = connection.getresponse()
                assert (answer.status, answer.read()) == (200, ANSWER)
                assert logs_with(directory, value) >= 2


def test_one_copy_is_no_majority(tmp_path: Path) -> None:
    """Whoever waits is answered at the second, and nothing is kept after the third."""

    async def replies_after_each_copy() -> list[list[int]]:
        engine = Engine(Node(0, (1, 2, 3), 4, str(tmp_path)))
        replies: list[int] = []
        stream = mock.create_autospec(Stream, instance=True)
        stream.send.side_effect = lambda _, number: replies.append(number)
        engine._asked[1] = [(stream, 7)]
        seen = []
        for _ in range(NODES):
            engine._copied(1)
            seen.append(list(replies))
        assert not engine._asked
        assert not engine._copies
        return seen

    assert asyncio.run(replies_after_each_copy()) == [[], [7], [7]]


def result(requests_per_s: float) -> LoadResult:
    """A load of which only this matters."""
    cost = Cost(50.0, 0.5)
    return LoadResult(
        seconds=1.0,
        requests_per_s=requests_per_s,
        operations_per_s=requests_per_s,
        failed=0,
        statuses={"200": int(requests_per_s)},
        latency=Latency(0.001, 0.002, 0.003, 0.004, 0.005),
        per_second=[],
        generator=cost,
        generator_processes=1,
        servers={"engine": cost, "worker": cost},
        late_s_max=0.0,
        errors=[],
    )


def test_the_share_is_taken_within_pairs() -> None:
    """A machine that slows down does so for both."""
    pairs = [
        Pair(result(raftkv), result(skeleton))
        for raftkv, skeleton in ((100, 200), (50, 200), (300, 400))
    ]
    assert spread([pair.share for pair in pairs]) == "0.50 (0.25..0.75)"
    shown = {figure.name: figure.value for figure in figures(16, pairs)}
    assert shown["16 connections, raftkv: requests per second"] == 100
    assert shown["16 connections, skeleton: requests per second"] == 200
    assert shown["16 connections, skeleton: processor time of a request, worker"] == 50.0


def test_a_process_of_the_skeleton_ends_with_whoever_started_it() -> None:
    """Its standard input ends then, also where nobody was left to kill it."""
    command = [*PYTHON_M, "raftkv.bench.measures.skeleton", "worker"]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as process:  # noqa: S603 -- our own command
        try:
            process.communicate(msgspec.json.encode(Node(0, (1, 2, 3), 4, "/nowhere")), timeout=20)
            assert process.returncode == 0
        finally:
            process.kill()


def test_every_second_pair_begins_with_the_other() -> None:
    """And each result stays at its place."""
    order: list[str] = []

    def measured(name: str) -> str:
        order.append(name)
        return name

    for number in range(2):
        pair = in_turns(number, lambda: measured("ours"), lambda: measured("theirs"))
        assert pair == ("ours", "theirs")
    assert order == ["ours", "theirs", "theirs", "ours"]
