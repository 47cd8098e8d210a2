"""What makes a replica stop."""


class ReplicaError(Exception):
    """The replica cannot go on without breaking a promise; the node must stop."""
