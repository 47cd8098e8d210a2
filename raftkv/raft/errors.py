"""What makes a replica stop."""

from raftkv.core.errors import StartError


class ReplicaError(StartError):
    """The replica cannot go on without breaking a promise; the node must stop."""
