"""Everything that can be drawn of some runs, written into one folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from landscape.plots.contours import contours
from landscape.plots.curvature import curvature
from landscape.plots.eigenvalues import eigenvalues
from landscape.plots.lines import lines
from landscape.plots.paths import on_same_plane, paths, trajectory
from landscape.plots.report import RunReport
from landscape.plots.saving import save
from landscape.plots.sharpness import sharpness
from landscape.plots.spectra import spectra
from landscape.plots.style import method_looks
from landscape.plots.surfaces3d import surfaces3d
from landscape.plots.traces import traces
from landscape.plots.training import training
from landscape.progress import progress
from landscape.results.store import file_name


def draw_all(runs: Sequence[RunReport], out: str | Path, *, formats: Sequence[str] = ("pdf", "png"), html: bool = True) -> list[Path]:
    """Draw every kind of result that the runs have, side by side on shared scales.

    Args:
        runs: what was measured; runs without some result are left out of its figure.
        out: folder for the pictures; made if missing.
        formats: of the matplotlib figures.
        html: also write the surfaces with plotly, to be turned around in a browser.

    Returns:
        The files, in the order they were written.
    """
    folder = Path(out)
    looks = method_looks(run.name for run in runs)
    drawings: list[tuple[str, Sequence[str], Callable[[], Any]]] = []

    def plan(stem: str, make: Callable[..., Any], having: Mapping[str, Any], kinds: Sequence[str] = formats, **options: Any) -> None:
        if having and kinds:
            drawings.append((file_name(stem), kinds, lambda: make(having, **options)))

    for name in dict.fromkeys(s for run in runs for s in run.surfaces):
        surfaces = {run.name: run.surfaces[name] for run in runs if name in run.surfaces}
        planes = {n: s for n, s in surfaces.items() if s.y is not None}
        plan(f"lines-{name}", lines, {n: s for n, s in surfaces.items() if s.y is None}, looks=looks)
        plan(f"contours-{name}", contours, planes)
        plan(f"surfaces-{name}", surfaces3d, planes)
        plan(f"surfaces-{name}", surfaces3d, planes, ("html",) if html else (), backend="plotly")
    plan("eigenvalues", eigenvalues, {run.name: run.eigen for run in runs if run.eigen is not None}, looks=looks)
    plan("spectra", spectra, {run.name: run.density for run in runs if run.density is not None}, looks=looks)
    plan("sharpness", sharpness, {run.name: run.sharpness for run in runs if run.sharpness}, looks=looks)
    plan("training", training, {run.name: run.training for run in runs if run.training is not None}, looks=looks)
    plan("curvature", curvature, {run.name: run.curvature for run in runs if run.curvature is not None}, looks=looks)
    for run in runs:
        end = "" if len(runs) == 1 else f"-{run.name}"
        plan(f"paths{end}", paths, {name: p for name, p in run.paths.items() if p.t is not None})
        steps = {name: p for name, p in run.paths.items() if p.t is None}
        plan(f"steps{end}", paths, steps)
        for name, p in run.paths.items():
            same = [s for s in run.surfaces.values() if s.y is not None and p.coordinates is not None and on_same_plane(p, s)]
            for surface in same:
                plan(f"path-{name}-on-{surface.name}{end}", lambda of: trajectory(*next(iter(of.values()))), {name: (p, surface)})
    for run in runs:
        if run.gradients is not None and len(run.gradients.step):
            plan(f"gradients-{run.name}", lambda of: traces(*of.values()), {run.name: run.gradients})
    written: list[Path] = []
    for stem, kinds, make in progress(drawings, "drawing", "figure"):
        written.extend(save(make(), folder / stem, kinds))
    return written
