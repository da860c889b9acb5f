"""The sections of a report: which figures its runs have results for, what each shows in words, and the commands that make it again."""

from __future__ import annotations

import base64
import io
import json
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from landscape.plots.contours import contour, contours
from landscape.plots.curvature import curvature
from landscape.plots.eigenvalues import eigenvalues
from landscape.plots.gaps import measures_and_gaps
from landscape.plots.generalization import generalization
from landscape.plots.interactive import Live
from landscape.plots.lines import lines
from landscape.plots.measures import measures
from landscape.plots.paths import on_same_plane, paths, trajectory
from landscape.plots.saving import METADATA, stem_of
from landscape.plots.scale import LossScale, loss_scale
from landscape.plots.sharpness import sharpness
from landscape.plots.sliders import eigenvalues_slider, layers_slider, spectrum_slider, surface_slider, trajectory_slider
from landscape.plots.spectra import spectra
from landscape.plots.speed import reached_by_all, speed
from landscape.plots.style import COLUMN, FULL, INK, MISSING, Look, PaperFigure, method_looks, paper_style
from landscape.plots.surfaces3d import surface3d, surfaces3d
from landscape.plots.traces import traces
from landscape.plots.training import training
from landscape.results.types import LossPath, Result, Sharpness, Surface

if TYPE_CHECKING:
    from landscape.plots.report import RunReport

HALF = 4.6
"""Width in inches of a figure that does not need the full page."""
DRAG = "Drag a surface, or use the sliders: all turn together. The pointer shows the values."
POINT = "The pointer shows the values; the slider, also by the arrow keys, moves along the training."


@dataclass(frozen=True)
class Part:
    """A picture of the page, with one for narrow screens, and what moves: instead of the picture, or below it."""

    caption: str
    alt: str
    pictures: tuple[str, str]
    """For wide screens and paper, and for narrow screens."""
    full: bool = True
    live: Live | None = None
    instead: bool = False
    more: str = ""
    """What to open for what moves, where it does not stand instead of the picture."""


@dataclass(frozen=True)
class Command:
    """A command that makes something again."""

    what: str
    text: str


@dataclass(frozen=True)
class Section:
    """A title, its pictures, and how to measure and draw them again."""

    key: str
    title: str
    parts: list[Part]
    commands: list[Command] = field(default_factory=list)


class Sections(list[Section]):
    """All sections that some runs have results for, in the order of the page."""

    def __init__(self, runs: Sequence[RunReport]):
        super().__init__()
        self.runs = list(runs)
        self.looks: Mapping[str, Look] = method_looks(run.name for run in runs)
        self._training()
        for name in dict.fromkeys(s for run in runs for s in run.surfaces):
            self._surface(name)
        for run in runs:
            self._over_training(run)
            self._paths(run)
        self._hessian()
        self._gradients()

    def _add(self, key: str, title: str, parts: list[Part], of: Mapping[str, Iterable[Result]], stem: str) -> None:
        self.append(Section(key, title, parts, [*commands(self.runs, of), *drawing(self.runs, list(of), stem)]))

    def _having(self, get: Callable[[RunReport], Any]) -> dict[str, Any]:
        return {run.name: found for run in self.runs if (found := get(run))}

    def _one(
        self, key: str, title: str, caption: str, found: dict[str, Any], draw: Callable[..., Any], alt: str, live: Live | None = None,
        more: str = "", wide: float = FULL, **options: Any,
    ) -> None:  # fmt: skip
        """Add a section of one picture."""
        pictures = _both(partial(draw, found, **options), wide)
        part = Part(caption, f"{alt} of {', '.join(found)}.", pictures, full=wide == FULL, live=live, more=more)
        results = {name: list(r.values()) if isinstance(r, dict) else r if isinstance(r, list) else [r] for name, r in found.items()}
        self._add(key, title, [part], results, key.partition("-")[0])

    def _training(self) -> None:
        if found := self._having(lambda run: run.training):
            caption = "Loss and accuracy while training; dashed on training data, solid on test data."
            self._one("training", "Training", caption, found, training, "Loss and accuracy over epochs and seconds", looks=self.looks)
        if found := self._having(lambda run: run.training if run.training is not None and len(run.training.epoch) else None):
            target = reached_by_all({name: [history] for name, history in found.items()})
            caption = "Test accuracy against seconds of training, at the end of each epoch" + (
                f"; the legend says when {target:g}, dotted, is reached, by straight lines between epochs." if target else "."
            )
            alt = "Test accuracy over seconds of training"
            self._one("speed", "Accuracy against seconds", caption, found, speed, alt, wide=HALF, looks=self.looks, target=target)

    def _surface(self, name: str) -> None:
        of = {run.name: run.surfaces[name] for run in self.runs if name in run.surfaces}
        line = {n: s for n, s in of.items() if s.y is None}
        plane = {n: s for n, s in of.items() if s.y is not None}
        if line:
            caption = f"Loss and accuracy along one direction through the trained weights{_examples(line.values())}."
            pictures = _both(partial(lines, line, looks=self.looks))
            part = Part(caption, f"Loss along a line, {_ranges(line)}.", pictures)
            self._add(f"line-{len(self)}", f"Along a line: {name}", [part], {n: [s] for n, s in line.items()}, f"lines-{name}")
        if not plane:
            return
        scale = loss_scale(s.loss for s in plane.values())
        shared = f" All panels share one scale{'; ' + scale.note if scale.note else ''}."
        flat = f"Loss on a plane through the trained weights{_examples(plane.values())}; the contours lie at round losses.{shared}"
        alt = f"Loss on a plane, {_ranges(plane)}."
        key, wide = f"plane-{len(self)}", FULL if len(plane) > 1 else HALF
        turned = [surface3d(surface, backend="plotly", scale=scale) for surface in plane.values()]
        pointed = [contour(surface, backend="plotly", scale=scale) for surface in plane.values()]
        parts = [
            Part(
                flat,
                f"Contours. {alt}",
                _both(partial(contours, plane, scale=scale), wide),
                full=len(plane) > 1,
                live=live(f"{key}-values", list(plane), pointed, f"Contours with their values. {alt}", scale=scale),
                more="Values under the pointer",
            ),
            Part(
                "The same losses as heights.",
                f"Surfaces. {alt}",
                _both(partial(surfaces3d, plane, scale=scale), wide),
                full=len(plane) > 1,
                live=live(key, list(plane), turned, f"Surfaces to turn around. {alt}", f"The same losses as heights. {DRAG}", scale),
                instead=True,
            ),
        ]
        self._add(key, f"On a plane: {name}", parts, {n: [s] for n, s in plane.items()}, f"contours-{name}")

    def _over_training(self, run: RunReport) -> None:
        """Add what earlier epochs of a run hold: surfaces on one plane, and spectra."""
        moments = {epoch: run.epochs[epoch] for epoch in sorted(run.epochs)}
        for name in dict.fromkeys(s for moment in moments.values() for s in moment.surfaces):
            of = {e: m.surfaces[name] for e, m in moments.items() if name in m.surfaces and m.surfaces[name].y is not None}
            if len(of) < 2:
                continue
            scale = loss_scale(s.loss for s in of.values())
            texts = {f"epoch {epoch}": surface for epoch, surface in of.items()}
            some = {f"epoch {epoch}": of[epoch] for epoch in _spread(list(of), 4)}
            alt = f"Loss on a plane around {run.name} while it trained, {_ranges(texts)}."
            key, figure = f"epochs-{len(self)}", surface_slider(of, scale=scale)
            caption = "The loss around the network while it trained, all on one scale"
            part = Part(
                f"{caption}{_examples(of.values())}.",
                alt,
                _both(partial(contours, some, scale=scale)),
                live=live(key, [run.name], [figure], alt, f"{caption}. {POINT}", scale),
                instead=True,
            )
            self._add(key, f"On a plane while training: {run.name}, {name}", [part], {run.name: list(of.values())}, "")
        densities = {epoch: moment.density for epoch, moment in moments.items() if moment.density is not None}
        if len(densities) > 1:
            key = f"spectra-{len(self)}"
            shown = {f"epoch {epoch}": densities[epoch] for epoch in _spread(list(densities), 4)}
            alt = f"Spectral densities of the Hessian of {run.name} from epoch {min(densities)} to {max(densities)}."
            part = Part(
                "The spectrum of the Hessian while the network trained.",
                alt,
                _both(partial(spectra, shown), HALF),
                full=False,
                live=live(key, [run.name], [spectrum_slider(densities)], alt, f"The spectrum while the network trained. {POINT}"),
                instead=True,
            )
            self._add(key, f"Spectrum while training: {run.name}", [part], {run.name: list(densities.values())}, "")

    def _paths(self, run: RunReport) -> None:
        end = "" if len(self.runs) == 1 else f"-{run.name}"
        curves = {name: p for name, p in run.paths.items() if p.t is not None}
        if curves:
            caption = "Loss and accuracy between two minima; upright lines are barriers above the dotted chord."
            pictures = _both(partial(paths, curves))
            part = Part(caption, f"Losses on the paths {', '.join(p.summary() for p in curves.values())}.", pictures)
            self._add(f"paths-{len(self)}", f"Between minima: {run.name}", [part], {run.name: list(curves.values())}, f"paths{end}")
        for name, steps in run.paths.items():
            for surface in run.surfaces.values():
                if steps.t is None and steps.coordinates is not None and surface.y is not None and on_same_plane(steps, surface):
                    part = self._steps(run, steps, surface, key := f"steps-{len(self)}")
                    stem = f"path-{name}-on-{surface.name}{end}"
                    self._add(key, f"Trajectory: {run.name}, {name}", [part], {run.name: [steps, surface]}, stem)

    def _steps(self, run: RunReport, steps: LossPath, surface: Surface, key: str) -> Part:
        caption = "The steps of the training run, projected on the plane of the surface by least squares."
        which = f"Steps {steps.step[0]} to {steps.step[-1]}" if steps.step is not None and len(steps.step) else "Steps"
        alt = f"{which} of {run.name}, over the loss on their plane."
        return Part(
            caption,
            alt,
            _both(partial(trajectory, steps, surface), HALF),
            full=False,
            live=live(key, [run.name], [trajectory_slider(steps, surface)], alt, f"{caption} {POINT}"),
            instead=True,
        )

    def _hessian(self) -> None:
        options: dict[str, Any] = {"looks": self.looks, "wide": HALF}
        if found := self._having(lambda run: run.eigen):
            caption = "Bars are estimates, error bars residuals: an eigenvalue lies within its residual."
            alt = "Largest Hessian eigenvalues, whose largest is in the table above,"
            self._one("eigenvalues", "Hessian: largest eigenvalues", caption, found, eigenvalues, alt, **options)
        if found := self._having(lambda run: run.density):
            caption = "Density of the eigenvalues by stochastic Lanczos quadrature; the curves are Gaussians around Ritz values."
            self._one("spectra", "Hessian: spectrum", caption, found, spectra, "Spectral densities of the Hessian", **options)
        if found := self._having(lambda run: dict(run.sharpness)):
            caption = "How much the loss rises along one ascent step, averaged over shards of m examples."
            alt = "Sharpness by shard size m, as in the table above,"
            self._one("sharpness", "Sharpness", caption, found, sharpness, alt, **options)
        if len(further := further_measures(self.runs)) > 1:
            caption = (
                "Every further measure of sharpness, each on a scale of its own that begins at zero; the numbers are in the table above."
            )
            alt = "Further measures of sharpness, as in the table above,"
            self._one("measures", "Sharpness: further measures", caption, further, measures, alt, looks=self.looks)
        self._generalization()
        if found := self._having(lambda run: run.curvature if run.curvature is not None and len(run.curvature.epoch) else None):
            caption = "The largest eigenvalues of the Hessian (bands: residuals) and its trace (bars: standard errors), epoch by epoch."
            alt = "Largest eigenvalues and trace of the Hessian over epochs"
            moving = live("curvature", [alt], [eigenvalues_slider(found, looks=self.looks)], f"{alt}, one at a time", POINT)
            more = "Epoch by epoch"
            self._one("curvature", "Curvature while training", caption, found, curvature, alt, moving, more, looks=self.looks)

    def _generalization(self) -> None:
        parts: list[Part] = []
        words = {"sharpness": "sharpness at the smallest m", "eigenvalue": "the largest eigenvalue", "trace": "the trace of the Hessian"}
        of: dict[str, list[Result]] = {}
        found = measures_and_gaps({run.name: [run] for run in self.runs})
        for kind, (measured, gaps) in found.items():
            caption = f"Test loss less training loss against {words[kind]}, a dot for each run; τ is Kendall's rank correlation."
            pictures = _both(partial(generalization, measured, gaps, looks=self.looks), HALF)
            parts.append(Part(caption, f"Generalisation gap against {words[kind]} of {', '.join(measured)}.", pictures, full=False))
            for name, results in measured.items():
                of.setdefault(name, []).extend(results)
        if parts:
            self._add("generalization", "Sharpness and generalisation gap", parts, of, f"generalization-{next(iter(found))}")

    def _gradients(self) -> None:
        parts: list[Part] = []
        of: dict[str, list[Result]] = {}
        for run in self.runs:
            if (trace := run.gradients) is None:
                continue
            moving = None
            if len(trace.step) and trace.layer_cosine.size:
                alt = f"Cosine of the gradients of {run.name} by layer, one step at a time"
                moving = live(f"gradients-{len(parts)}", [run.name], [layers_slider(trace)], alt, POINT)
            part = Part(
                f"{run.name}: cosine and distance of the gradients at x and y, overall and by layer.",
                f"Gradient traces of {run.name}: {trace.summary()}.",
                _both(partial(traces, trace)),
                live=moving,
                more="Layer by layer, step by step",
            )
            parts.append(part)
            of[run.name] = [trace]
        if parts:
            self._add("gradients", "Gradients while training", parts, of, f"gradients-{next(iter(of))}")


def further_measures(runs: Iterable[RunReport]) -> dict[str, list[Sharpness]]:
    """Return every measure of sharpness but those by shard size, which have a figure of their own, of each run that has some."""
    found = {run.name: [result for result in run.measures.values() if isinstance(result, Sharpness)] for run in runs}
    return {name: of for name, of in found.items() if of}


def live(key: str, names: list[str], figures: list[Any], alt: str, note: str = "", scale: LossScale | None = None) -> Live:
    """Return plotly figures as the page draws them: where it shows their common scale beside, without colour bars of their own."""
    for figure in figures if scale else ():
        figure.update_traces(showscale=False, selector=lambda trace: "showscale" in trace)
        figure.update_layout(showlegend=False)
    return Live(key, names, [json.loads(figure.to_json()) for figure in figures], alt, note=note, scale=scale)


def commands(runs: Sequence[RunReport], of: Mapping[str, Iterable[Result]]) -> list[Command]:
    """Return the commands that measured some results, given by run; runs that one command made share it."""
    made: dict[str, dict[str, None]] = {}
    for run in runs:
        for result in of.get(run.name, ()):
            if text := result.provenance.command or run.command:
                made.setdefault(text, {})[run.name] = None
    return [Command(f"Measure {', '.join(names)}", text) for text, names in made.items()]


def drawing(runs: Sequence[RunReport], names: Sequence[str], stem: str) -> list[Command]:
    """Return the command that draws a figure of some runs again; nothing where the runs lie in no files."""
    found = [run.file for run in runs if run.name in names]
    if not stem or not found or any(file is None for file in found):
        return []
    text = shlex.join(["landscape", "plot", *map(str, found), "--out", "figures"])
    return [Command(f"Draw figures/{stem_of(stem)}.pdf and what else there is", text)]


def svg(figure: PaperFigure) -> str:
    """Return the figure as a data address; its text and lines turn light where the reader's screen is dark."""
    buffer = io.StringIO()
    with paper_style(figure.theme):
        figure.savefig(buffer, format="svg", transparent=True, dpi=200, metadata=METADATA["svg"])
    rules = "".join(
        f'[style*="{part}: {colors["light"]}"]{{{part}:{colors["dark"]} !important}}'
        for part in ("fill", "stroke")
        for colors in (INK, MISSING)
    )
    style = f"<style>@media screen and (prefers-color-scheme:dark){{{rules}}}</style>"
    text = buffer.getvalue()
    start = text.index(">", text.index("<svg")) + 1
    return "data:image/svg+xml;base64," + base64.b64encode((text[:start] + style + text[start:]).encode()).decode()


def _both(draw: Callable[..., PaperFigure], wide: float = FULL) -> tuple[str, str]:
    return svg(draw(width=wide)), svg(draw(width=COLUMN))


def _spread(epochs: list[int], most: int) -> list[int]:
    return [epochs[i] for i in np.unique(np.linspace(0, len(epochs) - 1, min(most, len(epochs))).round().astype(int))]


def _examples(surfaces: Iterable[Surface]) -> str:
    """Return on how many examples the losses were computed."""
    counts = sorted({s.provenance.examples for s in surfaces if s.provenance.examples})
    return f", on {' or '.join(map(str, counts))} examples" if counts else ""


def _ranges(surfaces: Mapping[str, Surface]) -> str:
    """Return the ranges of the losses for those who do not see the picture."""
    ranges = {n: s.loss[np.isfinite(s.loss)] for n, s in surfaces.items()}
    return "; ".join(f"{n} from {v.min():.3g} to {v.max():.3g}" if v.size else f"{n} without a finite loss" for n, v in ranges.items())
