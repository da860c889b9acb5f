"""The loss on a grid of points in a plane: data outside, points inside.

Each batch is read once and all points are evaluated on it, so a surface costs its forward passes and one pass of the loader; with a
tolerance one pass for every round of points. What is kept between batches are sums over them, in float64: they are the checkpoint, and they
hold the standard errors.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from contextlib import closing
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from landscape.batches import count_examples
from landscape.intervals import spread_to_stderr
from landscape.objective import Objective
from landscape.progress import progress as progress_bar
from landscape.results import store
from landscape.results.types import Array, Cost, Surface
from landscape.stateless import undisturbed
from landscape.surfaces.adaptive import Indices, Refinement
from landscape.surfaces.directions import Plane
from landscape.surfaces.points import WORTH_COMPARING, Evaluator, Point, evaluator, fastest
from landscape.surfaces.resume import SUMS, Keeper, State

Axis = tuple[float, float, int]

# Evaluations are handed out in portions about this long, so that progress, checkpoints and ctrl-C are prompt.
_PORTION_SECONDS = 0.1
_PORTION_POINTS = 256

_SHARE = 6  # of the points of a grid one is evaluated where there is a tolerance: a first guess for the time left


def loss_surface(
    objective: Objective,
    plane: Plane,
    x: Axis = (-1, 1, 51),
    y: Axis | None = (-1, 1, 51),
    *,
    tolerance: float | None = None,
    out: str | Path | None = None,
    name: str = "surface",
    resume: bool = True,
    save_every: float = 5.0,
    progress: bool | None = None,
) -> Surface:
    """Evaluate loss and accuracy at origin + x d0 + y d1 on a grid: at every point, or at so many that the others can be interpolated.

    Points where the loss is NaN or infinite are NaN with status FAILED; the others do not depend on them. The standard error of a point
    comes from the spread of its batches, each weighted as in the mean, and is widened for few of them such that loss ± 1.96 stderr covers
    in 95 % of all data sets.

    Args:
        objective: the loss; the model is not written to.
        plane: where; its first direction alone if `y` is None.
        x: (from, to, number of points) along the first direction.
        y: the same along the second one; None for a line.
        tolerance: of interpolated losses, relative: 0.01 is meant to leave 99 % of the points within 1 % and all within 3 %. None evaluates
            all points.
        out: result file in which the surface is kept while it grows, and in the end. None keeps nothing.
        name: of the surface in that file.
        resume: go on with a surface of this name in the file, or return it if it is complete (a more exact one too); False overwrites it.
        save_every: seconds between savings.
        progress: show a bar; None shows it on a terminal.

    Returns:
        The surface: `.loss[j, i]` is the loss at (x[i], y[j]); `.status` tells which were evaluated, `.cost.forwards` how many.

    Raises:
        ValueError: a grid, tolerance, name or plane that cannot be, or a file that holds another surface under this name.
    """
    xs, ys = _coordinates("x", x), None if y is None else _coordinates("y", y)
    if ys is not None and len(plane.directions) < 2:
        raise ValueError("the plane has one direction: pass y=None for a line, or make it with dimensions=2")
    if tolerance is not None and not (isinstance(tolerance, Real) and 0 < tolerance < 1):
        raise ValueError(f"tolerance must be above 0 and below 1, or None to evaluate all points, got {tolerance!r}")
    if not isinstance(name, str) or not name:
        raise ValueError(f"name must be a string that is not empty, got {name!r}")
    if not save_every >= 0:
        raise ValueError(f"save_every must be a number of seconds, got {save_every!r}")
    _check_place(objective, plane)
    if out is not None:
        store.check_writable(out)
    provenance = objective.provenance(plane.seed)
    loss_function = objective.loss_function
    description = plane.describe() | {
        "batch_size": objective.batches.batch_size,
        "loss_function": getattr(loss_function, "__qualname__", type(loss_function).__qualname__),
    }
    if tolerance is not None:
        description["tolerance"] = float(tolerance)
    keeper = None if out is None else Keeper(out, name, xs, ys, description, provenance, save_every)
    finished, begun = keeper.found() if keeper is not None and resume else (None, None)
    if finished is not None:
        return finished
    points = [(float(a), float(b)) for b in ((0.0,) if ys is None else ys) for a in xs]
    refinement = None if tolerance is None else Refinement(xs, ys, float(tolerance))
    dimensions = 1 if ys is None else 2
    with undisturbed(objective.device):
        description["way"] = _way(objective, plane, dimensions, points) if begun is None else begun.way
        growing = _Growing(objective, points, evaluator(objective, plane, dimensions, description["way"]), refinement, begun)
        growing.run(keeper, progress, name)
    evaluated, (loss, accuracy, stderr), estimate = growing.evaluated, growing.results(), None
    status = np.where(np.isnan(loss), Surface.FAILED, Surface.EVALUATED)
    if refinement is not None:
        status[~evaluated] = Surface.INTERPOLATED
        loss, accuracy, stderr, estimate = refinement.fill(evaluated, loss, accuracy, stderr)
    shape = (len(xs),) if ys is None else (len(ys), len(xs))
    loss, accuracy, stderr = (values.reshape(shape) for values in (loss, accuracy, stderr))
    cost = Cost(forwards=float(evaluated.sum()), seconds=growing.seconds)
    surface = Surface(
        name,
        xs,
        ys,
        loss,
        accuracy,
        stderr,
        status.astype(np.uint8).reshape(shape),
        description,
        None if estimate is None else estimate.reshape(shape),
        cost=cost,
        provenance=provenance,
    )
    if keeper is not None:
        keeper.finish(surface)
    return surface


class _Growing:
    """Sums over the batches done so far, for every point, and the place up to which they are complete.

    Points are evaluated in rounds, one pass over the data each: all in the first one without a `refinement`.
    """

    def __init__(
        self,
        objective: Objective,
        points: Sequence[Point],
        evaluate: Evaluator,
        refinement: Refinement | None,
        begun: State | None,
    ) -> None:
        self._objective, self._points, self._evaluate, self._refinement = objective, points, evaluate, refinement
        self._sums = torch.zeros(len(SUMS), len(points), dtype=torch.float64, device=objective.device)
        self._rounds = np.zeros(len(points), dtype=np.int64)  # in which round a point is evaluated, from 1; 0 for in none so far
        self._at, self._seconds_before = (1, 0, 0), 0.0  # round, batch, how many points of the round are done on it
        if begun is not None:
            self._sums.copy_(torch.from_numpy(begun.sums))
            self._at, self._seconds_before = (begun.round, begun.batch, begun.point), begun.seconds
            self._rounds[:] = np.where(begun.rounds <= begun.round, begun.rounds, 0)
        else:
            self._rounds[slice(None) if refinement is None else refinement.first()] = 1
        self._started = time.perf_counter()
        self._undo: tuple[tuple[int, int, int], torch.Tensor, torch.Tensor] | None = None
        self._weights: list[float] = []  # of the batches
        self._examples = 0

    @property
    def seconds(self) -> float:
        return self._seconds_before + time.perf_counter() - self._started

    @property
    def evaluated(self) -> NDArray[np.bool_]:
        """Which points have been, once a round is complete."""
        return (self._rounds > 0) & (self._rounds <= self._at[0])

    def state(self) -> State:
        """Return what `begun` takes. Also right after an interrupt that came in the middle of `_portion`."""
        if self._undo is not None and self._undo[0] == self._at:
            self._sums[:, self._undo[1]] = self._undo[2]
        return State(self._sums.cpu().numpy(), self._rounds, *self._at, self.seconds)

    def run(self, keeper: Keeper | None, show: bool | None, name: str) -> None:
        guess = len(self._points) if self._refinement is None else max(int(self.evaluated.sum()), len(self._points) // _SHARE)
        with progress_bar(guess, f"surface {name}", "point", show=show) as bar:
            try:
                while True:
                    self._pass(keeper, bar)
                    chosen, missing = self._next()
                    if not len(chosen):
                        break
                    self._rounds[chosen] = self._at[0] + 1
                    self._at = (self._at[0] + 1, 0, 0)
                    bar.total = int(self.evaluated.sum()) + max(0, missing // 3 - len(chosen))
            except BaseException:
                if keeper is not None:
                    keeper.save(self.state, now=True)
                raise

    def _next(self) -> tuple[Indices, int]:
        """Return the points of the next round, and about how many are to be evaluated or interpolated better in all."""
        if self._refinement is None:
            return np.empty(0, dtype=np.intp), 0
        return self._refinement.next(self.evaluated, self.results()[0])

    def _pass(self, keeper: Keeper | None, bar: Any) -> None:
        """Evaluate the points of one round on all batches."""
        places = np.flatnonzero(self._rounds == self._at[0])
        before = int(self.evaluated.sum()) - len(places)
        on_device = torch.from_numpy(places).to(self._objective.device)
        points = [self._points[i] for i in places.tolist()]
        total, portion, examples = len(points), 1, self._objective.examples
        self._weights, self._examples = [], 0
        with closing(self._objective.batches.seeded()) as batches:
            for index, batch in batches:
                n, size = self._objective.weight(batch), count_examples(batch)
                self._weights.append(n)
                self._examples += size
                while self._at[1] == index and self._at[2] < total:
                    started = time.perf_counter()
                    start = self._at[2]
                    stop = min(start + portion, total)
                    self._portion(batch, n, points[start:stop], on_device[start:stop])
                    self._objective.count("forwards", (stop - start) * size)
                    if time.perf_counter() - started < _PORTION_SECONDS / 2:
                        portion = min(2 * portion, _PORTION_POINTS)
                    elif time.perf_counter() - started > 2 * _PORTION_SECONDS:
                        portion = max(portion // 2, 1)
                    done = before + ((self._examples - size) * total + stop * size) // examples
                    bar.update(done - bar.n)
                    if keeper is not None:
                        keeper.save(self.state)
                if self._at[1:] == (index, total):
                    self._at = (self._at[0], index + 1, 0)

    def _portion(self, batch: Any, n: float, points: Sequence[Point], places: torch.Tensor) -> None:
        loss, right = self._evaluate(batch, self._at[1], points)
        sums = self._sums[:, places]
        self._undo = (self._at, places, sums.clone())
        if self._at[1] == 0:
            sums[0] = loss
        away = loss - sums[0]
        sums[1] += n * away
        sums[2] += n * n * away
        sums[3] += n * n * away**2
        sums[4] += math.nan if right is None else right
        self._sums[:, places] = sums
        self._at = (*self._at[:2], self._at[2] + len(points))

    def results(self) -> tuple[Array, Array, Array]:
        """Return loss, accuracy and standard error of the points; NaN where the loss is not finite or was not evaluated."""
        first, linear, weighted, squared, right = self._sums.cpu().numpy()
        with np.errstate(invalid="ignore", over="ignore"):
            weights = np.array(self._weights)
            mean = linear / weights.sum()
            loss = first + mean
            loss = np.where(np.isfinite(loss) & self.evaluated, loss, np.nan)
            accuracy = np.where(np.isfinite(loss), right / self._examples, np.nan)
            spread = np.maximum(squared - 2 * mean * weighted + mean**2 * (weights**2).sum(), 0)
            stderr = spread_to_stderr(weights) * np.sqrt(spread)
        return loss, accuracy, np.where(np.isfinite(loss), stderr, np.nan)


def _way(objective: Objective, plane: Plane, dimensions: int, points: Sequence[Point]) -> str:
    """Return the way in which points are evaluated, measured on the first batch where there are many of them."""
    if len(points) * objective.examples < WORTH_COMPARING * max(1, objective.batches.batch_size):
        return "plain"
    with closing(objective.batches.seeded()) as batches:
        return fastest(objective, plane, dimensions, next(batches)[1], points)[0]


def _coordinates(which: str, axis: Any) -> NDArray[np.float64]:
    """Return n evenly spaced coordinates; zero is exactly zero."""
    if not isinstance(axis, Sequence) or len(axis) != 3 or not all(isinstance(v, Real) for v in axis):
        raise ValueError(f"{which} must be (from, to, number of points), got {axis!r}")
    low, high, n = axis
    if isinstance(n, bool) or not 2 <= n < math.inf or n != int(n):
        raise ValueError(f"{which}: the number of points must be an integer of at least 2, got {n!r}")
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(f"{which} must run from a finite number to a larger one, got {low!r} to {high!r}")
    values = np.linspace(low, high, int(n))
    values[np.abs(values) < 1e-12 * (high - low)] = 0.0
    return values


def _check_place(objective: Objective, plane: Plane) -> None:
    """Refuse a plane that does not fit the model, or a model whose running statistics belong to other weights than the plane's."""
    here = objective.parameters
    shapes = [{name: tuple(t.shape) for name, t in tensors.items()} for tensors in (here, plane.origin)]
    for name in [*here, *plane.origin]:
        if shapes[0].get(name) != shapes[1].get(name):
            raise ValueError(
                f"the plane and the objective differ in parameter {name!r}: "
                f"{shapes[1].get(name, 'absent')} in the plane, {shapes[0].get(name, 'absent')} in the objective"
            )
    norms = [m for m in objective.model.modules() if isinstance(m, nn.modules.batchnorm._NormBase) and m.running_mean is not None]
    if not norms or objective.batch_norm != "eval" or plane.kind == "given":
        return
    if any(not torch.equal(plane.origin[name].to(p.device, p.dtype), p) for name, p in here.items()):
        raise ValueError(
            "the plane is centred on other weights than the model has now, and the model's batch-norm statistics belong to its own; "
            "use plane.around(objective), or batch_norm='batch'"
        )
