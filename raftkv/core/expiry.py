"""Where a leader's clock was before :mod:`raftkv.core.shard`."""

from raftkv.core.shard.expiry import ExpiryClock

__all__ = ["ExpiryClock"]
