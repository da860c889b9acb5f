"""Planes with a meaning: of Hessian eigenvectors, of the principal components of a trajectory, through two or three minima."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from landscape.objective import Objective, Parameters
from landscape.results.types import Eigenpairs
from landscape.surfaces.directions import Plane
from landscape.surfaces.weights import Point, check_alike, copy_of, dot, gram, shapes, tensors_of, weights_of

# Principal components of less than this share of the largest one's length are rounding.
_NO_DIRECTION = 1e-6


def eigen_plane(eigenpairs: Eigenpairs, objective: Objective | None = None, *, indices: Sequence[int] = (0, 1)) -> Plane:
    """Return the plane of two Hessian eigenvectors, each of length one, through the point where the Hessian was taken.

    Args:
        eigenpairs: what `top_eigenpairs` returned.
        objective: the objective that they belong to; needed where the eigenpairs do not carry their point, as when read from a file.
        indices: which eigenvectors; one index gives a line.

    Returns:
        The plane.

    Raises:
        ValueError: the vectors were not kept, the point is unknown, or the sizes do not fit.
    """
    vectors = eigenpairs.vectors
    if vectors is None:
        raise ValueError("eigenpairs.vectors is None: compute the eigenpairs with their vectors kept")
    if not 1 <= len(indices) <= 2 or any(not 0 <= i < len(vectors) for i in indices):
        raise ValueError(f"indices must be one or two of 0 ... {len(vectors) - 1}, got {tuple(indices)}")
    point = copy_of(objective) if objective is not None else eigenpairs.point
    if point is None:
        raise ValueError(
            "these eigenpairs do not carry the point they were computed at; pass the objective too: eigen_plane(eig, objective)"
        )
    sizes = [p.numel() for p in point.values()]
    if vectors.shape[1] != sum(sizes):
        raise ValueError(f"eigenvectors have {vectors.shape[1]} entries, the objective varies {sum(sizes)} parameters")
    directions = []
    for i in indices:
        parts = zip(point.items(), torch.split(vectors[i], sizes), strict=True)
        directions.append({name: part.detach().reshape(p.shape).to(p.device, p.dtype, copy=True) for (name, p), part in parts})
    origin = {name: p.clone() for name, p in point.items()}
    return Plane(origin, tuple(directions), "eigen", eigenvalues=tuple(float(eigenpairs.values[i]) for i in indices))


def pca_plane(
    trajectory: Sequence[Point], objective: Objective | None = None, *, components: int = 2, include_norm_and_bias: bool = True
) -> Plane:
    r"""Return the plane of the principal components of a trajectory, through its last point (Li et al. 2018, section 7).

    The directions are the first right singular vectors of the matrix whose rows are w_i - mean(w), unit vectors; coordinates are Euclidean
    distances. The share of the variance that a component explains is sigma_i^2 / sum_j sigma_j^2 over all of them. The signs are such that
    the trajectory begins at coordinates that are not negative. Trajectories of many steps look smooth on this plane whatever they do, for
    random walks too (Antognini and Sohl-Dickstein 2018): the explained variance says how much of them is seen.

    Args:
        trajectory: at least three points, in their order: models, state_dicts or dictionaries of parameters; the last is the origin.
        objective: whose parameters to take, in its dtype and on its device; by default all floating-point tensors by the names of the first
            point that have them, without the running statistics of batch norm.
        components: 2 for a plane, 1 for a line.
        include_norm_and_bias: let tensors of one dimension move too. Left out, the variance is that of the others.

    Returns:
        The plane, with `explained_variance`.

    Raises:
        ValueError: too few points, points that do not fit together, or that lie on one line or one spot.
    """
    if components not in (1, 2):
        raise ValueError(f"components must be 1 or 2, got {components!r}")
    if len(trajectory) < components + 1:
        raise ValueError(f"trajectory has {len(trajectory)} points: {components + 1} are needed for {components} principal components")
    points = trajectory_points(trajectory, objective)
    origin = {name: t.clone(memory_format=torch.contiguous_format) for name, t in points[-1].items()}
    moving = [name for name, t in origin.items() if include_norm_and_bias or t.ndim > 1]
    mean = {name: torch.stack([p[name] for p in points]).double().mean(0) for name in moving}
    centred = [{name: p[name].double() - mean[name] for name in moving} for p in points]
    # The Gram matrix has one row a point, and the eigenvectors of the covariance follow from its own.
    variances, vectors = np.linalg.eigh(gram(centred))
    variances, vectors = np.clip(variances[::-1], 0, None), vectors[:, ::-1]
    if variances[components - 1] <= _NO_DIRECTION**2 * variances[0]:
        raise ValueError(f"trajectory does not span {components} dimensions: its points lie on {'a line' if variances[0] else 'one spot'}")
    directions = []
    for k in range(components):
        direction = {
            name: sum((c[name] * float(v) for c, v in zip(centred, vectors[:, k], strict=True)), 0 * mean[name]) for name in moving
        }
        length = float(dot(direction, direction)) ** 0.5
        side = 1.0 if vectors[0, k] >= vectors[-1, k] else -1.0
        directions.append(
            {n: (direction[n] * (side / length)).to(t.dtype) if n in direction else torch.zeros_like(t) for n, t in origin.items()}
        )
    explained = tuple((variances[:components] / variances.sum()).tolist())
    return Plane(origin, tuple(directions), "pca", include_norm_and_bias=include_norm_and_bias, explained_variance=explained)


def minima_plane(objective: Objective, a: Point, b: Point, c: Point | None = None, *, orthogonal: bool = True) -> Plane:
    """Return the plane through three minima, or the line through two: a lies at the origin, b at (1, 0).

    The second direction is c - a, with its component along b - a removed and scaled to the length of b - a where `orthogonal` (Garipov et
    al. 2018, appendix A.4), so that distances on the picture are those in parameter space. `Plane.marks` has the coordinates of a, b and c.

    Args:
        objective: whose parameters to take. With batch norm in evaluation mode its model should be `a`: the surface uses its statistics.
        a: a model, state_dict or dictionary of parameters.
        b: another one.
        c: a third one; None for a line.
        orthogonal: make the second direction orthogonal; else it is c - a, and c lies at (0, 1).

    Returns:
        The plane.

    Raises:
        ValueError: points that do not fit the objective, that are the same, or three on one line.
    """
    given = {"a": a, "b": b} | ({} if c is None else {"c": c})
    points = {name: weights_of(objective, point, name).parameters for name, point in given.items()}
    origin = points.pop("a")
    steps = {name: {n: t - origin[n] for n, t in point.items()} for name, point in points.items()}
    for name, step in steps.items():
        if not any(bool(t.any()) for t in step.values()):
            raise ValueError(f"{name} is the same point as a: a direction needs two")
    first, *others = steps.values()
    along = float(dot(first, first))
    directions: list[Parameters] = [first]
    for second in others:
        if orthogonal:
            share = float(dot(second, first)) / along
            second = {n: torch.sub(t.double(), first[n].double(), alpha=share) for n, t in second.items()}
            length = float(dot(second, second)) ** 0.5
            if length <= _NO_DIRECTION * along**0.5:
                raise ValueError("a, b and c lie on one line: they span no plane")
            second = {n: (t * (along**0.5 / length)).to(origin[n].dtype) for n, t in second.items()}
        directions.append(second)
    plane = Plane(origin, tuple(directions), "minima")
    coordinates, _ = plane.coordinates([origin, *points.values()])
    marks = {name: tuple(row) for name, row in zip(given, coordinates.round(12).tolist(), strict=True)}
    return Plane(origin, tuple(directions), "minima", marks=marks)


def trajectory_points(trajectory: Sequence[Point], objective: Objective | None) -> list[Parameters]:
    """Return the points of a trajectory as parameters of the same names and shapes, without running statistics.

    Args:
        trajectory: models, state_dicts or dictionaries of parameters.
        objective: whose parameters to take; None for all that are no buffers of batch norm.

    Returns:
        The points.
    """
    if objective is not None:
        return [weights_of(objective, point, f"trajectory[{i}]").parameters for i, point in enumerate(trajectory)]
    given = [tensors_of(point, f"trajectory[{i}]") for i, point in enumerate(trajectory)]
    buffers = ("running_mean", "running_var", "num_batches_tracked")
    points = [{name: t for name, t in point.items() if t.is_floating_point() and name.rpartition(".")[2] not in buffers} for point in given]
    for i, point in enumerate(points):
        check_alike(f"trajectory[{i}]", shapes(point), "trajectory[0]", shapes(points[0]))
    return points
