"""raftkv: a Raft-replicated, sharded, strongly consistent key-value store."""

from raftkv.version import __version__

__all__ = ["__version__"]
