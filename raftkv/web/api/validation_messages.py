"""What is wrong with a body that does not fit, and what would have fitted."""

from collections.abc import Mapping, Sequence

Choices = Mapping[str, Sequence[str]]
"""The members that have only a few possible values, and which those are."""

_NOT_A_CHOICE = ("Invalid enum value ", "Invalid value ")
_PLACE = " - at `$"


def described(misfit: str, choices: Choices) -> str:
    """Return the decoder's message, with the possible values where it names none of them."""
    what, _, place = misfit.rpartition(_PLACE)
    possible = choices.get(place.rstrip("`").rpartition(".")[2])
    if possible is None or not what.startswith(_NOT_A_CHOICE):
        return misfit
    return f"{misfit}; it can be {', '.join(possible)}"
