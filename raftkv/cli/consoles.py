"""Where commands write: a terminal has a width, files and pipes have none."""

import os

from rich.console import Console

_UNBOUNDED = 10_000
"""More columns than any table has: rich would fold at 80 where it does not know better."""


def console(*, stderr: bool = False, highlight: bool = True) -> Console:
    """Return standard output or standard error; ``COLUMNS`` decides where it is set."""
    made = Console(stderr=stderr, highlight=highlight)
    if not made.is_terminal and not os.environ.get("COLUMNS"):
        made.width = _UNBOUNDED
    return made
