"""The steps of a training run: the loss at each, and where they lie on a plane, by default that of their principal components."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from landscape.objective import Objective
from landscape.results.types import Array, Cost, LossPath
from landscape.surfaces.along import Statistics
from landscape.surfaces.directions import Plane
from landscape.surfaces.paths import provenance_of, started
from landscape.surfaces.planes import pca_plane
from landscape.surfaces.weights import Point, weights_of

Axis = tuple[float, float, int]


def loss_trajectory(
    objective: Objective,
    trajectory: Sequence[Point],
    steps: Sequence[int] | None = None,
    *,
    plane: Plane | None = None,
    statistics: Statistics = "interpolate",
    statistics_data: Any = None,
    out: str | Path | None = None,
    name: str = "trajectory",
    resume: bool = True,
    save_every: float = 5.0,
    ranks: bool = False,
    progress: bool | None = None,
) -> LossPath:
    """Evaluate the loss at the steps of a training run and project them on a plane, by least squares.

    Args:
        objective: the loss; its model is not written to.
        trajectory: the weights of the steps, in their order: models, state_dicts (then each step has its own batch-norm statistics), or
            dictionaries of parameters.
        steps: their numbers, such as epochs; 0, 1, 2, ... by default.
        plane: where to project; by default `pca_plane(trajectory, objective)`, which then has to exist.
        statistics: "interpolate" uses each step's own running statistics, "recompute" computes them anew; see `linear_path`.
        statistics_data: see `linear_path`.
        out: result file to keep the trajectory in.
        name: of the trajectory in that file.
        resume: see `linear_path`.
        save_every: see `linear_path`.
        ranks: see `linear_path`.
        progress: show a bar; None shows it on a terminal.

    Returns:
        The trajectory: `.step`, `.loss`, `.coordinates` on the plane, `.distance` from it and `.explained_variance`, the share of the
        variance of the steps along each direction of a PCA plane. On any other plane it is None.

    Raises:
        ValueError: steps that do not fit together or to the plane.
    """
    numbers = np.arange(len(trajectory)) if steps is None else np.asarray(steps)
    if numbers.shape != (len(trajectory),) or numbers.dtype.kind not in "iu":
        raise ValueError(f"steps must be {len(trajectory)} integers, one for each point of the trajectory, got {steps!r}")
    options: dict[str, Any] = {"statistics": statistics, "statistics_data": statistics_data, "progress": progress}
    with started(objective, name, **options, out=out, resume=resume, save_every=save_every, ranks=ranks) as run:
        meter = objective.meter()
        points = [weights_of(objective, point, f"trajectory[{i}]") for i, point in enumerate(trajectory)]
        parameters = [point.parameters for point in points]
        plane = plane or pca_plane(parameters, objective)
        coordinates, distance = plane.coordinates(parameters)
        unfinished = run.unfinished(points, "trajectory", numbers.tolist(), plane.seed)
        losses = run.losses(points, np.eye(len(points)), name, "path", unfinished)
        path = LossPath(
            name,
            None,
            numbers.astype(np.int64),
            losses.loss,
            losses.accuracy,
            losses.stderr(),
            {"type": "trajectory", "plane": plane.describe(), "batch_size": objective.batches.batch_size},
            coordinates=coordinates,
            distance=distance,
            explained_variance=np.array(plane.explained_variance) if plane.explained_variance else None,
            cost=Cost(forwards=losses.forwards, seconds=losses.seconds_before + meter.cost().seconds),
            provenance=provenance_of(objective, statistics, plane.seed),
        )
        run.save(unfinished, path)
    return path


def around_coordinates(coordinates: Array, points: int = 25, margin: float = 0.25) -> tuple[Axis, Axis]:
    """Return x and y for `loss_surface` such that the picture holds a path on its plane.

    Args:
        coordinates: (n, 2) on the plane.
        points: of the grid, along each axis.
        margin: room on every side, as a share of the larger extent.

    Returns:
        (from, to, number of points) along both axes.

    Raises:
        ValueError: the coordinates are of another shape, or all the same.
    """
    values = np.asarray(coordinates, dtype=float)
    if values.ndim != 2 or values.shape[1] != 2 or not np.isfinite(values).all():
        raise ValueError(f"coordinates must be finite and of shape (n, 2), got {values.shape}")
    low, high = values.min(0), values.max(0)
    room = margin * float((high - low).max())
    if room <= 0:
        raise ValueError("coordinates are all the same: there is nothing to draw around")
    # Neither axis gets less than a third of the other's extent: a picture must have two dimensions.
    least = (high - low).max() / 3
    low, high = np.minimum(low, (low + high - least) / 2), np.maximum(high, (low + high + least) / 2)
    x, y = ((float(a - room), float(b + room), points) for a, b in zip(low, high, strict=True))
    return x, y
