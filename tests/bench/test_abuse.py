"""``raftkv bench abuse``: what it counts, what it judges, that each abuse really is one."""

import array
import asyncio
import contextlib
import io
import socketserver
import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner
from rich.console import Console

from raftkv.bench.cluster import throwaway_cluster, wait_leaders_home
from raftkv.bench.load.summary import summarize
from raftkv.bench.measure import Setting
from raftkv.bench.measures import abuse
from raftkv.bench.measures.abuse import (
    Bench,
    Found,
    Memory,
    Normal,
    Visitor,
    notes,
    prepare,
    run,
    table_of,
)
from raftkv.bench.measures.abuses import ABUSES, AbuseProcess, AbuseTarget, Order
from raftkv.bench.measures.bad_clients import read_answer
from raftkv.bench.report import Figure, Machine, Occasion, Report
from raftkv.cli.bench import bench_command

OCCASION = Occasion("2026-12-01T00:00:00+00:00", Machine(2, "Linux", "3.11", 0.5))
REFUSED = b"HTTP/1.1 431 Too Much\r\nContent-Length: 2\r\n\r\n{}"
WAIT_S = 20.0


def normal(*latencies: float, **errors: int) -> Normal:
    """What a normal client was told."""
    samples = Normal(summarize(latencies), errors)
    return msgspec.structs.replace(samples, latencies=array.array("f", latencies).tobytes())


GOOD = Found(
    abuse="shouting",
    alone=(normal(0.010, 0.010), normal(0.030)),
    beside=normal(0.010, 0.055),
    memory={"worker": Memory(200, 300), "engine": Memory(300, 300)},
    terms_changed=0,
    processes_ended=0,
    calm_again_s=0.5,
    deeds={"400": 7},
)


def answer_of(*data: bytes) -> str:
    """Read one answer that comes in these pieces, and then the end."""

    async def read() -> str:
        reader = asyncio.StreamReader()
        for piece in data:
            reader.feed_data(piece)
        reader.feed_eof()
        status = await read_answer(reader)
        assert await reader.read() == b"", "an answer is read whole"
        return status

    return asyncio.run(read())


# --- clients ----------------------------------------------------------------------------------


def test_answers_are_read_whole() -> None:
    """With a length, in chunks, or with nothing."""
    assert answer_of(REFUSED[:30], REFUSED[30:]) == "431"
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    assert answer_of(chunked, b"3\r\nabc\r\n", b"a\r\n0123456789\r\n0\r\n\r\n") == "200"
    assert answer_of(b"HTTP/1.1 204 No Content\r\n\r\n") == "204"


@pytest.mark.parametrize(
    "data", [b"", b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nshort", b"SSH-2.0\r\n"]
)
def test_an_answer_that_is_cut_is_none(data: bytes) -> None:
    """Who was thrown out knows it."""
    with pytest.raises(EOFError):
        answer_of(data)


class DullServer(socketserver.ThreadingTCPServer):
    """Refuses whatever has a head; ``asked`` is set once it has got something."""

    request_queue_size = 1024
    daemon_threads = False  # so that all are gone when it is closed

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Refuse)
        self.asked = threading.Event()


class _Refuse(socketserver.BaseRequestHandler):
    server: DullServer

    def handle(self) -> None:
        with contextlib.suppress(ConnectionError):  # they are rude
            while data := self.request.recv(2**16):
                self.server.asked.set()
                if b"\r\n\r\n" in data:
                    self.request.sendall(REFUSED)


@contextlib.contextmanager
def dull_server() -> Iterator[DullServer]:
    """One that serves while the block runs."""
    with DullServer() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize("name", list(ABUSES))
def test_every_abuse_comes_when_told_and_says_what_came_of_it(name: str) -> None:
    """In a process of its own, which goes on until it is ended, and is gone then."""
    assert (ABUSES[name].__doc__ or "\n").count("\n") == 0, "one line for the table"
    with dull_server() as server:
        address = ("127.0.0.1", server.server_address[1])
        target = AbuseTarget(address, address, ("wide/1", "wide/2"), places=20)
        with AbuseProcess(Order(name, target, WAIT_S)) as process:
            assert not server.asked.is_set()
            process.begin()
            assert server.asked.wait(WAIT_S)
            assert set(process.end()) <= {"431", "lost", "connections", "answers"}


def test_an_abuse_that_cannot_begin_is_told() -> None:
    """Nothing is measured beside nothing."""
    target = AbuseTarget(("127.0.0.1", 1), ("127.0.0.1", 1), (), places=1)
    with AbuseProcess(Order("no such abuse", target, 1.0)) as process:
        process.begin()
        with pytest.raises(ConnectionError, match="no such abuse failed"):
            process.end()


def test_a_visitor_tells_what_it_was_not_given() -> None:
    """Nobody listens: five errors a visit, by what was asked."""
    with Visitor(("127.0.0.1", 1)) as visitor:
        stop = threading.Event()
        while visitor.visits < 2:
            stop.wait(0.01)
    assert visitor.errors["GET /readyz: ConnectionRefusedError"] == visitor.visits
    assert sum(visitor.errors.values()) == 5 * visitor.visits


# --- judgement --------------------------------------------------------------------------------


def test_what_is_within_all_targets_is_met() -> None:
    """The p99 alone is of before and after together; a limit itself is within it."""
    assert GOOD.p99_alone_s == pytest.approx(0.030)
    assert GOOD.ratio == pytest.approx(0.055 / 0.030)
    assert GOOD.missed == []


@pytest.mark.parametrize(
    ("change", "missed"),
    [
        ({"beside": normal(0.01, unsent=1)}, "errors"),
        ({"beside": normal(0.01, 0.061)}, "p99 beside : alone"),
        ({"beside": normal()}, "p99 beside : alone"),
        ({"memory": {"worker": Memory(301, 300), "engine": Memory(1, 2)}}, "memory of workers"),
        ({"memory": {"worker": Memory(1, 2), "engine": Memory(301, 300)}}, "memory of engines"),
        ({"terms_changed": 1}, "terms changed"),
        ({"processes_ended": 1}, "processes ended"),
        ({"calm_again_s": None}, "calm again"),
    ],
)
def test_every_target_can_be_missed(change: dict[str, object], missed: str) -> None:
    """And is named in the table."""
    bad = msgspec.structs.replace(GOOD, **change)
    assert [figure.name for figure in bad.missed] == [missed]
    out = io.StringIO()
    Console(file=out, width=130).print(table_of([GOOD, bad]))
    good_line, bad_line = (line for line in out.getvalue().splitlines() if "shouting" in line)
    assert "met" in good_line
    assert "missed: " in bad_line


def test_notes_name_the_errors() -> None:
    """Of the normal client beside an abuse, and of the same alone: then the machine is to blame."""
    bad = msgspec.structs.replace(GOOD, beside=normal(0.01, unsent=3))
    alone = [normal(0.01), msgspec.structs.replace(normal(0.01), errors={"503": 2})]
    targets, while_alone, beside = notes([GOOD, bad], alone, 1000)
    assert "no error" in targets
    assert while_alone.endswith("2: 2 x 503.")
    assert beside == "shouting: instead of answers: 3 x unsent."


@pytest.mark.parametrize(("missed", "code"), [(0, 0), (1, 1)])
def test_the_exit_code_says_whether_a_target_was_missed(
    missed: int, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A script need not read the table."""
    figures = [Figure("met", 0, "", 0), Figure("perhaps", missed, "", 0), Figure("free", 9)]
    asked: list[tuple[str, ...]] = []

    def fake(names: tuple[str, ...], *_: object) -> Report:
        asked.append(names)
        return OCCASION.report("abuse", "raftkv bench abuse", figures, details={"found": [GOOD]})

    monkeypatch.setattr(abuse, "run", fake)
    chosen = CliRunner().invoke(bench_command, ["abuse", "--abuse", "nonsense"])
    assert chosen.exit_code == code
    assert "shouting" in chosen.output
    CliRunner().invoke(bench_command, ["abuse"])
    assert asked == [("nonsense",), tuple(ABUSES)]


def test_an_unknown_abuse_is_refused() -> None:
    """The message says what there is."""
    answer = CliRunner().invoke(bench_command, ["abuse", "--abuse", "kindness"])
    assert answer.exit_code == 2
    assert "large-gets" in answer.output


@pytest.mark.cluster
def test_one_abuse_beside_a_real_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is measured alone, beside, and alone again, and the abuser was answered."""
    monkeypatch.setattr(abuse, "SHARDS", 4)
    monkeypatch.setattr(abuse, "WIDE_VALUES", 4)
    setting = Setting(OCCASION, "raftkv bench abuse", tmp_path, lambda _line: None)
    report = run(("large-heads",), 1.0, setting)
    (found,) = report.details["found"]
    assert all(part.answered.count > 0 for part in (*found.alone, found.beside))
    assert found.beside.visits > 0
    assert found.memory["engine"].peak_bytes > 2**24
    assert set(found.deeds) <= {"431", "400", "lost"}
    assert found.deeds
    assert [figure.name.partition(": ")[0] for figure in report.figures] == ["large-heads"] * 7
    assert not any(tmp_path.iterdir())


@pytest.mark.cluster
def test_a_node_that_ends_beside_an_abuse_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its processes count, and it is started again for what comes next."""
    monkeypatch.setattr(abuse, "WIDE_VALUES", 4)
    with throwaway_cluster(tmp_path, shards=1) as cluster:
        wait_leaders_home(cluster)
        bench = Bench(cluster, prepare(cluster, 1000), 1.0)
        alone = bench.normal(1.0)
        begin = AbuseProcess.begin

        def begin_and_kill(process: AbuseProcess) -> None:
            begin(process)
            cluster.kill("n3")

        monkeypatch.setattr(AbuseProcess, "begin", begin_and_kill)
        found = bench.abused("foreign-pages", alone)
        monkeypatch.undo()
        assert found.processes_ended == 2
        assert "processes ended" in [figure.name for figure in found.missed]
        assert found.alone[1].answered.count > 0
        cluster.wait_ready(only=("n3",))
