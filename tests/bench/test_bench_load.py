"""``raftkv bench load`` on a real cluster: all that it says is there, no speed is judged."""

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from click.testing import CliRunner

from raftkv.cli.bench import bench_command
from raftkv.testing import LocalCluster

pytestmark = pytest.mark.cluster


def load(*arguments: str, json_path: Path) -> Any:
    """Run the command and return what it wrote into the file."""
    result = CliRunner().invoke(
        bench_command, ["load", *arguments, "--json", str(json_path)], catch_exceptions=False
    )
    assert result.exit_code == 0, result.output
    return json.loads(json_path.read_text())


def test_a_second_of_load_on_a_cluster_of_its_own(tmp_path: Path) -> None:
    """Table, document and picture; every request is answered; the directory is empty again."""
    directory = tmp_path / "here"
    directory.mkdir()
    document = load(
        *("--workload", "a", "--distribution", "zipfian", "--connections", "4", "--keys", "200"),
        *("--duration", "1", "--warmup", "0.2", "--dir", str(directory)),
        *("--picture", str(tmp_path / "load.svg")),
        json_path=tmp_path / "load.json",
    )
    result = document["details"]["result"]
    assert result["failed"] == 0
    assert set(result["statuses"]) == {"200"}, "every key was there before"
    assert sum(second["accepted"] for second in result["per_second"]) > 0
    latency = result["latency"]
    assert 0 < latency["p50_s"] <= latency["p99_s"] <= latency["max_s"]
    assert set(result["servers"]) == {"engine", "worker"}
    assert result["generator"]["us_per_request"] > 0
    assert ET.parse(tmp_path / "load.svg").getroot().tag.endswith("svg")  # noqa: S314 -- ours
    assert list(directory.iterdir()) == []


def test_other_workloads_on_a_cluster_that_runs(tmp_path: Path) -> None:
    """Stale reads, batches and pages are understood by a node; a batch counts its operations."""
    with LocalCluster(tmp_path / "cluster", nodes=1, shards=2) as cluster:
        for workload in ("get-stale", "batch", "scan"):
            document = load(
                *("--workload", workload, "--endpoints", cluster.urls[0], "--connections", "2"),
                *("--keys", "100", "--batch-size", "50", "--duration", "0.3", "--warmup", "0"),
                json_path=tmp_path / "load.json",
            )
            result = document["details"]["result"]
            assert set(result["statuses"]) == {"200"}
            operations = 50 if workload == "batch" else 1
            assert result["operations_per_s"] == result["requests_per_s"] * operations
            assert result["servers"] == {}
