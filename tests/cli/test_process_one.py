"""A command as process 1, as in a container: a signal is not lost because it comes early."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

UNSHARE = shutil.which("unshare")
BEGINS = """
import raftkv.cli, time
print("begun", flush=True)
time.sleep(60)
"""


@pytest.mark.skipif(os.getuid() != 0 or UNSHARE is None, reason="only root makes namespaces")
def test_a_command_that_is_starting_ends_on_sigterm() -> None:
    """The kernel drops what process 1 has no handler for."""
    assert UNSHARE is not None
    outside = subprocess.Popen(  # noqa: S603 -- our own
        [UNSHARE, "--pid", "--fork", sys.executable, "-c", BEGINS], stdout=subprocess.PIPE
    )
    assert outside.stdout is not None
    assert outside.stdout.readline() == b"begun\n"
    children = Path(f"/proc/{outside.pid}/task/{outside.pid}/children").read_text("ascii")
    os.kill(int(children), signal.SIGTERM)
    outside.communicate(timeout=20)
    assert outside.returncode == 128 + signal.SIGTERM
