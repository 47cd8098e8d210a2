"""raftkv: a Raft-replicated, sharded, strongly consistent key-value store."""

from typing import TYPE_CHECKING, Any

from raftkv.version import __version__

if TYPE_CHECKING:
    from raftkv.client import Client

__all__ = ["Client", "__version__"]


def __getattr__(name: str) -> Any:
    """Import the client on first use: servers and the command line start without it."""
    if name == "Client":
        from raftkv.client import Client  # noqa: PLC0415 -- lazily is the point

        return Client
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
