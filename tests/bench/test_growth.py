"""What ``raftkv bench growth`` computes, and that its smallest step runs."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from raftkv.bench.load.run_load import Cost, Latency, LoadResult
from raftkv.bench.measure import Setting
from raftkv.bench.measures.growth import Plan, Usage, bytes_per_key, run, sent_bytes, sizes, step_of
from raftkv.bench.report import Occasion
from raftkv.cli.bench import bench_command


def load_result(*, operations_per_s: float, seconds: float, engine_cores: float) -> LoadResult:
    """A load of single puts."""
    return LoadResult(
        seconds=seconds,
        requests_per_s=operations_per_s,
        operations_per_s=operations_per_s,
        failed=0,
        statuses={},
        latency=Latency(),
        per_second=[],
        generator=Cost(None, 0.0),
        generator_processes=1,
        servers={"engine": Cost(None, engine_cores)},
        late_s_max=0.0,
        errors=[],
    )


def test_costs_are_of_one_operation_on_one_node() -> None:
    """Bytes are spread over the warm-up of a second too, processor time over what is measured."""
    result = load_result(operations_per_s=1000, seconds=4, engine_cores=0.6)
    step = step_of("x", result, (Usage(0, 500), Usage(1_500_000, 3_000_500)), 300, nodes=3)
    assert step.cpu_us == {"engine": pytest.approx(200)}
    assert step.peer_bytes == pytest.approx(100)
    assert step.disk_bytes == pytest.approx(200)
    assert step.memory_bytes == 100


def test_what_cannot_be_known_is_not_a_number() -> None:
    """Nothing was done, or nobody counts the bytes."""
    result = load_result(operations_per_s=0, seconds=4, engine_cores=0.6)
    step = step_of("x", result, (Usage(None, 0), Usage(None, 9)), 3, nodes=3)
    assert (step.cpu_us, step.peer_bytes, step.disk_bytes) == ({"engine": None}, None, None)


def test_memory_per_key_is_the_slope_between_the_ends() -> None:
    """What an empty node takes does not count."""
    assert bytes_per_key({1000: 5_000_000, 11_000: 7_000_000}) == 200
    assert bytes_per_key({1000: 5_000_000}) is None


def test_only_the_sockets_of_the_nodes_are_added_up() -> None:
    """Process 12 is not process 123."""
    sockets = (
        'ESTAB 0 0 a b users:(("x",pid=12,fd=3)) bytes_sent:100 bytes_acked:99\n'
        'ESTAB 0 0 a b users:(("x",pid=123,fd=3)) bytes_sent:1000\n'
        'ESTAB 0 0 a b users:(("x",pid=12,fd=4)) bytes_received:7\n'
    )
    assert sent_bytes(sockets, [12]) == 100


def test_keys_stop_at_the_bound() -> None:
    """Memory has an end."""
    assert sizes("keys", Plan(keys_max=10**4)) == (10**3, 10**4)


def test_an_unknown_direction_is_refused() -> None:
    """The message says what there is."""
    answer = CliRunner().invoke(bench_command, ["growth", "--only", "shards,depth"])
    assert answer.exit_code == 2
    assert "'depth' is none of shards, keys" in answer.output


@pytest.mark.cluster
def test_the_smallest_step_on_a_real_cluster(tmp_path: Path) -> None:
    """It counts something in every column."""
    plan = Plan(only=("shards",), seconds=1.0, steps_max=1)
    report = run(plan, Setting(Occasion.now(), "raftkv bench growth", tmp_path, lambda _line: None))
    (step,) = report.details["steps"]
    assert step.operations_per_s > 0
    assert step.cpu_us["engine"] > 0
    assert step.memory_bytes > 0
