"""One HTML page that compares runs: it needs no network, and every text in it is only text."""

from __future__ import annotations

import base64
import hashlib
import io
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup

from landscape.plots.contours import contours
from landscape.plots.curvature import curvature
from landscape.plots.eigenvalues import eigenvalues
from landscape.plots.interactive import CONFIG
from landscape.plots.lines import lines
from landscape.plots.paths import on_same_plane, paths, trajectory
from landscape.plots.saving import METADATA, write_whole
from landscape.plots.scale import loss_scale
from landscape.plots.sharpness import sharpness
from landscape.plots.spectra import spectra
from landscape.plots.style import COLUMN, FULL, INK, MISSING, PAPER, PaperFigure, method_looks, paper_style
from landscape.plots.surfaces3d import surface3d, surfaces3d
from landscape.plots.tables import Table, methods_table, origins_table
from landscape.plots.traces import traces
from landscape.plots.training import training
from landscape.results.types import (
    CurvatureTrace,
    Eigenpairs,
    GradientTrace,
    LossPath,
    Sharpness,
    SpectralDensity,
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
    """The command that repeats the run."""
    attributes: Mapping[str, Any] = field(default_factory=dict)
    """Anything else worth showing; `train_accuracy` and `test_accuracy`, between 0 and 1, take precedence over the history's last row."""
    curvature: CurvatureTrace | None = None
    paths: Mapping[str, LossPath] = field(default_factory=dict)
    """By name; curves between minima and trajectories."""


@dataclass(frozen=True)
class _Picture:
    """A matplotlib figure in the page, with one for narrow screens where it has several panels."""

    caption: str
    alt: str
    wide: str
    narrow: str = ""


@dataclass(frozen=True)
class _Turntable:
    """Surfaces to turn around, one element for each run."""

    key: str
    names: list[str]


@dataclass(frozen=True)
class _Section:
    key: str
    title: str
    pictures: list[_Picture]
    turntable: _Turntable | None = None


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
    sections = _sections(given)
    interactive = {s.turntable.key: _surfaces(given, s.turntable.key) for s in sections if s.turntable}
    scripts = [_text("report.js")]
    if interactive:
        from plotly.offline import get_plotlyjs

        scripts.insert(0, get_plotlyjs().replace("</script", r"<\/script"))
    page = (
        _environment()
        .get_template("report.html.jinja")
        .render(
            title=title,
            runs=given,
            table=methods_table(given),
            tables=dict(tables or {}),
            origins=origins_table(given),
            sections=sections,
            command=command,
            style=Markup(_text("report.css")),
            data=_json({"surfaces": interactive, "config": CONFIG, "themes": {t: [INK[t], PAPER[t], MISSING[t]] for t in INK}}),
            scripts=[Markup(script) for script in scripts],
            hashes=" ".join(f"'sha256-{_sha256(script)}'" for script in scripts),
        )
    )
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    write_whole(target, lambda beside: beside.write_bytes(page.encode("utf-8", "replace")))
    return target


def _sections(runs: list[RunReport]) -> list[_Section]:
    looks = method_looks(run.name for run in runs)
    sections: list[_Section] = []

    def having(get: Callable[[RunReport], Any]) -> dict[str, Any]:
        return {run.name: get(run) for run in runs if get(run)}

    def add(
        key: str, title: str, caption: str, found: dict[str, Any], draw: Callable[..., Any], alt: str, narrow: bool = False, **options: Any
    ) -> None:
        if found:
            text = f"{alt} of {', '.join(found)}. The values are in the table above." if key in _TABLED else f"{alt} of {', '.join(found)}."
            wide = _svg(draw(found, **options))
            sections.append(
                _Section(key, title, [_Picture(caption, text, wide, _svg(draw(found, width=COLUMN, **options)) if narrow else "")])
            )

    add(
        "training",
        "Training",
        "Loss and accuracy while training; dashed on training data, solid on test data.",
        having(lambda r: r.training),
        training,
        "Loss and accuracy over epochs and seconds",
        True,
        looks=looks,
    )
    for name in dict.fromkeys(s for run in runs for s in run.surfaces):
        of = {run.name: run.surfaces[name] for run in runs if name in run.surfaces}
        line = {n: s for n, s in of.items() if s.y is None}
        plane = {n: s for n, s in of.items() if s.y is not None}
        on = _examples(of.values())
        add(
            f"line-{len(sections)}",
            f"Along a line: {name}",
            f"Loss and accuracy along one direction through the trained weights{on}.",
            line,
            lines,
            f"Loss along a line, {_ranges(line)},",
            True,
            looks=looks,
        )
        if plane:
            scale = loss_scale(s.loss for s in plane.values())
            shared = f" All panels share one scale{'; ' + scale.note if scale.note else ''}."
            flat = f"Loss on a plane through the trained weights{on}; the contours lie at round losses.{shared}"
            high = "The same losses as heights."
            alt = f"Loss on a plane, {_ranges(plane)}, of {', '.join(plane)}."
            pictures = [
                _Picture(flat, f"Contours. {alt}", *(_svg(contours(plane, width=w, scale=scale)) for w in (FULL, COLUMN))),
                _Picture(high, f"Surfaces. {alt}", *(_svg(surfaces3d(plane, width=w, scale=scale)) for w in (FULL, COLUMN))),
            ]
            sections.append(_Section(f"plane-{len(sections)}", f"On a plane: {name}", pictures, _Turntable(name, list(plane))))
    for run in runs:
        curves = {name: p for name, p in run.paths.items() if p.t is not None}
        if curves:
            caption = "Loss and accuracy between two minima; upright lines are barriers above the dotted chord."
            add(f"paths-{len(sections)}", f"Between minima: {run.name}", caption, curves, paths, "Losses on the paths", True)
        for name, steps in run.paths.items():
            for surface in run.surfaces.values():
                if steps.t is None and surface.y is not None and on_same_plane(steps, surface):
                    caption = "The steps of the training run, projected on the plane of the surface by least squares."
                    alt = f"Steps {steps.step[0]} to {steps.step[-1]}" if steps.step is not None and len(steps.step) else "Steps"
                    picture = _Picture(caption, f"{alt} of {run.name}, over the loss on their plane.", _svg(trajectory(steps, surface)))
                    sections.append(_Section(f"steps-{len(sections)}", f"Trajectory: {run.name}, {name}", [picture]))
    add(
        "eigenvalues",
        "Hessian: largest eigenvalues",
        "Bars are estimates, error bars residuals: an eigenvalue lies within its residual.",
        having(lambda r: r.eigen),
        eigenvalues,
        "Largest Hessian eigenvalues",
        looks=looks,
        width=4.6,
    )
    add(
        "spectra",
        "Hessian: spectrum",
        "Density of the eigenvalues by stochastic Lanczos quadrature; the curves are Gaussians around Ritz values.",
        having(lambda r: r.density),
        spectra,
        "Spectral densities of the Hessian",
        looks=looks,
        width=4.6,
    )
    add(
        "sharpness",
        "Sharpness",
        "How much the loss rises along one ascent step, averaged over shards of m examples.",
        having(lambda r: dict(r.sharpness)),
        sharpness,
        "Sharpness by shard size m",
        looks=looks,
        width=4.6,
    )
    add(
        "curvature",
        "Curvature while training",
        "The largest eigenvalues of the Hessian (bands: residuals) and its trace (bars: standard errors), epoch by epoch.",
        having(lambda r: r.curvature),
        curvature,
        "Largest eigenvalues and trace of the Hessian over epochs",
        True,
        looks=looks,
    )
    traced = {run.name: run.gradients for run in runs if run.gradients is not None}
    pictures = [
        _Picture(
            f"{name}: cosine and distance of the gradients at x and y, overall and by layer.",
            f"Gradient traces of {name}: {trace.summary()}.",
            *(_svg(traces(trace, width=w)) for w in (FULL, COLUMN)),
        )
        for name, trace in traced.items()
    ]
    if pictures:
        sections.append(_Section("gradients", "Gradients while training", pictures))
    return sections


_TABLED = ("eigenvalues", "sharpness")


def _examples(surfaces: Iterable[Surface]) -> str:
    """Return on how many examples the losses were computed."""
    counts = sorted({s.provenance.examples for s in surfaces if s.provenance.examples})
    return f", on {' or '.join(map(str, counts))} examples" if counts else ""


def _ranges(surfaces: Mapping[str, Surface]) -> str:
    """Return the ranges of the losses for those who do not see the picture."""
    ranges = {n: s.loss[np.isfinite(s.loss)] for n, s in surfaces.items()}
    return "; ".join(f"{n} from {v.min():.3g} to {v.max():.3g}" if v.size else f"{n} without a finite loss" for n, v in ranges.items())


def _surfaces(runs: list[RunReport], name: str) -> dict[str, Any]:
    """Return one plotly figure for each run, all on one scale."""
    plane = {run.name: run.surfaces[name] for run in runs if name in run.surfaces and run.surfaces[name].y is not None}
    scale = loss_scale(s.loss for s in plane.values())
    figures = (surface3d(surface, backend="plotly", scale=scale) for surface in plane.values())
    return {"figures": [json.loads(figure.to_json()) for figure in figures]}


def _svg(figure: PaperFigure) -> str:
    """Return the figure as a data address; its text and lines turn light where the reader's screen is dark."""
    buffer = io.StringIO()
    with paper_style(figure.theme):
        figure.savefig(buffer, format="svg", transparent=True, dpi=200, metadata=METADATA["svg"])
    rules = "".join(
        f'[style*="{part}: {colors["light"]}"]{{{part}:{colors["dark"]} !important}}'
        for part in ("fill", "stroke")
        for colors in (INK, MISSING)
    )
    style = f"<style>@media (prefers-color-scheme:dark){{{rules}}}</style>"
    text = buffer.getvalue()
    start = text.index(">", text.index("<svg")) + 1
    return "data:image/svg+xml;base64," + base64.b64encode((text[:start] + style + text[start:]).encode()).decode()


@cache
def _text(name: str) -> str:
    return (files(__package__) / "templates" / name).read_text(encoding="utf-8")


@cache
def _environment() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.FunctionLoader(_text), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )


def _json(value: object) -> Markup:
    """Return JSON that holds no character which could end the element around it."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    for character in "<>&'\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def _sha256(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
