"""A node that applies something else than the others: ``spoiled_node.py serve --config ...``.

It stores another value under keys that begin with ``spoil/``, which is what a bad memory or a bug
in a state machine would do. Only the digests of replicas can show it.
"""

import msgspec

from raftkv.cli.main import main
from raftkv.core.operations import KeyValue, Put
from raftkv.core.shard.keyspace import Keyspace

PREFIX = b"spoil/"


def spoil() -> None:
    """Change what this process's state machines do, for good."""
    honest = Keyspace.put

    def put(self: Keyspace, put: Put, old: KeyValue | None, revision: int) -> int:
        if put.key.startswith(PREFIX):
            put = msgspec.structs.replace(put, value=b"something else")
        return honest(self, put, old, revision)

    setattr(Keyspace, "put", put)  # noqa: B010 -- mypy forbids to assign it


if __name__ == "__main__":
    spoil()
    main()
