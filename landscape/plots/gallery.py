"""Everything that can be drawn of some runs, written into one folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from landscape.plots.checks import check_drawing
from landscape.plots.contours import contours
from landscape.plots.curvature import curvature
from landscape.plots.eigenvalues import eigenvalues
from landscape.plots.gaps import measures_and_gaps
from landscape.plots.generalization import generalization
from landscape.plots.lines import lines
from landscape.plots.measures import measures
from landscape.plots.paths import on_same_plane, paths, trajectory
from landscape.plots.report import RunReport
from landscape.plots.saving import save, stem_of
from landscape.plots.sections import further_measures
from landscape.plots.seeds import over_seeds
from landscape.plots.sharpness import sharpness
from landscape.plots.spectra import spectra
from landscape.plots.speed import reached_by_all, speed
from landscape.plots.style import FULL, Look, method_looks
from landscape.plots.surfaces3d import surfaces3d
from landscape.plots.traces import traces
from landscape.plots.training import training
from landscape.progress import progress

Kind = Literal[
    "contours",
    "surfaces",
    "lines",
    "eigenvalues",
    "spectra",
    "sharpness",
    "measures",
    "training",
    "speed",
    "curvature",
    "generalization",
    "seeds",
    "paths",
    "gradients",
]
"""What `only` may name."""
KINDS: tuple[Kind, ...] = get_args(Kind)
_Drawing = tuple[str, Sequence[str], Callable[[], Any]]  # stem of the file, formats, how to draw it


def draw_all(
    runs: Sequence[RunReport],
    out: str | Path,
    *,
    formats: Sequence[str] = ("pdf", "png"),
    html: bool = True,
    theme: str = "light",
    width: float | None = None,
    only: Sequence[str] = (),
    seeds: bool = False,
) -> list[Path]:
    """Draw every kind of result that the runs have, side by side on shared scales.

    Args:
        runs: what was measured; runs without some result are left out of its figure.
        out: folder for the pictures; made if missing.
        formats: of the matplotlib figures.
        html: also write the surfaces with plotly, to be turned around in a browser.
        theme: "light" or "dark".
        width: of the matplotlib figures, in inches; that of each kind by default.
        only: the kinds to draw, from `KINDS`; all by default.
        seeds: runs of one method are seeds of it: curves are drawn as their mean with a band, numbers as dots, and figures that have a
            panel for each run show the first one of each method.

    Returns:
        The files, in the order they were written.

    Raises:
        ValueError: an unknown kind or theme, or no width.
    """
    check_drawing("matplotlib", theme, FULL if width is None else width)
    for kind in only:
        if kind not in KINDS:
            raise ValueError(f"only must name kinds among {', '.join(KINDS)}, got {kind!r}")
    plan = _Plan(only or KINDS, formats, html, {"theme": theme} | ({} if width is None else {"width": width}))
    groups: dict[str, list[RunReport]] = {}
    for run in runs:
        groups.setdefault(run.training.method if seeds and run.training is not None else run.name, []).append(run)
    looks = method_looks(groups)
    first = {name: of[0] for name, of in groups.items()}
    _surfaces(plan, groups, first, looks)
    _numbers(plan, groups, first, looks)
    for name, run in first.items():
        _paths(plan, run, "" if len(first) == 1 else f"-{name}")
    for name, run in first.items():
        if run.gradients is not None and len(run.gradients.step):
            plan.add("gradients", f"gradients-{name}", lambda of, **o: traces(*of.values(), **o), {name: run.gradients})
    written: list[Path] = []
    for stem, kinds, make in progress(plan.drawings, "drawing", "figure"):
        written.extend(save(make(), Path(out) / stem, kinds))
    return written


class _Plan:
    """What is to be drawn, and how all of it looks."""

    def __init__(self, kinds: Sequence[str], formats: Sequence[str], html: bool, style: dict[str, Any]):
        self.kinds, self.formats, self.html, self.style = kinds, formats, html, style
        self.drawings: list[_Drawing] = []

    def add(self, kind: str, stem: str, make: Callable[..., Any], having: Mapping[str, Any], **options: Any) -> None:
        """Add a figure of those that have something to draw, if there are any."""
        plotly = options.get("backend") == "plotly"
        formats: Sequence[str] = (("html",) if self.html else ()) if plotly else self.formats
        if having and formats and kind in self.kinds:
            style = {"theme": self.style["theme"]} if plotly else self.style
            self.drawings.append((stem_of(stem), formats, lambda: make(having, **options, **style)))


def _surfaces(plan: _Plan, groups: Mapping[str, list[RunReport]], first: Mapping[str, RunReport], looks: Mapping[str, Look]) -> None:
    for name in dict.fromkeys(s for of in groups.values() for run in of for s in run.surfaces):
        every = {g: [run.surfaces[name] for run in of if name in run.surfaces] for g, of in groups.items()}
        along = {g: [s for s in of if s.y is None] for g, of in every.items()}
        planes = {g: run.surfaces[name] for g, run in first.items() if name in run.surfaces and run.surfaces[name].y is not None}
        plan.add("lines", f"lines-{name}", lines, {g: of for g, of in along.items() if of}, looks=looks)
        plan.add("contours", f"contours-{name}", contours, planes)
        plan.add("surfaces", f"surfaces-{name}", surfaces3d, planes)
        plan.add("surfaces", f"surfaces-{name}", surfaces3d, planes, backend="plotly")


def _numbers(plan: _Plan, groups: Mapping[str, list[RunReport]], first: Mapping[str, RunReport], looks: Mapping[str, Look]) -> None:
    eigen = {name: run.eigen for name, run in first.items() if run.eigen is not None}
    densities = {name: run.density for name, run in first.items() if run.density is not None}
    histories = {name: [run.training for run in of if run.training is not None] for name, of in groups.items()}
    histories = {name: of for name, of in histories.items() if of}
    plan.add("eigenvalues", "eigenvalues", eigenvalues, eigen, looks=looks)
    plan.add("spectra", "spectra", spectra, densities, looks=looks, eigen={name: eigen[name] for name in densities if name in eigen})
    plan.add("sharpness", "sharpness", sharpness, {name: run.sharpness for name, run in first.items() if run.sharpness}, looks=looks)
    plan.add("training", "training", training, {name: of[0] for name, of in histories.items()}, looks=looks)
    plan.add("speed", "speed", speed, histories, looks=looks, target=reached_by_all(histories))
    plan.add("curvature", "curvature", curvature, {n: run.curvature for n, run in first.items() if run.curvature is not None}, looks=looks)
    for kind, (measured, gaps) in measures_and_gaps(groups).items():
        plan.add("generalization", f"generalization-{kind}", generalization, measured, gaps=gaps, looks=looks)
    further = further_measures(first.values())
    plan.add("measures", "measures", measures, further if len(further) > 1 else {}, looks=looks)
    if any(len(of) > 1 for of in groups.values()):
        plan.add("seeds", "seeds", over_seeds, _over_seeds(groups), looks=looks)


def _over_seeds(groups: Mapping[str, list[RunReport]]) -> dict[str, dict[str, list[float]]]:
    """Return the numbers of each run by quantity and method."""
    quantities: dict[str, Callable[[RunReport], float | None]] = {
        "largest Hessian eigenvalue": lambda run: (
            float(np.max(run.eigen.values)) if run.eigen is not None and len(run.eigen.values) else None
        ),
        "trace of the Hessian": lambda run: None if run.trace is None else run.trace.value,
        "test accuracy": lambda run: run.training.test_accuracy[-1] if run.training is not None and len(run.training.epoch) else None,
    }
    for m in sorted({m for of in groups.values() for run in of for m in run.sharpness})[:1]:
        quantities[f"sharpness (m = {m})"] = lambda run, m=m: run.sharpness[m].value if m in run.sharpness else None  # type: ignore[misc]
    found = {
        text: {name: [v for run in of if (v := get(run)) is not None] for name, of in groups.items()} for text, get in quantities.items()
    }
    found = {text: {name: values for name, values in of.items() if values} for text, of in found.items()}
    return {text: of for text, of in found.items() if of}


def _paths(plan: _Plan, run: RunReport, end: str) -> None:
    plan.add("paths", f"paths{end}", paths, {name: p for name, p in run.paths.items() if p.t is not None})
    plan.add("paths", f"steps{end}", paths, {name: p for name, p in run.paths.items() if p.t is None})
    for name, p in run.paths.items():
        for surface in run.surfaces.values():
            if surface.y is not None and p.coordinates is not None and on_same_plane(p, surface):
                pair = {name: (p, surface)}
                plan.add("paths", f"path-{name}-on-{surface.name}{end}", lambda of, **o: trajectory(*next(iter(of.values())), **o), pair)
