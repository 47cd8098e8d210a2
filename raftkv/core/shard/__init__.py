"""One shard's state: what its log does to it, and the snapshots that stand for the log."""
