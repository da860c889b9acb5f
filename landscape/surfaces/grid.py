"""The loss on a grid of points in a plane: data outside, points inside.

Each batch is read once and all points are evaluated on it, so a surface costs its forward passes and one pass of the loader; with a
tolerance one pass for every round of points. What is kept between batches are sums over them, in float64: they are the checkpoint, and they
hold the standard errors.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from numbers import Real
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from landscape.batches import Batches
from landscape.objective import Objective
from landscape.results.types import Surface
from landscape.surfaces.computing import Asked, Computation
from landscape.surfaces.directions import Plane
from landscape.surfaces.metrics import Metric, check_metrics
from landscape.surfaces.precision import PRECISIONS
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
    metrics: Mapping[str, Metric] | None = None,
    test_data: Any = None,
    precision: Literal["bf16"] | None = None,
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
        metrics: further numbers of the same pass, functions by name: (outputs, target) of a batch to the mean over its examples, such as
            those of `landscape.surfaces.METRICS`. `.metrics[name]` is like the loss; interpolated like accuracy, within the range found.
        test_data: further data, or an objective of the same model: `.test` is the surface of the same loss on them, at the points where
            the first was evaluated, and with a tolerance at those that the test loss itself needs then to meet it. Statistics are still
            those of the objective's data. In the file it is a surface of its own, `name`-test.
        precision: "bf16" lets a float32 model compute in bfloat16 where that is safe (`torch.autocast`), its outputs' loss in float32.
            `.plane["precision_error"]` is then the largest relative difference to float32 at corners, middle, the lowest losses and some of
            every size, on all of the data; `["precision_bound"]` is 2.5 times that and covers 95 % of all points or more.
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
        ValueError: a grid, tolerance, name, metric or plane that cannot be, a file that holds another surface under this name, or a
            precision whose bound is above 5 %.
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
    chosen = check_metrics(metrics)
    _check_precision(objective, precision, statistics)
    asked = Asked(plane, xs, ys, tolerance, statistics, chosen, precision)
    options: dict[str, Any] = {"resume": resume, "save_every": save_every, "ranks": ranks}
    computation, test = Computation(objective, asked, name, out, **options), None
    if test_data is not None:
        on_test = _on(objective, test_data)
        where = objective.batches if statistics == "recompute" else None
        test = Computation(on_test, asked, f"{name}-test", out, statistics_data=where, **options)
    surface = computation.run(progress)
    if test is None:
        return surface
    return replace(surface, test=test.run(progress, np.flatnonzero(surface.status != Surface.INTERPOLATED)))


def _on(objective: Objective, test_data: Any) -> Objective:
    """Return the same loss of the same model on test data."""
    if isinstance(test_data, Objective):
        differ = [
            words
            for words, one, other in (
                ("weights", objective.parameter_sha256, test_data.parameter_sha256),
                ("choices of parameters", objective.names, test_data.names),
                ("dtypes", objective.dtype, test_data.dtype),
                ("devices", objective.device, test_data.device),
                ("batch-norm modes", objective.batch_norm, test_data.batch_norm),
            )
            if one != other
        ]
        if differ:
            raise ValueError(f"test_data is an objective of its own, and its {' and '.join(differ)} differ from those of objective")
        return test_data
    try:
        batches = objective.batches
        return objective.on(Batches(test_data, batch_size=batches.batch_size or None, device=batches.device, dtype=batches.dtype))
    except (TypeError, ValueError) as error:
        raise type(error)(f"test_data: {error}") from error


def _check_precision(objective: Objective, precision: object, statistics: str) -> None:
    if precision is None:
        return
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be None or {' or '.join(map(repr, PRECISIONS))}, got {precision!r}")
    if objective.dtype != torch.float32:
        raise ValueError(
            f"precision={precision!r} lowers float32, and the objective computes in {str(objective.dtype).removeprefix('torch.')}"
        )
    if statistics == "recompute":
        raise ValueError(f"precision={precision!r} is there for statistics='keep' only: running statistics are computed in full precision")


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
