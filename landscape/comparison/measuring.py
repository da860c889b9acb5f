"""One model of a comparison: each part of the job measured, or found in its file, and kept there as soon as it is there."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from torch import Tensor, nn

from landscape.comparison.evaluations import evaluation
from landscape.comparison.known import load, sharpness_in, surface_to_go_on
from landscape.comparison.plan import BETWEEN_BATCHES
from landscape.comparison.sizes import Sizes
from landscape.curvature import HessianOperator, hessian_trace, spectral_density, top_eigenpairs
from landscape.objective import Objective
from landscape.provenance import tensors_sha256
from landscape.results import store
from landscape.results.types import Eigenpairs, LossPath, Result, Sharpness, SpectralDensity, Subsampled, Surface, TraceEstimate
from landscape.sharpness import Choices, measure_all
from landscape.surfaces import Plane, linear_path, loss_surface
from landscape.surfaces.weights import statistics_names, weights_of

R = TypeVar("R", bound=Result)

# Eigenvectors of larger models stay out of the file: every later write copies the whole file.
_STORED_VECTOR = 4_000_000


@dataclass
class Subject:
    """A model that is compared, and what has been found of it so far."""

    name: str
    model: nn.Module
    objective: Objective
    surface_objective: Objective
    test_objective: Objective | None
    path: Path | None
    plane: Plane
    form: Any = None
    about: dict[str, Any] = field(default_factory=dict)
    """Attributes of the file."""
    evaluations: dict[str, Subsampled] = field(default_factory=dict)
    eigen: Eigenpairs | None = None
    trace: TraceEstimate | None = None
    density: SpectralDensity | None = None
    sharpness: list[Sharpness] = field(default_factory=list)
    surfaces: dict[str, Surface] = field(default_factory=dict)
    paths: dict[str, LossPath] = field(default_factory=dict)
    _operator: HessianOperator | None = None
    _in_file: list[Sharpness] | None = None

    @property
    def attributes(self) -> dict[str, float]:
        """Loss and accuracy on each part of the data."""
        found: dict[str, float] = {}
        for part, result in self.evaluations.items():
            found |= {f"{part}_{what}": float(v) for what, v in zip(("loss", "accuracy"), result.values, strict=True) if not math.isnan(v)}
        return found

    def forget_graphs(self) -> None:
        """Let go of the memory that products keep."""
        self._operator = None

    def keep(self, result: Result, vectors: bool = True) -> None:
        """Put a result into the file."""
        if self.path is not None:
            run = self.about | ({"config": {"final": self.attributes}} if self.attributes else {})
            store.save(self.path, result, run=run, vectors=vectors)

    def measure(self, part: str, sizes: Sizes, seed: int) -> Iterator[Result]:
        """Measure one part, and yield its results as they come.

        Args:
            part: of `plan.parts_of`, but for "between".
            sizes: how much.
            seed: of the draws.

        Yields:
            Results.
        """
        match part:
            case "evaluation":
                yield from self._evaluated(seed)
            case "eigenvalues":
                self.eigen = self._eigenpairs(sizes, seed)
                yield self.eigen
            case "trace":
                self.trace = self._trace(sizes, seed)
                yield self.trace
            case "density":
                self.density = self._density(sizes, seed)
                yield self.density
            case "line" | "plane":
                yield self._surface(part, sizes)
            case _:
                yield from self._sharpness(part, sizes, seed)

    def _stored(self, group: str, kind: type[R], on: Objective, seed: int, fits: Callable[[R], bool], make: Callable[[], R]) -> R:
        found = load(self.path, group, kind, on, seed, fits)
        if found is None:
            found = make()
            self.keep(found, vectors=self.objective.size <= _STORED_VECTOR)
        return found

    def _evaluated(self, seed: int) -> Iterator[Result]:
        for part, objective in (("train", self.objective), ("test", self.test_objective)):
            if objective is not None:

                def make(part: str = part, objective: Objective = objective) -> Subsampled:
                    return evaluation(objective, part)

                group = f"subsampled/evaluation_{part}"
                self.evaluations[part] = self._stored(group, Subsampled, objective, seed, lambda _: True, make)
                yield self.evaluations[part]

    def _hessian(self) -> HessianOperator:
        if self._operator is None:
            self._operator = HessianOperator(self.objective, form=self.form)
        return self._operator

    def _eigenpairs(self, sizes: Sizes, seed: int) -> Eigenpairs:
        k = min(sizes.eigenpairs, self.objective.size)
        most = max(sizes.products, k)

        def fits(r: Eigenpairs) -> bool:
            done = r.converged or r.matvecs >= most
            return (r.tol, len(r.values), r.which) == (sizes.eigen_tol, k, "magnitude") and done

        def make() -> Eigenpairs:
            # Without the basis, which no file keeps: an interrupted job shall go on to the numbers of one that was not.
            found = top_eigenpairs(self._hessian(), k=k, tol=sizes.eigen_tol, seed=seed, max_matvecs=most)
            return replace(found, basis=None, projected=None, point=None)

        return self._stored("hessian/eigen", Eigenpairs, self.objective, seed, fits, make)

    def _known(self) -> Eigenpairs | None:
        """Return eigenpairs to take out of trace and density, where a file keeps their vectors."""
        usable = self.eigen is not None and self.eigen.vectors is not None and self.objective.size <= _STORED_VECTOR
        return self.eigen if usable else None

    def _trace(self, sizes: Sizes, seed: int) -> TraceEstimate:
        def fits(r: TraceEstimate) -> bool:
            return r.tol == sizes.trace_tol and (r.converged or r.matvecs >= 0.9 * sizes.products)

        def make() -> TraceEstimate:
            most = max(sizes.products, 3)
            return hessian_trace(self._hessian(), tol=sizes.trace_tol, seed=seed, eigenpairs=self._known(), max_matvecs=most)

        return self._stored("hessian/trace", TraceEstimate, self.objective, seed, fits, make)

    def _density(self, sizes: Sizes, seed: int) -> SpectralDensity:
        probes, steps = sizes.density_probes, min(sizes.density_steps, self.objective.size)

        def fits(r: SpectralDensity) -> bool:
            return len(r.nodes) == probes and r.matvecs in range(probes * steps, probes * steps + 9)

        def make() -> SpectralDensity:
            return spectral_density(self._hessian(), probes=probes, steps=steps, seed=seed, eigenpairs=self._known())

        return self._stored("hessian/density", SpectralDensity, self.objective, seed, fits, make)

    def _sharpness(self, part: str, sizes: Sizes, seed: int) -> Iterator[Sharpness]:
        # Statistics of a batch of one example are none: with those of each batch, per-example sharpness does not exist.
        shards = [m for m in sizes.shards if m > 1 or self.objective.batch_norm == "eval"]
        shards = list(dict.fromkeys(min(m, self.objective.examples) for m in shards))
        if part == "m_sharpness" and not shards:
            return
        choices = Choices(rho=sizes.rho, m=tuple(shards), draws=sizes.draws, seed=seed)
        if self._in_file is None:
            self._in_file = sharpness_in(self.path)
        known = self._in_file
        there = {id(result) for result in known}
        for result in measure_all(self.objective, [part], choices, known=known):
            assert isinstance(result, Sharpness)
            if id(result) not in there:
                self.keep(result)
            self.sharpness.append(result)
            yield result

    def _surface(self, part: str, sizes: Sizes) -> Surface:
        low, high, points = -sizes.span, sizes.span, sizes.points
        y = (low, high, points) if part == "plane" else None
        grid = np.linspace(low, high, points)
        grid[np.abs(grid) < 1e-12 * (high - low)] = 0.0
        over = self.surface_objective
        plane = self.plane
        found, resume = surface_to_go_on(self.path, part, over, plane, grid, None if y is None else grid, sizes.tolerance)
        if found is None:
            found = loss_surface(over, plane, (low, high, points), y, tolerance=sizes.tolerance, out=self.path, name=part, resume=resume)
            if self.path is not None:
                store.save(self.path, found, run=self.about)
        self.surfaces[part] = found
        return found


def between(
    one: Subject,
    other: Subject,
    path: Path | None,
    sizes: Sizes,
    seed: int,
    options: Mapping[str, Any],
    loss: Callable[..., Tensor],
    data: Any,
) -> LossPath:
    """Return the loss on the straight line from one model to another.

    Batch norm has running statistics that are computed again at every point: a mixture of two networks has none of its own.

    Args:
        one: where the line begins.
        other: where it ends.
        path: file that it may be in, and is kept in; None for none.
        sizes: how many points.
        seed: as for the rest.
        options: of the objective.
        loss: of the objective.
        data: of the surfaces.

    Returns:
        The losses; batches are so small that there are ten at least, for the error of the barrier.
    """
    over = one.surface_objective
    size = -(-over.examples // BETWEEN_BATCHES)
    if over.batches.in_memory and size < over.batches.batch_size and options.get("batch_size") is None:
        over = Objective(one.model, loss, data, **{**options, "batch_size": size})
    name = f"from {one.name}"
    statistics = "recompute" if statistics_names(over) else "interpolate"

    ends = [weights_of(over, subject.model, subject.name) for subject in (one, other)]
    hashes = [tensors_sha256(end.parameters | end.statistics) for end in ends]
    found = None if path is None else store.find(path, f"paths/{name}")
    if isinstance(found, LossPath) and found.t is not None and len(found.t) == sizes.between:
        alike = found.provenance.data_sha256 == over.batches.sha256 and found.curve.get("batch_size") == over.batches.batch_size
        if alike and found.curve.get("ends_sha256") == hashes and found.curve.get("statistics") in (statistics, None):
            return found
    options_of_path: dict[str, Any] = {"statistics": statistics, "seed": seed, "out": path, "name": name}
    try:
        return linear_path(over, one.model, other.model, sizes.between, **options_of_path)
    except ValueError:  # what lies there half done is another path: begin anew, or hear again what is wrong
        return linear_path(over, one.model, other.model, sizes.between, **options_of_path, resume=False)
