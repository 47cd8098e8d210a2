"""raftkv: a Raft-replicated, sharded, strongly consistent key-value store."""

import sys
from typing import TYPE_CHECKING

from raftkv.version import __version__

if TYPE_CHECKING:
    from raftkv.client import (
        AccessError,
        BusyError,
        Client,
        Compare,
        CrossShardError,
        DefiniteError,
        Delete,
        DeleteResult,
        DiskFullError,
        Get,
        InvalidRequestError,
        KeyReusedError,
        KeyValue,
        NotFoundError,
        NotModified,
        PreconditionFailedError,
        Put,
        PutResult,
        RaftkvError,
        Range,
        RangeResult,
        ServerError,
        TooLargeError,
        TxnResult,
        UnavailableError,
        UnknownOutcomeError,
    )

__all__ = [
    "AccessError",
    "BusyError",
    "Client",
    "Compare",
    "CrossShardError",
    "DefiniteError",
    "Delete",
    "DeleteResult",
    "DiskFullError",
    "Get",
    "InvalidRequestError",
    "KeyReusedError",
    "KeyValue",
    "NotFoundError",
    "NotModified",
    "PreconditionFailedError",
    "Put",
    "PutResult",
    "RaftkvError",
    "Range",
    "RangeResult",
    "ServerError",
    "TooLargeError",
    "TxnResult",
    "UnavailableError",
    "UnknownOutcomeError",
    "__version__",
]

# Type checkers take a module's __getattr__ for leave to use any name at all.
if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        """Import the client on first use: servers and the command line start without it."""
        if name not in __all__:
            raise AttributeError(
                f"module {__name__!r} has no attribute {name!r}",
                name=name,
                obj=sys.modules[__name__],
            )
        from raftkv import client  # noqa: PLC0415 -- lazily is the point

        return getattr(client, name)

    def __dir__() -> list[str]:
        """All names, also those that are not imported yet."""
        return sorted({*globals(), *__all__})
