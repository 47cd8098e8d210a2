"""A node that applies something else than the others: ``spoiled_node.py serve --config ...``.

It stores another value under keys that begin with ``spoil/``, which is what a bad memory or a bug
in a state machine would do. Only the digests of replicas can show it.
"""

from typing import Any

import msgspec

from raftkv.cli.main import main
from raftkv.core.operations import Put
from raftkv.core.shard.machine import StateMachine

PREFIX = b"spoil/"


def spoil() -> None:
    """Change what this process's state machines do, for good."""
    execute = StateMachine._execute

    def other(self: StateMachine, operation: Any) -> Any:
        if isinstance(operation, Put) and operation.key.startswith(PREFIX):
            operation = msgspec.structs.replace(operation, value=b"something else")
        return execute(self, operation)

    setattr(StateMachine, "_execute", other)  # noqa: B010 -- mypy forbids to assign it


if __name__ == "__main__":
    spoil()
    main()
