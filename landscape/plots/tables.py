"""Numbers with their error bars, as text: the tables of the report."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np

from landscape.results.numbers import NONE, with_error
from landscape.results.types import Cost, Provenance, Result, Sharpness

if TYPE_CHECKING:
    from landscape.plots.report import RunReport


@dataclass(frozen=True)
class Table:
    """Rows of text under column heads; the first column names the row."""

    heads: list[str]
    rows: list[list[str]]
    notes: list[str]

    def text(self) -> str:
        """Return the table for a terminal."""
        every = [self.heads, *self.rows]
        widths = [max(len(row[i]) for row in every) for i in range(len(self.heads))]
        lines = [
            "  ".join(cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True)))
            for row in every
        ]
        return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:], *self.notes])


def accuracy(run: RunReport, part: str) -> float | None:
    """Return the accuracy on "train" or "test" data at the end of the run."""
    given = run.attributes.get(f"{part}_accuracy")
    if isinstance(given, (int, float, np.number)):
        return float(given)
    history = getattr(run.training, f"{part}_accuracy", None)
    return float(history[-1]) if history is not None and len(history) else None


def methods_table(runs: Sequence[RunReport]) -> Table:
    """Return what was measured of each run, with its error bar; columns that no run has are left out."""
    sizes = sorted({m for run in runs for m in run.sharpness})
    heads = ["method", "train acc.", "test acc.", "λ_max ± residual", "trace ± s.e."]
    heads += [f"sharpness, m = {m} ± s.e." for m in sizes] + ["training (s)", "gradients"]
    rows, notes = [], []
    for run in runs:
        row = [run.name] + [
            NONE if (a := accuracy(run, part)) is None or not math.isfinite(a) else f"{100 * a:.2f} %" for part in ("train", "test")
        ]
        eigen, trace, history = run.eigen, run.trace, run.training
        biggest = int(np.argmax(eigen.values)) if eigen is not None and len(eigen.values) else None
        if eigen is None or biggest is None:
            row.append(NONE)
        else:
            text = with_error(eigen.values[biggest], eigen.residuals[biggest])
            if eigen.which == "magnitude" and eigen.values[biggest] < 0:  # all others are no larger than the smallest found
                text = f"≤ {abs(eigen.values).min():.4g}"
            row.append(text + ("" if eigen.converged else " *"))
        row.append(NONE if trace is None else with_error(trace.value, trace.stderr) + ("" if trace.converged else " *"))
        row += [with_error(s.value, s.stderr) if (s := run.sharpness.get(m)) else NONE for m in sizes]
        ended = history is not None and len(history.epoch) > 0
        row.append(f"{history.seconds[-1]:.3g}" if ended and history is not None and np.isfinite(history.seconds[-1]) else NONE)
        row.append(
            f"{history.gradients_computed[-1]:,.0f}"
            if ended and history is not None and np.isfinite(history.gradients_computed[-1])
            else NONE
        )
        rows.append(row)
    if any(cell.endswith("*") for row in rows for cell in row[1:]):
        notes.append("* has not reached its tolerance: the error bar is larger than what was asked for.")
    rhos = sorted({s.rho for run in runs for s in run.sharpness.values()})
    if rhos:
        notes.append(f"Sharpness at ρ = {', '.join(f'{rho:g}' for rho in rhos)}; s.e. is one standard error, over shards or probes.")
    if any("gradients" in head for head in heads):
        notes.append("Gradients are counted in batches, over the whole training.")
    keep = [i for i in range(len(heads)) if i == 0 or any(row[i] != NONE for row in rows)]
    return Table([heads[i] for i in keep], [[row[i] for i in keep] for row in rows], notes)


def measures_table(runs: Sequence[RunReport]) -> Table:
    """Return the further measures of each run with their standard errors, one in a row; a measure of several numbers has a row for each."""
    rows: dict[str, list[str]] = {}
    for column, run in enumerate(runs):
        for name, found in run.measures.items():
            if isinstance(found, Sharpness):
                cells = {name: with_error(found.value, found.stderr)}
            else:
                kinds = f"{len(found.per_part)} parts"
                texts = [f"{found.measure} over {kinds}", *(f"{found.measure} over {kinds}, {i + 1}" for i in range(1, len(found.values)))]
                cells = {text: with_error(v, e) for text, v, e in zip(texts, found.values, found.stderr, strict=True)}
            for text, cell in cells.items():
                rows.setdefault(text, [NONE] * len(runs))[column] = cell
    notes = ["± is one standard error: over shards or draws, or over the choice of the examples."] if rows else []
    return Table(["measure", *(run.name for run in runs)], [[text, *cells] for text, cells in rows.items()], notes)


def settings_table(runs: Sequence[RunReport]) -> Table:
    """Return how each run was trained: first the settings that differ, then those that all share."""
    keys = dict.fromkeys(str(key) for run in runs for key in run.settings)
    rows = [[key.replace("_", " "), *(_setting(run.settings.get(key)) for run in runs)] for key in keys]
    rows = [row for row in rows if any(cell != NONE for cell in row[1:])]
    rows.sort(key=lambda row: len(set(row[1:])) == 1)
    return Table(["", *(run.name for run in runs)], rows, [])


def _setting(value: object) -> str:
    if isinstance(value, Mapping):
        value = [f"{key} {entry}" for key, entry in value.items()]
    if isinstance(value, list | tuple):
        return ", ".join(_short(entry) for entry in value) or NONE
    return NONE if value is None or value == "" else _short(value)


_LABELS = {
    "model": "model",
    "parameters": "parameters",
    "parameter_sha256": "parameters' SHA-256",
    "data_sha256": "data's SHA-256",
    "examples": "examples",
    "batch_norm": "batch norm",
    "batch_size": "batch size",
    "varied_sha256": "varied parameters' SHA-256",
    "loss_at_parameters": "loss at the weights",
    "seed": "seed",
    "dtype": "numbers",
    "device": "device",
    "created_at": "measured at",
    "torch_version": "torch",
    "numpy_version": "numpy",
    "creation_library": "written by",
    "creation_library_version": "its version",
}


def results_of(run: RunReport) -> dict[str, list[Result]]:
    """Return the results of a run by what they are about."""
    found: dict[str, list[Any]] = {
        "training": [run.training],
        "Hessian": [run.eigen, run.trace, run.density],
        "sharpness": list(run.sharpness.values()),
        "surfaces": list(run.surfaces.values()),
        "paths": list(run.paths.values()),
        "gradients": [run.gradients],
        "curvature while training": [run.curvature],
        "further measures": list(run.measures.values()),
    }
    there = {about: [result for result in results if result is not None] for about, results in found.items()}
    return {about: results for about, results in there.items() if results}


def origins_table(runs: Sequence[RunReport]) -> Table:
    """Return what each run was measured on, and what it cost; where its measurements differ, each says its own."""
    rows: list[list[str]] = []
    for entry in fields(Provenance):
        if entry.name == "command":  # each figure says its own
            continue
        row = [_origin(run, entry.name) for run in runs]
        if any(cell != NONE for cell in row):
            rows.append([_LABELS.get(entry.name, entry.name), *row])
    for key in dict.fromkeys(str(key) for run in runs for key in run.attributes):
        rows.append([key.replace("_", " "), *(_short(run.attributes.get(key, NONE)) for run in runs)])
    for about in dict.fromkeys(about for run in runs for about in results_of(run)):
        costs = [_cost(results_of(run).get(about, [])) for run in runs]
        if any(cost != NONE for cost in costs):
            rows.append([f"cost of {about}", *costs])
    on = {
        about: {frozenset(r.provenance.data_sha256 for r in results_of(run).get(about, [])) - {""} for run in runs} - {frozenset()}
        for about in ("Hessian", "sharpness")
    }
    notes = ["A forward, a gradient or a product with the Hessian (hvp) is counted as one where it goes over the whole data once."]
    notes += (
        ["The runs were not all measured on the same data: compare them with care."] if any(len(sets) > 1 for sets in on.values()) else []
    )
    return Table(["", *(run.name for run in runs)], rows, notes)


def _origin(run: RunReport, name: str) -> str:
    values: dict[str, list[str]] = {}
    for about, results in results_of(run).items():
        for result in results:
            value = getattr(result.provenance, name)
            if value not in (None, "", 0) or (name == "seed" and value == 0):
                values.setdefault(_short(value), []).append(about)
    if name == "created_at":
        return min(values, default=NONE)
    if len(values) <= 1:
        return next(iter(values), NONE)
    return "; ".join(f"{value} ({', '.join(dict.fromkeys(of))})" for value, of in values.items())


def _cost(results: Sequence[Result]) -> str:
    total = {entry.name: sum(getattr(result.cost, entry.name) for result in results) for entry in fields(Cost)}
    return str(Cost(**total)) if any(total.values()) else NONE


def _short(value: object) -> str:
    """Return a value as text; of a long hash only its beginning."""
    if isinstance(value, float):
        return f"{value:.6g}"
    text = str(value)
    return text[:12] + "…" if len(text) == 64 and set(text) <= set("0123456789abcdef") else text
