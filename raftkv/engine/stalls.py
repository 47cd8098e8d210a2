"""Who holds a place must go on: a way to tell when something has not for too long."""


class StallCounter:
    """Counts looks at something that should go on, between which it did not.

    Looks and not time: while this process was stopped, what it looks at may have been as well.

    Args:
        looks_max: after more looks than this without a change it is over.
    """

    def __init__(self, looks_max: int) -> None:
        self._looks_max = looks_max
        self._looks = 0
        self._count = 0

    def is_over(self, count: int) -> bool:
        """Look; ``count`` is how far it has come."""
        self._looks = 0 if count != self._count else self._looks + 1
        self._count = count
        return self._looks > self._looks_max
