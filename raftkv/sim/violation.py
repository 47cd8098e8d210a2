"""The one exception that means: raftkv broke a promise."""


class Violation(Exception):  # noqa: N818 -- it is what is found, not what went wrong
    """A promise that was broken, in one line."""
