"""Node runtime: peer links, router, local RPC server, snapshots in the background."""
