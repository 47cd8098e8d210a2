"""Two things measured in turns, on a machine that is faster at one time than at another."""

from collections.abc import Callable
from typing import TypeVar

_Ours = TypeVar("_Ours")
_Theirs = TypeVar("_Theirs")


def in_turns(
    number: int, ours: Callable[[], _Ours], theirs: Callable[[], _Theirs]
) -> tuple[_Ours, _Theirs]:
    """Measure both; every second pair begins with theirs: what drifts is unfair to neither."""
    if number % 2 == 0:
        return ours(), theirs()
    measured = theirs()
    return ours(), measured
