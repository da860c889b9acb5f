"""Evaluates points of a plane on one batch.

Every way to do it is a function of (batch, its number, points), and agrees with the plain one, `PointLoop`. `fastest` measures once which
of them a network and a machine like best.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from landscape.batches import Batches, seed_everything
from landscape.fastforms import Form, candidates, images_last
from landscape.objective import Held, Objective, Parameters
from landscape.overwriting import overwriting
from landscape.surfaces.directions import Plane
from landscape.surfaces.found import Found, collected
from landscape.surfaces.metrics import Metric, measured
from landscape.surfaces.side_by_side import draws, shared_out, threads_for
from landscape.surfaces.statistics import Recomputed
from landscape.surfaces.together import Layer, Together, chain_of
from landscape.surfaces.weights import statistics_names

Point = tuple[float, float]

# Tensors begin at multiples of so many bytes in the flat vectors, as allocators would place them: kernels expect it.
_ALIGNMENT = 64

_OVERWRITING = ", overwriting"
_THREADS = " threads"


class Options(NamedTuple):
    """What evaluators do beside the loss, and how."""

    metrics: tuple[Metric, ...] = ()
    low: torch.dtype | None = None  # in which the model computes where that is lower than the parameters' dtype
    statistics_data: Batches | None = None  # on which statistics of batch norm are computed again; None for the objective's


_PLAIN = Options()


class Evaluator(Protocol):
    """What is found on batch number `index` at g points."""

    def __call__(self, batch: Any, index: int, points: Sequence[Point]) -> Found:
        """Evaluate."""
        ...


class PointLoop:
    """One point after another: the parameters are formed in place in one vector that the model reads, and nothing waits for the host."""

    def __init__(
        self, objective: Objective, plane: Plane, dimensions: int, form: Form = "plain", overwrite: bool = False, options: Options = _PLAIN
    ) -> None:
        self._objective, self._form, self._metrics = objective, form, options.metrics
        like = objective.parameters
        self._vectors, self.point = _flatten(plane.origin, like)
        self._origin, *self._directions = (_flatten(t, like)[0] for t in (plane.origin, *plane.directions[:dimensions]))
        self._row = self._origin if dimensions == 1 else [torch.empty_like(o) for o in self._origin]
        self._row_at: float | None = None if dimensions == 2 else 0.0
        self._call = objective.bound(self.point, form, overwrite=overwrite, low=options.low)

    def move(self, x: float, y: float) -> None:
        """Write origin + x d0 + y d1 into `point`, rounded as `Plane.at` rounds it; the part of a row is kept for its points."""
        if y != self._row_at:
            for row, o, d in zip(self._row, self._origin, self._directions[1], strict=True):
                torch.add(o, d, alpha=y, out=row)
            self._row_at = y
        for vector, row, d in zip(self._vectors, self._row, self._directions[0], strict=True):
            torch.add(row, d, alpha=x, out=vector)

    def __call__(self, batch: Any, index: int, points: Sequence[Point]) -> Found:
        """Evaluate one point after another."""
        found = []
        batch = images_last(batch) if self._form == "channels_last" else batch  # once for all points
        for x, y in points:
            self.move(x, y)
            seed_everything(index, self._objective.device)  # of Python and NumPy too: a model draws the same at every point
            found.append(_of(self._objective, batch, *self._call(batch, index), self._metrics))
        return collected(found)


class Restated:
    """One point after another, each with running statistics of batch norm computed again there, once, before its first batch.

    A point costs two forward passes then. See `Recomputed`.
    """

    def __init__(self, objective: Objective, plane: Plane, dimensions: int, options: Options = _PLAIN) -> None:
        self._objective, self._loop, self._metrics = objective, PointLoop(objective, plane, dimensions), options.metrics
        self._compute, self._names = Recomputed(objective, options.statistics_data), statistics_names(objective)
        self._held = objective.held()
        self._known: dict[Point, Parameters] = {}

    def __call__(self, batch: Any, index: int, points: Sequence[Point]) -> Found:
        """Evaluate one point after another."""
        found = []
        for point in points:
            self._loop.move(*point)
            if point not in self._known:
                self._known[point] = self._compute.at(self._loop.point, self._names)
            seed_everything(index, self._objective.device)
            held = Held(self._held.fixed | self._known[point], self._held.written)
            loss, outputs = self._objective.batch_loss_and_outputs(self._loop.point, batch, held)
            found.append(_of(self._objective, batch, loss, outputs, self._metrics))
        return collected(found)


def _of(objective: Objective, batch: Any, loss: Tensor, outputs: Any, metrics: tuple[Metric, ...]) -> Found:
    """Return what is found at one point."""
    return Found(loss, objective.batch_correct(outputs, batch), measured(metrics, outputs, batch[1], loss.device) if metrics else None)


Build = Callable[[Plane, int], Evaluator]


def ways(objective: Objective, batch: Any, options: Options = _PLAIN) -> dict[str, Build]:
    """Return the ways that there are for a network and batches like this one, the one that promises most first, "plain" last.

    "together", also with tanh by sigmoids, or a form of the model for the loop, "overwriting" if it takes no fresh memory for every layer,
    on several "threads" with a point on each.
    """
    found: dict[str, Build] = {}
    layers = chain_of(objective)
    if layers is not None and _are_rows(objective, batch[0], layers[0]):
        if objective.dtype == torch.float32 and objective.device.type == "cpu" and any(layer.function is torch.tanh for layer in layers):
            found["together, sigmoids"] = lambda plane, dimensions: _together(objective, plane, dimensions, layers, True, options)
        found["together"] = lambda plane, dimensions: _together(objective, plane, dimensions, layers, False, options)
    names: list[str] = ["plain"]
    if objective.batch_norm == "eval":
        forms: list[str] = [form for form in candidates(objective.model, batch) if form != "plain"]
        if forms and objective.takes == "outputs" and not objective.held().written and overwriting(objective.caller(forms[0]).model):  # type: ignore[arg-type]
            forms[0] += _OVERWRITING
        names = [*forms, *names]
    threads = threads_for(objective, options.metrics)
    if threads > 1:
        names.insert(0, f"{names[0]}, {threads}{_THREADS}")
    return found | {name: partial(evaluator, objective, way=name, options=options) for name in names}


def _are_rows(objective: Objective, inputs: Any, first: Layer) -> bool:
    """Tell inputs of one row an example, flattened or not, from those of several: a linear layer takes these one by one."""
    width = objective.model.get_parameter(first.weight).shape[1]
    return isinstance(inputs, Tensor) and (inputs.ndim == 2 or (inputs.ndim > 2 and inputs.shape[-1] != width))


def evaluator(objective: Objective, plane: Plane, dimensions: int, way: str, options: Options = _PLAIN) -> Evaluator:
    """Return what evaluates points in one of the `ways`, or with "recompute" with statistics of their own."""
    if way == "recompute":
        return Restated(objective, plane, dimensions, options)
    if way.startswith("together"):
        layers = chain_of(objective)
        assert layers is not None
        return _together(objective, plane, dimensions, layers, way != "together", options)
    way, _, threads = way.removesuffix(_THREADS).rpartition(", ") if way.endswith(_THREADS) else (way, "", "1")
    form: Any = way.removesuffix(_OVERWRITING)
    return shared_out(lambda: PointLoop(objective, plane, dimensions, form, form != way, options), int(threads))


def _together(objective: Objective, plane: Plane, dimensions: int, layers: Sequence[Layer], sigmoids: bool, options: Options) -> Together:
    return Together(objective, plane, dimensions, layers, sigmoids=sigmoids, metrics=options.metrics, low=options.low)


def fastest(
    objective: Objective, plane: Plane, dimensions: int, batch: Any, points: Sequence[Point], evaluations: float = 1000
) -> tuple[str, dict[str, float]]:
    """Return the way to evaluate points that takes the least time on a batch, and the seconds per point of those that were compared.

    See `fastest_evaluator`.
    """
    way, _, seconds = fastest_evaluator(objective, plane, dimensions, batch, points, evaluations)
    return way, seconds


def fastest_evaluator(
    objective: Objective,
    plane: Plane,
    dimensions: int,
    batch: Any,
    points: Sequence[Point],
    evaluations: float,
    options: Options = _PLAIN,
) -> tuple[str, Evaluator, dict[str, float]]:
    """Return the way to evaluate points that takes the least time on a batch, what goes it, and the seconds per point of those compared.

    A way counts only if it can be gone with this loss, and gives the losses of the plain loop at the corners and in the middle of `points`,
    to 1e-5 in float32 and 1e-10 in float64. The one that promises most is taken unless another is clearly faster in two looks: noise shall
    not choose. Looking takes two or three hundredths of the time of the work. Call it where random numbers are put back and nothing is
    differentiated (`stateless.undisturbed`).

    Args:
        objective: the loss.
        plane: the plane.
        dimensions: 1 on a line.
        batch: the first batch.
        points: all points.
        evaluations: about how many evaluations of a point on a batch the work consists of.
        options: what is evaluated beside the loss, and how.

    Returns:
        The way, its evaluator and the times, none where there is but one way.
    """
    built = {way: build(plane, dimensions) for way, build in ways(objective, batch, options).items()}
    if len(built) == 1:
        return "plain", built["plain"], {}
    shown = [points[0], points[len(points) // 2], points[-1]]
    runs = dict(built)
    (expected, right, _), plain = _timed(runs["plain"], batch, shown, objective.device)
    limit = _SHARE * evaluations * plain
    if any(way.endswith(_THREADS) for way in runs) and draws(runs["plain"], batch, shown[0], objective.device):
        runs = {way: run for way, run in runs.items() if not way.endswith(_THREADS)}
    guesses, tolerance = {}, 5e-2 if options.low else _AGREE.get(objective.dtype, 1e-2)
    for way in [*runs][:-1]:
        try:
            (losses, rights, _), guesses[way] = _timed(runs[way], batch, shown, objective.device)
        except Exception:  # a loss that looks at its numbers, or draws, takes one point at a time
            del runs[way]
            continue
        alike = torch.allclose(losses, expected, rtol=tolerance, atol=tolerance * 1e-3, equal_nan=True)
        if not alike or (rights is None) != (right is None):
            del runs[way]
    if len(runs) == 1:
        return "plain", runs["plain"], {"plain": plain}
    guesses["plain"] = plain

    def look(way: str) -> float:
        width = getattr(runs[way], "width", 1)  # shares that are equal
        count = width * min(max(1, int(limit / guesses[way]) // width), 256)
        return _timed(runs[way], batch, [points[i % len(points)] for i in range(count)], objective.device)[1]

    seconds = {way: look(way) for way in runs}
    # Threads with a point each gain much on many cores; on two, memory may eat it up, and a look does not tell.
    first = next(way for way in runs if not way.endswith(_THREADS))
    best = min(seconds, key=lambda way: seconds[way])
    if best != first and seconds[best] < _CLEARLY * seconds[first]:
        again = {way: look(way) for way in (first, best)}
        seconds |= {way: min(seconds[way], again[way]) for way in again}
        first = best if seconds[best] < _CLEARLY * seconds[first] else first
    return first, runs[first], seconds


_AGREE = {torch.float64: 1e-10, torch.float32: 1e-5}
_CLEARLY = 0.7
_SHARE = 0.005
WORTH_COMPARING = 200  # evaluations of a point on a batch: fewer are done before the ways are compared


def _timed(run: Evaluator, batch: Any, points: Sequence[Point], device: torch.device) -> tuple[Found, float]:
    """Evaluate points on the first batch; return what was found and the seconds that a point took."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    # On one thread other programs' turns do not count.
    clock = time.process_time if device.type == "cpu" and torch.get_num_threads() == 1 else time.perf_counter
    start = clock()
    found = run(batch, 0, points)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return found, (clock() - start) / len(points)


def _flatten(tensors: Parameters, like: Parameters) -> tuple[list[Tensor], Parameters]:
    """Copy tensors into one vector per dtype of `like`; return the vectors and the tensors as views of them."""
    groups: dict[torch.dtype, list[str]] = defaultdict(list)
    for name, p in like.items():
        groups[p.dtype].append(name)
    vectors: list[Tensor] = []
    views: Parameters = {}
    for dtype, names in groups.items():
        step = max(1, _ALIGNMENT // dtype.itemsize)
        starts = [0]
        for name in names:
            starts.append(starts[-1] + -(-like[name].numel() // step) * step)
        vector = torch.zeros(starts[-1], dtype=dtype, device=like[names[0]].device)
        for name, start in zip(names, starts, strict=False):
            views[name] = vector[start : start + like[name].numel()].view(like[name].shape)
            views[name].copy_(tensors[name])
        vectors.append(vector)
    return vectors, {name: views[name] for name in like}
