"""The pure heart: ring, map, operations, state machine; no socket, file, clock or thread."""
