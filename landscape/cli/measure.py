"""The commands that measure a model: hessian, sharpness and surface. Each adds its numbers to the run's file and prints them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from dataclasses import dataclass, field, replace
from functools import partial
from io import StringIO
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import torch.distributed
from numpy.typing import NDArray

import sam_core
from landscape import sharpness
from landscape.cli.source import Source, check_one_model, resolve
from landscape.curvature import hessian_trace, spectral_density, subsampled, top_eigenpairs
from landscape.objective import Objective
from landscape.results import store
from landscape.results.types import Array, Result
from landscape.results.types import Sharpness as SharpnessResult
from landscape.results.types import Surface as SurfaceResult
from landscape.surfaces import METRICS, Plane, loss_surface, random_plane
from landscape.surfaces.metrics import Metric, check_metrics
from sam_core.ranks import leads, started_as_group


@dataclass(frozen=True)
class Hessian:
    """Measure curvature: the largest Hessian eigenvalues with residuals, the trace with its standard error, the spectral density."""

    source: Source = field(default_factory=Source)
    k: int = 5
    """Eigenvalues to compute, the largest in absolute value."""
    tol: float = 1e-4
    """Stop when every residual ||Hv - lambda v|| is at most tol times the largest eigenvalue."""
    trace_tol: float = 0.05
    """Stop the trace at this relative standard error; 0 skips the trace."""
    density: bool = True
    """Compute the spectral density too."""
    parts: int = 0
    """Measure the largest eigenvalue on so many disjoint parts of the examples too: how far it holds for others. 0 leaves it out."""

    def run(self) -> None:
        """Measure, print and save."""
        if not 0 <= self.trace_tol < 1:
            raise ValueError(f"--trace-tol must be at least 0 and below 1, got {self.trace_tol}")
        if self.k < 1:
            raise ValueError(f"--k must be at least 1, got {self.k}")
        if not 0 < self.tol < 1:
            raise ValueError(f"--tol must be above 0 and below 1, got {self.tol}")
        if self.parts in (1, 2) or self.parts < 0:
            raise ValueError(f"--parts must be 0 or at least 3, got {self.parts}")
        objective = self.source.objective()
        if self.parts > objective.examples:
            raise ValueError(f"--parts must be at most {objective.examples}, the number of examples, got {self.parts}")
        path = file_for(self.source, objective)
        loss_line(objective)
        seed = self.source.seed
        eigen = top_eigenpairs(objective, k=self.k, tol=self.tol, seed=seed)
        keep(path, eigen, "eigenvalues")
        if self.parts:
            largest = partial(top_eigenpairs, k=1, tol=self.tol, seed=seed)
            keep(path, subsampled(largest, objective, parts=self.parts, name="lambda_max", seed=seed), "on parts")
        if self.trace_tol > 0:
            keep(path, hessian_trace(objective, tol=self.trace_tol, seed=seed, eigenpairs=eigen), "trace")
        if self.density:
            keep(path, spectral_density(objective, seed=seed, eigenpairs=eigen), "density")


@dataclass(frozen=True)
class Sharpness:
    """Measure sharpness: m-sharpness, or any of ten measures in one table; interrupted, the same command goes on."""

    INTERRUPTED: ClassVar[str] = "; the same command goes on from what was saved"

    source: Source = field(default_factory=Source)
    measures: tuple[str, ...] = ("m_sharpness",)
    """all, or some of m_sharpness, sam_gap, gradient_norm, fisher_trace, worst_case, keskar, average_case, adaptive_average_case, low_pass,
    relative_flatness; docs/sharpness.md says what each is."""
    rho: float = 0.05
    """Radius of the climb of m-sharpness; the SAM gap is measured over a list of radii, the others at the radii of their papers."""
    m: tuple[int, ...] | None = None
    """Examples per shard (Foret et al. 2021), one measurement each; by default 1, 16 and 128. (In mSAM, m is the number of shards.)"""
    p: float = 2.0
    """The climb stays in a ball of the p-norm, 1 <= p <= inf."""
    steps: int = 1
    """Steps of the climb of m-sharpness; SAM's is one."""
    restarts: int = 0
    """Further climbs from random points, for measures that climb several steps."""
    adaptive: bool = False
    """Climb relative to |w|, weight by weight (m-sharpness and the SAM gap)."""
    draws: int | None = None
    """Draws of the measures that average over noise; by default what each one's page says."""

    def run(self) -> None:
        """Measure, print and save; under torchrun the processes share shards and draws, and the first one prints and saves."""
        with group() as together:
            self._measure(together)

    def _measure(self, together: bool) -> None:
        sam_core.PNorm(self.rho, self.p)  # refuses a radius or norm that cannot be
        sharpness.chosen(self.measures)
        for name, value, low in (("--steps", self.steps, 1), ("--restarts", self.restarts, 0), ("--draws", self.draws, 3)):
            if value is not None and value < low:
                raise ValueError(f"{name} must be at least {low}, got {value}")
        objective = self.source.objective()
        examples = objective.examples
        for m in self.m or ():
            if not 1 <= m <= examples:
                raise ValueError(f"--m must be between 1 and {examples}, the number of examples, got {m}")
        path = file_for(self.source, objective) if leads() else self.source.results_file()
        loss_line(objective)
        known = sharpness_in(path)
        if together:
            torch.distributed.barrier()  # what one of them has read, all must have read: the first one is going to write
        earlier = {id(r) for r in known}
        settings = self.rho, self.m, self.p, self.steps, self.adaptive, self.restarts, self.draws, self.source.seed
        choices = sharpness.Choices(*settings, ranks=together)
        found, left_out = [], []
        for result in sharpness.measure_all(objective, self.measures, choices, known=known):
            if isinstance(result, tuple):
                left_out.append(result)
                continue
            found.append(result)
            if id(result) not in earlier and leads():
                store.save(path, result)
        print(sharpness.table(found))
        for name, reason in left_out:
            print(f"{name} was left out: {reason}")
        again = sum(id(r) in earlier for r in found)
        text = f"; {again} of {len(found)} were there already" if again else ""
        print(f"{examples} examples, {found[0].settings['dtype']}{text}; saved in {path}" if found else f"nothing saved in {path}")


def sharpness_in(path: Path) -> list[SharpnessResult]:
    """Return the sharpness measures that a file holds."""
    held = [store.load(path, name) for name in store.groups(path) if name.startswith("sharpness/")] if path.exists() else []
    return [result for result in held if isinstance(result, SharpnessResult)]


@dataclass(frozen=True)
class Surface:
    """Compute the loss on a line or a plane of filter-normalised directions; interrupted, the same command goes on."""

    INTERRUPTED: ClassVar[str] = "; the same command goes on from what was saved"

    source: Source = field(default_factory=Source)
    x: tuple[float, float, int] = (-1.0, 1.0, 51)
    """From, to and number of points along the first direction."""
    y: tuple[float, float, int] = (-1.0, 1.0, 51)
    """The same along the second direction."""
    tolerance: float = 0.01
    """Interpolate where the relative error is estimated to be within this; most surfaces then take an eighth to a fourth of the time."""
    full: bool = False
    """Evaluate every point instead."""
    line: bool = False
    """Only along the first direction: a curve instead of a surface."""
    normalize: Literal["filter", "layer", "none"] = "filter"
    """Scale random directions filter by filter to the weights (Li et al. 2018), layer by layer, or not."""
    name: str | None = None
    """Name of the surface in the result file; "plane" or "line" by default."""
    like: Path | None = None
    """Checkpoint or run folder of another model whose filters scale the directions: then both surfaces lie on the same plane."""
    plane: Path | None = None
    """Result file with one plane, from --save-plane or Plane.save: its directions through this model, or a plane of minima as it is."""
    save_plane: Path | None = None
    """Result file to keep the plane in, for the surfaces of other models."""
    metrics: tuple[str, ...] = ()
    """Measured in the same pass: error, top5, confidence, brier, margin, or your own as package.module:function of (outputs, target)."""
    test_data: str | None = None
    """Your own test data, package.module:factory, for --split both: the same surface on them too, kept as NAME-test."""
    precision: Literal["float32", "bf16"] = "float32"
    """bf16 lets the model compute in bfloat16 where that is safe; the error is measured, printed, and refused above 5 percent."""

    def run(self) -> None:
        """Measure, print and save; under torchrun the processes share the points, and the first one prints."""
        with group() as together:
            self._measure(together=together)

    def _measure(self, *, together: bool) -> None:
        if self.plane is not None and self.like is not None:
            raise ValueError("--plane and --like both say where the directions come from: give one of them")
        if self.save_plane is not None and leads():
            store.check_writable(self.save_plane)
        if not 0 < self.tolerance < 1:
            raise ValueError(f"--tolerance must be above 0 and below 1, got {self.tolerance}; --full evaluates all points")
        if self.test_data is not None and self.source.split != "both":
            raise ValueError("--test-data is for --split both")
        metrics = metrics_named(self.metrics)
        shared = None if self.plane is None else Plane.load(self.plane)
        source = replace(self.source, split="train") if self.source.split == "both" else self.source
        test_data = source.data_beside(self.test_data) if self.source.split == "both" else None
        objective = source.objective()
        path = file_for(source, objective) if leads() else source.results_file()
        loss_line(objective)
        plane = self._plane(objective, source, shared)
        if self.save_plane is not None and leads():
            plane.save(self.save_plane)
        name = self.name or ("line" if self.line else "plane")
        y, tolerance = None if self.line else self.y, None if self.full else self.tolerance
        surface = loss_surface(
            objective,
            plane,
            x=self.x,
            y=y,
            tolerance=tolerance,
            out=path,
            name=name,
            ranks=together,
            metrics=metrics,
            test_data=test_data,
            precision=None if self.precision == "float32" else self.precision,
        )
        _say_surface(surface, "surface")
        if surface.test is not None:
            _say_surface(surface.test, "on test data")
        print(f"{'saved in':>12}  {path}\ndraw it with: landscape plot {path}")

    def _plane(self, objective: Objective, source: Source, shared: Plane | None) -> Plane:
        if shared is not None:
            return shared if shared.kind in ("pca", "minima") else shared.around(objective)
        normalize = None if self.normalize == "none" else self.normalize
        if self.like is None:
            return random_plane(objective, normalize=normalize, seed=source.seed)
        other = Source(**{**vars(source), "checkpoint": self.like}).objective()
        return random_plane(other, normalize=normalize, seed=source.seed).around(objective)


@contextmanager
def group() -> Iterator[bool]:
    """Meet the other processes if torchrun has started some, and say whether it has; the first one prints."""
    if not started_as_group():
        yield False
        return
    torch.distributed.init_process_group("gloo")
    try:
        with nullcontext() if leads() else redirect_stdout(StringIO()):
            yield True
    finally:
        torch.distributed.destroy_process_group()


def file_for(source: Source, objective: Objective) -> Path:
    """Find out before long work whether its result can be written, and belongs into that file."""
    path = source.results_file()
    store.check_writable(path)
    if path.exists():
        held = [store.load(path, group, vectors=False) for group in store.groups(path) if not group.startswith("partial/")]
        check_one_model(path, held, objective.parameter_sha256)
    return path


def loss_line(objective: Objective) -> None:
    """Print loss and accuracy where the model stands; a loss that is no number stops here."""
    value, accuracy = (float(v) for v in objective.evaluate())
    objective.loss()  # stops here, and says where, if the loss is no number
    right = "" if math.isnan(accuracy) else f", accuracy {accuracy:.4f}"
    print(f"{'loss':>12}  {value:.6g}{right} on {objective.examples} examples, {objective.size:,} parameters")


def metrics_named(names: tuple[str, ...]) -> dict[str, Metric]:
    """Return metrics by their short names or as package.module:function.

    Args:
        names: of the command line.

    Returns:
        The functions by name.

    Raises:
        ValueError: there is no such metric, or two of one name.
    """
    found: dict[str, Metric] = {}
    for name in names:
        if name not in METRICS and ":" not in name:
            raise ValueError(f"--metrics must be of {', '.join(METRICS)}, or package.module:function, got {name!r}")
        function, short = (METRICS[name], name) if name in METRICS else (resolve(name), name.rpartition(":")[2])
        if short in found:
            raise ValueError(f"--metrics names {short} twice")
        found[short] = function
    return check_metrics(found)


def _say_surface(surface: SurfaceResult, label: str) -> None:
    """Print what a surface says, how far to trust it, and what it cost."""
    lines = [surface.summary()]
    if surface.error_estimate is not None:
        lines.append(_interpolated(surface.status == surface.INTERPOLATED, surface.error_estimate, surface.loss))
    for name, values in surface.metrics.items():
        known = values[np.isfinite(values)]
        lines.append(f"{name} {known.min():.4g} ... {known.max():.4g}" if len(known) else f"{name} is nowhere a number")
    if "precision_error" in surface.plane:
        error, bound = (100 * surface.plane[f"precision_{which}"] for which in ("error", "bound"))
        lines.append(
            f"{surface.plane['precision']}: off by {error:.2g} % at most where looked at, {bound:.2g} % expected at most elsewhere"
        )
    lines.append(str(surface.cost))
    print("\n".join(f"{label if i == 0 else '':>12}  {line}" for i, line in enumerate(lines)))


def _interpolated(between: NDArray[np.bool_], estimate: Array, loss: Array) -> str:
    """Say how many points were evaluated, and how far the others may be from the truth."""
    known = between & np.isfinite(estimate) & (loss != 0)
    within = f", 99 % of the others within {100 * np.quantile(estimate[known] / abs(loss[known]), 0.99):.2g} %" if known.any() else ""
    return f"{(~between).sum():,} of {between.size:,} points evaluated{within}"


def keep(path: Path, result: Result, label: str) -> None:
    """Save a result and print it."""
    store.save(path, result)
    say(path, result, label)


def say(path: Path, result: Result, label: str) -> None:
    """Print a result that lies in a file."""
    print(f"{label:>12}  {result.summary()}\n{'':>12}  {result.cost}; saved in {path}")
