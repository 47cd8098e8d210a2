"""What a measurement is: what is done in a setting, and reports."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from raftkv.bench.report import Figure, Occasion, Report


class Setting(NamedTuple):
    """Where and by which command something is measured, and who hears how far it is."""

    occasion: Occasion
    command: str
    parent: Path | None
    """Beneath which clusters have their directories; None: where temporary files go."""
    progress: Callable[[str], None]

    def report(
        self,
        benchmark: str,
        figures: list[Figure],
        *,
        notes: list[str] | None = None,
        details: Mapping[str, Any] | None = None,
    ) -> Report:
        """Make the report."""
        return self.occasion.report(benchmark, self.command, figures, notes=notes, details=details)


Measure = Callable[[Setting], Report]
"""A measurement with all its options; it may raise ClusterError, LoadError or FillError."""
