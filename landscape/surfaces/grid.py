"""The loss on a grid of points in a plane: data outside, points inside.

Each batch is read once and all points are evaluated on it, so a surface costs its forward passes and one pass of the loader; with a
tolerance one pass for every round of points. What is kept between batches are sums over them, in float64: they are the checkpoint, and they
hold the standard errors.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import closing
from numbers import Real
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from landscape.objective import Objective
from landscape.results import store
from landscape.results.types import Cost, Surface
from landscape.stateless import undisturbed
from landscape.surfaces.adaptive import Refinement
from landscape.surfaces.directions import Plane
from landscape.surfaces.growing import Growing
from landscape.surfaces.over_ranks import Dealer
from landscape.surfaces.points import WORTH_COMPARING, Evaluator, Point, evaluator, fastest_evaluator
from landscape.surfaces.resume import Keeper
from landscape.surfaces.weights import statistics_names

Axis = tuple[float, float, int]


def loss_surface(
    objective: Objective,
    plane: Plane,
    x: Axis = (-1, 1, 51),
    y: Axis | None = (-1, 1, 51),
    *,
    tolerance: float | None = None,
    statistics: Literal["keep", "recompute"] = "keep",
    out: str | Path | None = None,
    name: str = "surface",
    resume: bool = True,
    save_every: float = 5.0,
    ranks: bool = False,
    progress: bool | None = None,
) -> Surface:
    """Evaluate loss and accuracy at origin + x d0 + y d1 on a grid: at every point, or at so many that the others can be interpolated.

    Points where the loss is NaN or infinite are NaN with status FAILED; the others do not depend on them. The standard error of a point
    comes from the spread of its batches, each weighted as in the mean, and is widened for few of them such that loss ± 1.96 stderr covers
    in 95 % of all data sets.

    With a tolerance a coarse grid is evaluated first, then round by round the points where the loss interpolated from the others, in its
    logarithm, may be too far from the truth (`landscape.surfaces.adaptive`). `error_estimate` is in units of the loss and covers the true
    error at 95 % of the interpolated points or more. What lies between the points of the coarse grid, 13 along an axis, and does not show
    at them is not seen. Interpolated accuracies, cut to [0, 1], are less exact than losses, as they are steps, and have no estimate;
    interpolated standard errors are what an evaluation there would have, without the error of interpolation. Where losses are zero or
    negative, errors count relative to sqrt(L^2 + s^2), s a tenth of the median |L|. Points among failed ones only are not evaluated: NaN,
    INTERPOLATED.

    Args:
        objective: the loss; the model is not written to.
        plane: where; its first direction alone if `y` is None.
        x: (from, to, number of points) along the first direction.
        y: the same along the second one; None for a line.
        tolerance: of interpolated losses, relative: 0.01 is meant to leave 99 % of the points within 1 % and all within 3 %. None evaluates
            all points.
        statistics: of batch norm in evaluation mode. "keep" has those of the model at every point; "recompute" computes them on the
            objective's data at each, as in training, for one more forward pass: curves are flatter then (see docs/surfaces.md).
        out: result file in which the surface is kept while it grows, and in the end. None keeps nothing.
        name: of the surface in that file.
        resume: go on with a surface of this name in the file, or return it if it is complete (a more exact one too); False overwrites it.
        save_every: seconds between savings.
        ranks: share the points out among the processes that torchrun started; every one must call this with the same arguments, on all of
            the data. The first one reads and writes the file, all return the surface.
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
    if statistics not in ("keep", "recompute"):
        raise ValueError(f"statistics must be 'keep' or 'recompute', got {statistics!r}")
    if statistics == "recompute" and (objective.batch_norm == "batch" or not statistics_names(objective)):
        why = "batch_norm='batch' has none" if objective.batch_norm == "batch" else f"{type(objective.model).__name__} has none"
        raise ValueError(f"statistics='recompute' computes running statistics of batch norm, and {why}")
    if not isinstance(name, str) or not name:
        raise ValueError(f"name must be a string that is not empty, got {name!r}")
    if not (isinstance(save_every, Real) and save_every >= 0):
        raise ValueError(f"save_every must be a number of seconds, got {save_every!r}")
    _check_place(objective, plane, statistics)
    dealer = Dealer() if ranks else None
    if dealer is not None and not dealer.leads:
        out = None
    if out is not None:
        store.check_writable(out)
    provenance = objective.provenance(plane.seed)
    loss_function = objective.loss_function
    description = plane.describe() | {
        "batch_size": objective.batches.batch_size,
        "loss_function": getattr(loss_function, "__qualname__", type(loss_function).__qualname__),
    }
    if statistics != "keep":
        description["statistics"] = statistics
    if tolerance is not None:
        description["tolerance"] = float(tolerance)
    keeper = None if out is None else Keeper(out, name, xs, ys, description, provenance, save_every)
    finished, begun = keeper.found() if keeper is not None and resume else (None, None)
    if dealer is not None:
        finished, begun = dealer.agreed((finished, begun))
    if finished is not None:
        return finished
    points = [(float(a), float(b)) for b in ((0.0,) if ys is None else ys) for a in xs]
    refinement = None if tolerance is None else Refinement(xs, ys, float(tolerance))
    dimensions = 1 if ys is None else 2
    with undisturbed(objective.device):
        way, evaluate = (begun.way if begun is not None else statistics), None
        if begun is None and statistics == "keep":
            way, evaluate = _chosen(objective, plane, dimensions, points, len(points) if refinement is None else len(points) // 5)
        description["way"] = way if dealer is None else dealer.agreed(way)
        if evaluate is None or description["way"] != way:
            evaluate = evaluator(objective, plane, dimensions, description["way"])
        growing = Growing(objective, points, evaluate, refinement, begun, dealer)
        growing.run(keeper, progress, name)
    evaluated, (loss, accuracy, stderr), estimate = growing.evaluated, growing.results(), None
    status = np.where(np.isnan(loss), Surface.FAILED, Surface.EVALUATED)
    if refinement is not None:
        status[~evaluated] = Surface.INTERPOLATED
        loss, accuracy, stderr, estimate = refinement.fill(evaluated, loss, accuracy, stderr)
    shape = (len(xs),) if ys is None else (len(ys), len(xs))
    loss, accuracy, stderr = (values.reshape(shape) for values in (loss, accuracy, stderr))
    passes = 2 if statistics == "recompute" else 1
    cost = Cost(forwards=float(passes * evaluated.sum()), seconds=growing.seconds)
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


def _chosen(objective: Objective, plane: Plane, dimensions: int, points: Sequence[Point], evaluated: int) -> tuple[str, Evaluator]:
    """Return the way in which about `evaluated` points are evaluated, measured on the first batch where there are many of them."""
    evaluations = evaluated * objective.examples / max(1, objective.batches.batch_size)
    if evaluations < WORTH_COMPARING:
        return "plain", evaluator(objective, plane, dimensions, "plain")
    with closing(objective.batches.seeded()) as batches:
        return fastest_evaluator(objective, plane, dimensions, next(batches)[1], points, evaluations)[:2]


def _coordinates(which: str, axis: Any) -> NDArray[np.float64]:
    """Return n evenly spaced coordinates; zero is exactly zero."""
    if not isinstance(axis, Sequence) or len(axis) != 3 or not all(isinstance(v, Real) for v in axis):
        raise ValueError(f"{which} must be (from, to, number of points), got {axis!r}")
    low, high, n = axis
    if isinstance(n, bool) or not 2 <= n < math.inf or n != int(n):
        raise ValueError(f"{which}: the number of points must be an integer of at least 2, got {n!r}")
    if not (low < high and math.isfinite(float(high) - float(low))):
        raise ValueError(f"{which} must run from a finite number to a larger one, got {low!r} to {high!r}")
    values = np.linspace(low, high, int(n))
    values[np.abs(values) < 1e-12 * (high - low)] = 0.0
    return values


def _check_place(objective: Objective, plane: Plane, statistics: str) -> None:
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
    if not norms or objective.batch_norm != "eval" or plane.kind == "given" or statistics == "recompute":
        return
    if any(not torch.equal(plane.origin[name].to(p.device, p.dtype), p) for name, p in here.items()):
        raise ValueError(
            "the plane is centred on other weights than the model has now, and the model's batch-norm statistics belong to its own; "
            "use plane.around(objective), batch_norm='batch', or statistics='recompute'"
        )
