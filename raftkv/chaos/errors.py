"""Why a run cannot be made; the message is one line for the person who asked."""


class ChaosError(Exception):
    """The run cannot start or go on; the message says what to do."""
