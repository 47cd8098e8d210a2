"""Everything in this folder starts real processes."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from raftkv.testing import LocalCluster


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of this folder, so that ``-m 'not cluster'`` leaves them out."""
    here = Path(__file__).parent
    for item in items:
        if item.path.is_relative_to(here):
            item.add_marker(pytest.mark.cluster)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    """A cluster of three nodes shared by the tests of a module, which leave all nodes running."""
    with LocalCluster(tmp_path_factory.mktemp("shared")) as shared:
        yield shared
