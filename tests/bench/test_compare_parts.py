"""The pieces that a comparison is made of: what both sides are asked, and a small one with etcd."""

import contextlib
import json
import threading
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from raftkv.bench.compare.check_perf import throughput_in
from raftkv.bench.compare.rows import GROUPS, GROUPS_OF_PEER
from raftkv.bench.compare.run import Plan
from raftkv.bench.compare.stores import PEERS
from raftkv.bench.load.dialects import DIALECTS
from raftkv.bench.load.filling import FillError, fill_keys
from raftkv.bench.load.first_write import NoWriteError, first_write
from raftkv.bench.load.generator import Load, Recorder
from raftkv.bench.load.run_load import LoadError, run_load
from raftkv.bench.load.workload import Workload
from raftkv.cli.bench import bench_command
from raftkv.testing import ClusterError, LocalCluster
from raftkv.testing.ports import PortReservation
from tests.bench.test_http_load import OK, REFUSED, SILENCE, server

REQUEST = DIALECTS["raftkv"].put(b"key", b"v" * 16)


# --- the first write ----------------------------------------------------------------------------


def test_the_first_write_is_the_first_success() -> None:
    """Refusals and broken connections are tried again; the time is that of the answer."""
    begun = time.monotonic()
    with server(REFUSED, SILENCE, OK) as address:
        written = first_write((address,), REQUEST)
    assert begun < written < time.monotonic()


def test_a_node_that_is_not_there_does_not_hold_up_the_others() -> None:
    """Each node is asked by itself."""
    with contextlib.closing(_Reserved()) as nobody, server(OK) as address:
        first_write((nobody.address, address), REQUEST)


def test_a_write_that_never_succeeds_is_given_up() -> None:
    """Instead of trying for ever."""
    with server(REFUSED) as address, pytest.raises(NoWriteError, match="no write succeeded"):
        first_write((address,), REQUEST, give_up_s=0.2)


class _Reserved:
    """A port at which nobody listens."""

    def __init__(self) -> None:
        reservation = PortReservation(1)
        self.address = ("127.0.0.1", reservation.ports[0])
        self.close = reservation.release


# --- what generators have in common -------------------------------------------------------------


def test_all_generators_begin_when_the_slowest_is_ready() -> None:
    """However long a process takes to start, the whole time is measured, in all of them."""
    with server(OK) as address:
        load = Load((address,), 3, 1.0, rate=100.0)
        result = run_load(load, processes=3)
    assert sum(result.statuses.values()) == 3 * int(100.0 / 3)
    assert [second.accepted + second.failed for second in result.per_second] == [99]


def test_what_began_while_warming_up_is_not_kept() -> None:
    """It counts as progress only; the rest goes into the second of its intended start."""
    recorder = Recorder(Load((), 1, seconds=2.0), begin=100.0)
    assert recorder.note("200", 99.9, 0.5) is False
    assert recorder.note("200", 100.0, 0.5) is True
    assert recorder.note("503", 100.9, 0.5) is True
    assert recorder.note("200", 101.5, 0.25) is True
    first, second = recorder.windows()
    assert first.statuses == {"200": 1, "503": 1}
    assert second.statuses == {"200": 1}
    assert len(first.latencies) == len(second.latencies) == 4, "one single float each"
    assert (recorder.progress.answered, recorder.progress.failed) == (4, 1)


def test_progress_is_told_while_the_load_runs() -> None:
    """From the first quarter of a second on, with what has been answered so far."""
    seen: list[int] = []
    with server(OK) as address:
        load = Load((address,), 2, 1.0, warmup_s=0.2)
        result = run_load(load, progress=lambda progress: seen.append(progress.answered))
    assert len(seen) >= 2
    assert seen == sorted(seen)
    assert seen[-1] >= result.requests_per_s * load.seconds


def test_one_connection_takes_turns_at_all_nodes() -> None:
    """One request at a time, at each node in turn: else one connection would mean one node."""
    with server(OK) as first, server(REFUSED) as second:
        result = run_load(Load((first, second), 1, 0.5))
    assert abs(result.statuses["200"] - result.statuses["503"]) <= 1


def test_a_load_on_nobody_is_an_error(capfd: pytest.CaptureFixture[str]) -> None:
    """The generator says why, and the caller is told."""
    with contextlib.closing(_Reserved()) as nobody, pytest.raises(LoadError, match="ended with"):
        run_load(Load((nobody.address,), 1, 0.1))
    said = capfd.readouterr().err
    assert "could not be made: ConnectionRefusedError" in said
    assert "Traceback" not in said


def test_keys_that_cannot_be_put_are_an_error() -> None:
    """With the store's own words."""
    with server(REFUSED) as address, pytest.raises(FillError, match="overloaded"):
        fill_keys((address,), Workload(keys=1), "pysyncobj")


# --- what is compared with whom -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "writes_per_s"),
    [
        ("PASS: Throughput is 7985 writes/s", 7985),
        ("FAIL: Throughput too low: 2250 writes/s", 2250),
    ],
)
def test_what_check_perf_says_is_read(said: str, writes_per_s: float) -> None:
    """Whether etcd's authors are content with it or not."""
    assert throughput_in(f"60 / 60 s\n{said}\nPASS: Slowest request took 0.1s") == writes_per_s


@pytest.mark.parametrize(
    "said",
    [
        "FAIL: too many errors\nFAIL: ERROR(no space) -> 90\nFAIL: Throughput too low: 1 writes/s",
        "Error: context deadline exceeded",
    ],
)
def test_a_peer_that_refuses_is_an_error_and_no_slow_peer(said: str) -> None:
    """A full etcd must not make us look good."""
    with pytest.raises(ClusterError, match="check perf: "):
        throughput_in(said)


def test_every_peer_has_its_rows_and_steps_are_counted() -> None:
    """A pair is two runs; kills are counted by themselves."""
    assert set(PEERS) == set(GROUPS_OF_PEER)
    plan = Plan(("etcd", "zookeeper"), GROUPS, pairs=5, seconds=1, warmup_s=0, kills=20)
    of_etcd = 2 * (5 * (4 + 4 + 1 + 1 + 1) + 20)
    assert plan.steps() == of_etcd + 2 * 5 * 4


@pytest.mark.cluster
def test_the_python_client_makes_a_load(tmp_path: Path) -> None:
    """Threads that put through one client; every put is counted once."""
    with LocalCluster(tmp_path / "cluster", nodes=1, shards=1) as cluster:
        port = cluster.node("n1").http_port
        load = Load((("127.0.0.1", port),), 4, 0.5, warmup_s=0.2, carrier="client")
        result = run_load(load)
    assert result.failed == 0
    assert result.requests_per_s > 0
    assert threading.active_count() < 10, "the readers have ended"


@pytest.mark.cluster
def test_a_small_comparison_with_etcd(tmp_path: Path) -> None:
    """Both are loaded in turn, ratios come out, and nothing is left in the directory."""
    directory = tmp_path / "here"
    directory.mkdir()
    document = tmp_path / "compared.json"
    result = CliRunner().invoke(
        bench_command,
        [
            *("compare", "--rows", "batch", "--pairs", "1", "--duration", "0.2"),
            *("--warmup", "0.1", "--dir", str(directory), "--json", str(document)),
        ],
        catch_exceptions=False,
    )
    assert result.exit_code == 0, result.output
    assert "raftkv beside etcd" in result.output
    (comparison,) = json.loads(document.read_text())["details"]["comparisons"]
    throughput = comparison["compared"][0]
    assert throughput["measure"] == "throughput"
    assert len(throughput["ratios"]) == 1
    ((ours, theirs),) = comparison["readings"][throughput["row"]]
    assert ours["failed"] == theirs["failed"] == 0
    assert "etcd, idle" in ours["cores"]
    assert list(directory.iterdir()) == []


def test_a_peer_that_is_unknown_is_refused() -> None:
    """With the names that are known."""
    result = CliRunner().invoke(bench_command, ["compare", "--peers", "consul"])
    assert result.exit_code == 2
    assert "etcd, zookeeper, pysyncobj" in result.output
