"""What the judge says: of every part of a history, and of the whole."""

from dataclasses import dataclass
from enum import StrEnum


class Verdict(StrEnum):
    """The outcome of a search. ``UNKNOWN`` is never a pass: nothing was shown either way."""

    VALID = "valid"
    VIOLATION = "violation"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class PartResult:
    """What was found about the operations of one key, which are judged by themselves."""

    key: str | None
    verdict: Verdict
    operations: int
    """How many operations of the history belong to this key."""
    seconds: float
    """Time that the search took."""
    linearization: tuple[int, ...]
    """``Operation.index`` of the longest (partial) linearization found, in its order."""
    offending: int | None
    """``Operation.index`` of the first operation that could not be placed after it; None unless
    the verdict is a violation."""
    reason: str
    """One line for a person."""


@dataclass(frozen=True, slots=True)
class Result:
    """What was found about a history."""

    model: str
    verdict: Verdict
    operations: int
    parts: tuple[PartResult, ...]

    @classmethod
    def of(cls, model: str, parts: tuple[PartResult, ...]) -> "Result":
        """Sum the parts up: a violation anywhere decides, then anything unknown."""
        found = {part.verdict for part in parts}
        worst = next((v for v in (Verdict.VIOLATION, Verdict.UNKNOWN) if v in found), Verdict.VALID)
        return cls(model, worst, sum(part.operations for part in parts), parts)
