"""The pytest plugin (entry point ``raftkv``): a cluster for a test.

Every pytest run of everybody who has raftkv installed loads this module, so it imports nothing
but pytest until a test asks for a cluster.
"""

import sys
from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from raftkv.testing.local_cluster import LocalCluster


def pytest_configure(config: pytest.Config) -> None:
    """Make the marker known."""
    config.addinivalue_line(
        "markers",
        "raftkv_cluster(**settings): settings of raftkv.testing.LocalCluster for raftkv_cluster",
    )


@pytest.fixture
def raftkv_cluster(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> "Iterator[LocalCluster]":
    """A running cluster of three nodes, or as ``@pytest.mark.raftkv_cluster(nodes=5)`` says."""
    from raftkv.testing.local_cluster import LocalCluster  # noqa: PLC0415 -- see the module

    marker = request.node.get_closest_marker("raftkv_cluster")
    settings = {"directory": tmp_path_factory.mktemp("raftkv"), **(marker.kwargs if marker else {})}
    with LocalCluster(**settings) as cluster:
        yield cluster


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show what the nodes said beside a test that failed."""
    report = yield
    module = sys.modules.get("raftkv.testing.local_cluster")
    if module is not None and call.excinfo is not None:
        for value in getattr(item, "funcargs", {}).values():
            if isinstance(value, module.LocalCluster):
                for name, said in value.logs().items():
                    report.sections.append((f"raftkv node {name} ({call.when})", said))
    return report
