"""The check of the load generator against wrk."""

import shutil
from pathlib import Path

import pytest

from raftkv.bench.load.run_load import LoadError
from raftkv.bench.load.summary import spread
from raftkv.bench.load.workload import Workload
from raftkv.bench.load.wrk import WrkResult, result_of, run_wrk
from raftkv.bench.measures.beside_wrk import Pair, Run, figures
from tests.bench.test_http_load import OK, REFUSED, server


def run_of(requests_per_s: float) -> Run:
    """A run that was as fast as this."""
    return Run(requests_per_s, 0.001, 0.002, 20.0, 100.0, 1)


def test_what_wrk_says_is_read() -> None:
    """Throughput counts what was answered well; times come in microseconds."""
    said = '{"requests":1000,"duration_us":2000000,"p50_us":1500,"p99_us":9000,"failed":100}\n'
    assert result_of("Running 2s test ...", said, 0.25) == WrkResult(
        requests_per_s=450.0, p50_s=0.0015, p99_s=0.009, failed=100, cpu_s=0.25, requests=1000
    )


def test_a_wrk_that_fails_is_no_result() -> None:
    """What it said instead is the message."""
    with pytest.raises(LoadError, match="unable to connect"):
        result_of("", "unable to connect to 127.0.0.1:1 Connection refused", 0.0)


def test_wrk_makes_puts_and_gets_only(tmp_path: Path) -> None:
    """Another workload would be another load under the same name."""
    with pytest.raises(ValueError, match="wrk makes get and put, not scan"):
        run_wrk(("127.0.0.1", 1), Workload("scan"), 1, 1, tmp_path)


def test_wrk_loads_a_server(tmp_path: Path) -> None:
    """The real wrk with our script: its requests are answered, and refusals are failures."""
    assert shutil.which("wrk"), "tests/install-tools installs it"
    workload = Workload("put", keys=10, value_bytes=16)
    with server(OK, REFUSED) as address:
        result = run_wrk(address, workload, 2, 1, tmp_path)
    assert result.requests > 10
    assert result.failed == pytest.approx(result.requests / 2, abs=1)
    assert 0 < result.p50_s <= result.p99_s < 1
    assert result.cpu_s > 0


def test_pairs_become_medians_and_a_ratio() -> None:
    """Of each generator the median of its runs; the ratio is that of pairs, with its range."""
    pairs = [
        Pair(run_of(90), run_of(100)),
        Pair(run_of(150), run_of(100)),
        Pair(run_of(100), run_of(200)),
    ]
    assert spread([pair.ratio for pair in pairs]) == "0.90 (0.50..1.50)"
    values = {figure.name: figure.value for figure in figures("put", pairs)}
    assert values["put by ours: requests per second"] == 100
    assert values["put by wrk: requests per second"] == 100
    assert values["put by wrk: requests failed"] == 3
