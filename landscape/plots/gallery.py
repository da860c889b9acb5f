"""Everything that can be drawn of some runs, written into one folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from landscape.plots.report import RunReport


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
    from landscape import plots  # the package imports this module

    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []

    def draw(stem: str, make: Callable[..., Any], having: dict[str, Any], **options: Any) -> None:
        if having:
            written.extend(plots.save(make(having, **options), folder / stem, formats=formats))

    for name in dict.fromkeys(s for run in runs for s in run.surfaces):
        surfaces = {run.name: run.surfaces[name] for run in runs if name in run.surfaces}
        if next(iter(surfaces.values())).y is None:
            draw(f"lines-{name}", plots.lines, surfaces)
            continue
        draw(f"contours-{name}", plots.contours, surfaces)
        draw(f"surfaces-{name}", plots.surfaces3d, surfaces)
        if html:
            written.extend(plots.save(plots.surfaces3d(surfaces, backend="plotly"), folder / f"surfaces-{name}", formats=("html",)))
    draw("eigenvalues", plots.eigenvalues, {run.name: run.eigen for run in runs if run.eigen is not None})
    draw("spectra", plots.spectra, {run.name: run.density for run in runs if run.density is not None})
    draw("sharpness", plots.sharpness, {run.name: run.sharpness for run in runs if run.sharpness})
    draw("training", plots.training, {run.name: run.training for run in runs if run.training is not None})
    for run in runs:
        if run.gradients is not None and len(run.gradients.step):
            written.extend(plots.save(plots.traces(run.gradients), folder / f"gradients-{run.name}", formats=formats))
    return written
