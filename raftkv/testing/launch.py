"""Starts a process that cannot outlive its starter: ``... launch [--clock LIBRARY] -- COMMAND``.

The kernel kills it when the thread that started it ends, however that ends, also while it is
stopped by SIGSTOP. With ``--clock`` its wall clock follows a file beside the configuration
that the command names last (``clock``, a number of seconds such as ``-3600``) by libfaketime; the
monotonic clock is left alone.
"""

import ctypes
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from raftkv.interpreter import PYTHON_M

CLOCK_OPTION = "--clock"
CLOCK_FILE = "clock"
_PR_SET_PDEATHSIG = 1

COMMAND = (*PYTHON_M, "raftkv.testing.launch")


def launcher(command: Sequence[str], faketime: Path | None) -> tuple[str, ...]:
    """The command that starts ``command`` this way; ``faketime`` is the library, if wanted."""
    clock = () if faketime is None else (CLOCK_OPTION, str(faketime))
    return (*COMMAND, *clock, "--", *command)


def die_with_parent() -> None:
    """Have the kernel kill this process when its parent is gone; survives exec."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")


def clock_environment(library: str, clock: Path) -> Mapping[str, str]:
    """What libfaketime wants to be told."""
    return {
        "LD_PRELOAD": library,
        "FAKETIME_TIMESTAMP_FILE": str(clock),
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "FAKETIME_CACHE_DURATION": "1",
    }


def main(arguments: Sequence[str]) -> None:
    """Become the command after ``--``."""
    split = arguments.index("--")
    options, command = arguments[:split], arguments[split + 1 :]
    parent = os.getppid()
    die_with_parent()
    if os.getppid() != parent:
        sys.exit("the starter was gone before this began")
    environment = dict(os.environ)
    if CLOCK_OPTION in options:
        library = options[options.index(CLOCK_OPTION) + 1]
        clock = Path(command[-1]).with_name(CLOCK_FILE)
        environment.update(clock_environment(library, clock))
    os.execvpe(command[0], list(command), environment)  # noqa: S606 -- our starter's command


if __name__ == "__main__":
    main(sys.argv[1:])
