"""Which tests may run side by side, when ``pytest -n 2`` spreads them over processes.

The tests of a file run one after the other in one process: what its module fixtures start is
started once, and no test need think of the others of its file. Files run side by side. What looks
at, or changes, something that the whole machine has only once says so by
``pytest.mark.machine_wide(reason)``; no two of these run at the same time.
"""

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put each test into the group with which it shares a process."""
    for item in items:
        file = item.nodeid.partition("::")[0]
        marked = item.get_closest_marker("machine_wide")
        item.add_marker(pytest.mark.xdist_group("machine_wide" if marked else file))
