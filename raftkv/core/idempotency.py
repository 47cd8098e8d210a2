"""Where the memory of outcomes was before :mod:`raftkv.core.shard`."""

from raftkv.core.shard.outcomes import MemoryLimits, OutcomeMemory, _answer

__all__ = ["MemoryLimits", "OutcomeMemory", "_answer"]
