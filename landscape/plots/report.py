"""One HTML page that compares runs: it needs no network, and every text in it is only text."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from markupsafe import Markup

from landscape.plots.interactive import environment, json_element, library, script_hashes, template_text
from landscape.plots.saving import write_whole
from landscape.plots.sections import Command, Sections
from landscape.plots.style import INK, MISSING, PAPER
from landscape.plots.tables import Table, measures_table, methods_table, origins_table, results_of, settings_table
from landscape.results.types import (
    CurvatureTrace,
    Eigenpairs,
    GradientTrace,
    LossPath,
    Sharpness,
    SpectralDensity,
    Subsampled,
    Surface,
    TraceEstimate,
    TrainingHistory,
)


@dataclass(frozen=True)
class RunReport:
    """What is known of one run; whatever was not measured is None or empty."""

    name: str
    training: TrainingHistory | None = None
    eigen: Eigenpairs | None = None
    trace: TraceEstimate | None = None
    density: SpectralDensity | None = None
    sharpness: Mapping[int, Sharpness] = field(default_factory=dict)
    """By m."""
    surfaces: Mapping[str, Surface] = field(default_factory=dict)
    """By name; lines and planes."""
    gradients: GradientTrace | None = None
    command: str = ""
    """The command that repeats the run; where a result names its own, that counts."""
    attributes: Mapping[str, Any] = field(default_factory=dict)
    """Anything else worth showing; `train_accuracy` and `test_accuracy`, between 0 and 1, take precedence over the history's last row."""
    curvature: CurvatureTrace | None = None
    paths: Mapping[str, LossPath] = field(default_factory=dict)
    """By name; curves between minima and trajectories."""
    file: Path | None = None
    """Where the results lie."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """How it was trained."""
    measures: Mapping[str, Sharpness | Subsampled] = field(default_factory=dict)
    """Further measures by name, for a table of their own."""
    epochs: Mapping[int, RunReport] = field(default_factory=dict)
    """The same run at earlier moments of its training: their surfaces and spectra get a slider."""


def report(
    runs: Sequence[RunReport] | Mapping[str, RunReport],
    path: str | Path,
    *,
    title: str = "Loss landscapes compared",
    command: str = "",
    tables: Mapping[str, Table] | None = None,
) -> Path:
    """Write one page with the table, every figure, what was measured on what, and how to repeat it.

    Args:
        runs: the runs, in the order in which to show them.
        path: the page to write; missing folders are made.
        title: of the page.
        command: that writes this page again.
        tables: further tables by title, such as paired differences, shown after the first one.

    Returns:
        The path.

    Raises:
        TypeError: something that is no `RunReport`.
        ValueError: no runs, or two of one name.
    """
    given = list(runs.values()) if isinstance(runs, Mapping) else list(runs)
    for run in given:
        if not isinstance(run, RunReport):
            raise TypeError(f"runs must hold landscape.plots.RunReport, got {type(run).__name__}")
    if not given:
        raise ValueError("runs is empty: give at least one RunReport")
    names = [run.name for run in given]
    if len(set(names)) < len(names):
        raise ValueError(f"runs must have different names, got {names}")
    sections = Sections(given)
    further, measures = dict(tables or {}), measures_table(given)
    if measures.rows:
        further["Every measure of sharpness"] = measures
    moving = [part.live for section in sections for part in section.parts if part.live]
    scripts = [*([library(), template_text("interactive.js")] if moving else []), template_text("report.js")]
    page = (
        environment()
        .get_template("report.html.jinja")
        .render(
            title=title,
            runs=given,
            table=methods_table(given),
            tables=further,
            settings=settings_table(given),
            origins=origins_table(given),
            sections=sections,
            repeats=_repeats(given, command),
            style=Markup(template_text("interactive.css") + template_text("report.css")),
            data=json_element({live.key: live.figures for live in moving}, themes={t: [INK[t], PAPER[t], MISSING[t]] for t in INK}),
            scripts=[Markup(script) for script in scripts],
            hashes=script_hashes(scripts),
        )
    )
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    write_whole(target, lambda beside: beside.write_bytes(page.encode("utf-8", "replace")))
    return target


def _repeats(runs: Sequence[RunReport], command: str) -> list[Command]:
    """Return every command that measured something, and of which runs; then those that draw all and write the page."""
    made: dict[str, dict[str, dict[str, None]]] = {}
    for run in runs:
        if run.command and not any(results_of(run).values()):
            made.setdefault(run.command, {})[run.name] = {}
        for about, results in results_of(run).items():
            for result in results:
                if text := result.provenance.command or run.command:
                    made.setdefault(text, {}).setdefault(run.name, {})[about] = None
    found = []
    for text, of in made.items():
        by_kind: dict[str, list[str]] = {}
        for name, kinds_of in of.items():
            by_kind.setdefault(", ".join(kinds_of), []).append(name)
        found.append(
            Command("; ".join(f"{', '.join(names)}: {kinds}" if kinds else ", ".join(names) for kinds, names in by_kind.items()), text)
        )
    files = [run.file for run in runs]
    if all(file is not None for file in files):
        found.append(Command("Every figure as PDF and PNG", shlex.join(["landscape", "plot", *map(str, files), "--out", "figures"])))
    return found + ([Command("This page", command)] if command else [])
