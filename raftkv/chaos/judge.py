"""The verdict over a run: the clients' history, and whatever else must not have happened."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from raftkv.check.checker import check
from raftkv.check.history import Operation, read_history
from raftkv.check.models import MODELS
from raftkv.check.report import read_events, write_report
from raftkv.check.verdict import Result, Verdict

BUDGET_S = 120.0
"""For the search, all models together; a history that needs more is of unknown verdict."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """What a run has shown."""

    result: Result
    findings: tuple[str, ...] = ()
    """What was wrong beside the history: a node that died, replicas that differ."""
    operations: Sequence[Operation] = field(default=(), repr=False)

    @property
    def verdict(self) -> Verdict:
        """A finding is a violation too."""
        return Verdict.VIOLATION if self.findings else self.result.verdict

    @property
    def reasons(self) -> list[str]:
        """One line for each thing that is not as it should be.

        A search stops at a violation; the keys that it then leaves undecided are not listed.
        """
        worst = self.result.verdict
        if worst is Verdict.VALID:
            return [*self.findings]
        bad = [part for part in self.result.parts if part.verdict is worst]
        return [*self.findings, *(f"key {part.key}: {part.reason}" for part in bad)]


def judge(history: Path, findings: Sequence[str], budget_s: float = BUDGET_S) -> Judgement:
    """Judge each workload's operations by its model, named by the member ``model``."""
    operations = read_history(history, "raftkv")
    by_model: dict[str, list[Operation]] = defaultdict(list)
    for operation in operations:
        by_model[operation.fields["model"]].append(operation)
    results = [
        check(found, MODELS[model], budget_s=budget_s / len(by_model))
        for model, found in sorted(by_model.items())
    ]
    parts = tuple(part for result in results for part in result.parts)
    model = ", ".join(result.model for result in results)
    return Judgement(Result.of(model, parts), tuple(findings), operations)


def report(judgement: Judgement, directory: Path, title: str, facts: Mapping[str, str]) -> Path:
    """Write ``report.html`` beside the history."""
    path = directory / "report.html"
    write_report(
        path,
        judgement.operations,
        judgement.result,
        events=read_events(directory / "events.jsonl"),
        title=title,
        facts=facts,
        findings=judgement.findings,
    )
    return path
