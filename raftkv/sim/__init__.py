"""Small deterministic world: simulated clock, disk and network."""
