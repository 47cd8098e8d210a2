"""A node with a seeded bug: ``python tests/tools/bugged_node.py BUG serve --config node.toml``.

What stands after BUG is raftkv's own command line. The bug is in the engine's process only; HTTP
workers are programs of their own, and none of the bugs is theirs.
"""

import sys

from raftkv.cli.main import main
from tests.bugs.seeded_bugs import BUGS


def start(name: str) -> None:
    """Switch a bug on, in this process for good, then be raftkv."""
    if name not in BUGS:
        sys.exit(f"no such bug: {name}; use one of {', '.join(BUGS)}")
    BUGS[name](setattr)
    main()


if __name__ == "__main__":
    start(sys.argv.pop(1) if len(sys.argv) > 1 else "")
