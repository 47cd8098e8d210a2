"""Waiting for what the operating system or the cluster takes its time for."""

import time
from collections.abc import Callable

POLL_S = 0.05


def wait_until(condition: Callable[[], bool], timeout_s: float, poll_s: float = POLL_S) -> bool:
    """Whether ``condition`` comes to hold within ``timeout_s``."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(poll_s)
    return True
