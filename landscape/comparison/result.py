"""What a comparison has found: numbers, differences, pictures in one page."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from landscape.comparison.differences import Difference, Differences
from landscape.plots import RunReport
from landscape.plots import report as write_report
from landscape.plots.tables import Table, methods_table
from landscape.results.types import LossPath, Sharpness


@dataclass(frozen=True, repr=False)
class Comparison:
    """What was measured of each model; prints itself as a table."""

    runs: dict[str, RunReport] = field(default_factory=dict)
    files: dict[str, Path] = field(default_factory=dict)
    sharpness: dict[str, list[Sharpness]] = field(default_factory=dict)
    """Every measure, by model."""
    paths: dict[tuple[str, str], LossPath] = field(default_factory=dict)
    """The straight line between two models, by their names."""
    left_out: dict[str, str] = field(default_factory=dict)
    """What was not measured, and why."""
    chosen: Table | None = None
    """How much was measured, how long it was to take and took."""
    command: str = ""
    """That repeats all of it."""
    found: tuple[Difference, ...] = ()
    notes: tuple[str, ...] = ()

    def differences(self) -> Differences:
        """Return how every model differs from the reference, number by number, with errors of the differences themselves."""
        return Differences(self.found, self.notes)

    def table(self) -> str:
        """Return one line per model: accuracies, curvature and sharpness with their error bars, and what they cost."""
        return methods_table(list(self.runs.values())).text()

    def tables(self) -> dict[str, Table]:
        """Return further tables by title: differences, how much was measured, and what was left out."""
        tables = {f"Difference: {title}": table for title, table in self.differences().tables().items()}
        if self.chosen is not None:
            tables["How much was measured"] = self.chosen
        return tables

    def report(self, path: str | Path) -> Path:
        """Write one HTML page that compares the runs and needs no network; return its path."""
        return write_report(list(self.runs.values()), path, command=self.command, tables=self.tables())

    def __repr__(self) -> str:
        return self.table()

    def _repr_html_(self) -> str:
        """Show the table in a notebook; every text in it is only text."""
        from landscape.plots.display import table_html

        return table_html(methods_table(list(self.runs.values())))
