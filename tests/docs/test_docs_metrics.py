"""docs/metrics.md beside what three real nodes expose."""

import re
import urllib.request
from pathlib import Path

import pytest

from raftkv.testing import LocalCluster

pytestmark = pytest.mark.cluster

PAGE = Path(__file__).resolve().parents[2] / "docs" / "metrics.md"


def documented() -> set[str]:
    """Names in the tables; ``raftkv_x_a`` beside ``_b`` in one cell also names ``raftkv_x_b``."""
    names = set[str]()
    for cell in re.findall(r"(?m)^\| (`raftkv_.*?`) \|", PAGE.read_text()):
        first, *others = re.findall(r"`([a-z_]+)(?:\{[a-z,]+\})?`", cell)
        names.add(first)
        for other in others:
            names.add(other if other.startswith("raftkv_") else first.rpartition("_")[0] + other)
    return names


def exposed(cluster: LocalCluster) -> set[str]:
    """Names of all families, of all nodes: only leaders have some of them."""
    text = "".join(
        urllib.request.urlopen(f"{url}/metrics").read().decode()  # noqa: S310 -- our own node
        for url in cluster.urls
    )
    return set(re.findall(r"(?m)^# TYPE (raftkv_\w+) ", text))


def test_every_metric_is_documented_and_every_documented_one_exists(
    raftkv_cluster: LocalCluster,
) -> None:
    """A new metric gets a row; a row whose metric is gone goes with it."""
    raftkv_cluster.client().put("k", "v")
    assert exposed(raftkv_cluster) == documented()
