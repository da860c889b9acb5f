"""Planes through the parameters: where a surface is centred and which directions it spans.

Random directions follow Li et al. 2018 (arXiv 1712.09913): one standard normal draw per parameter, in which every filter, a slice
along dimension 0 of a tensor with more than one dimension, gets the norm of the same slice of the weights. The loss of a network with
normalisation layers does not change when a filter is rescaled; in such directions neither does its picture. Tensors of one dimension
(biases, gains of norm layers) do not move unless asked to.

Surfaces of several models can share directions in two ways. `plane.around(other)` moves the same vectors to another model: equal
coordinates are equal distances, for models of similar scale. `plane.around(other, renormalize=True)` takes the same normal draws and
normalises them to the other model's own filters, which is how Li et al. compare networks of different scale.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from landscape.objective import Objective, Parameters
from landscape.provenance import tensors_sha256
from landscape.results.types import Eigenpairs
from landscape.surfaces.weights import check_alike, copy_of, dot, projected, shapes

Normalize = Literal["filter", "layer"] | None

# Two directions that are closer than this to parallel span a line, not a plane.
_PARALLEL = 1 - 1e-6


@dataclass(frozen=True, eq=False, repr=False)
class Plane:
    """The points origin + x directions[0] + y directions[1]; a line with one direction.

    Raises:
        TypeError: origin and directions are no dictionaries of tensors.
        ValueError: no direction, names or shapes that differ, numbers that are not finite, or directions that span no plane.
    """

    origin: Parameters
    directions: tuple[Parameters, ...]
    kind: str = "given"  # "random", "eigen", or whatever made it
    normalize: Normalize = None
    seed: int | None = None
    include_norm_and_bias: bool = False
    eigenvalues: tuple[float, ...] = ()  # one per direction where they are eigenvectors
    explained_variance: tuple[float, ...] = ()  # share of the variance of a trajectory, one per direction where they are its components
    marks: Mapping[str, tuple[float, ...]] = field(default_factory=dict)  # coordinates of points worth showing, such as minima
    eigenvector_cosines: tuple[tuple[float, ...], ...] = ()  # of each direction with the eigenvectors it was compared with

    def __post_init__(self) -> None:
        object.__setattr__(self, "directions", tuple(self.directions))
        if not self.directions:
            raise ValueError("directions is empty: a line needs one, a plane two")
        for what, tensors in (("origin", self.origin), *((f"directions[{i}]", d) for i, d in enumerate(self.directions))):
            if not isinstance(tensors, Mapping) or not all(isinstance(t, Tensor) for t in tensors.values()):
                raise TypeError(f"{what} must be a dictionary of tensors by parameter name, got {type(tensors).__name__}")
            check_alike(what, shapes(tensors), "origin", shapes(self.origin))
            bad = [name for name, t in tensors.items() if not bool(torch.isfinite(t).all())]
            if bad:
                raise ValueError(f"{what} has entries that are not finite, in {bad[0]!r}")
        for i, norm in enumerate(self.norms):
            if norm == 0:
                raise ValueError(f"directions[{i}] is zero everywhere: it leads nowhere")
        for i, row in enumerate(self.cosines):
            for j in range(i):
                if abs(row[j]) > _PARALLEL:
                    raise ValueError(f"directions[{j}] and directions[{i}] are parallel (cosine {row[j]:.9f}): they span no plane")

    @cached_property
    def norms(self) -> list[float]:
        """Euclidean lengths of the directions."""
        return [float(dot(d, d)) ** 0.5 for d in self.directions]

    @cached_property
    def cosines(self) -> list[list[float]]:
        """Cosines between the directions, a symmetric matrix."""
        pairs = [[float(dot(a, b)) for b in self.directions] for a in self.directions]
        return [[pairs[i][j] / (n * m) for j, m in enumerate(self.norms)] for i, n in enumerate(self.norms)]

    @property
    def cosine(self) -> float | None:
        """Cosine between the first two directions; None on a line. Independent draws are nearly, not exactly, orthogonal."""
        return self.cosines[0][1] if len(self.directions) > 1 else None

    @cached_property
    def origin_sha256(self) -> str:
        """Hash of names, shapes and values at the origin."""
        return tensors_sha256(self.origin)

    @cached_property
    def sha256(self) -> tuple[str, ...]:
        """Hash of each direction."""
        return tuple(tensors_sha256(direction) for direction in self.directions)

    def describe(self) -> dict[str, Any]:
        """Return how the plane was made and what it is, as results carry it."""
        described: dict[str, Any] = {
            "kind": self.kind,
            "normalize": self.normalize,
            "seed": self.seed,
            "include_norm_and_bias": self.include_norm_and_bias,
            "norms": self.norms,
            "cosine": self.cosine,
            "eigenvalues": list(self.eigenvalues),
            "origin_sha256": self.origin_sha256,
            "direction_sha256": list(self.sha256),
        }
        if self.explained_variance:
            described["explained_variance"] = list(self.explained_variance)
        if self.marks:
            described["marks"] = {name: list(coordinates) for name, coordinates in self.marks.items()}
        if self.eigenvector_cosines:
            described["eigenvector_cosines"] = [list(row) for row in self.eigenvector_cosines]
        return described

    def at(self, x: float, y: float = 0.0) -> Parameters:
        """Return the parameters at coordinates (x, y)."""
        if y and len(self.directions) < 2:
            raise ValueError(f"y must be 0 on a line, got {y}")
        point = dict(self.origin)
        for step, direction in reversed(list(zip((x, y), self.directions, strict=False))):
            point = {name: torch.add(p, direction[name], alpha=step) for name, p in point.items()}
        return point

    def coordinates(self, points: Sequence[Mapping[str, Tensor]]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the coordinates (n, d) of the points of the plane next to these, and how far (n,) they are from it; see `projected`."""
        for i, point in enumerate(points):
            check_alike(f"points[{i}]", {n: s for n, s in shapes(point).items() if n in self.origin}, "the plane", shapes(self.origin))
        device = next(iter(self.origin.values())).device
        here = [{name: point[name].to(device) for name in self.origin} for point in points]
        return projected(here, self.origin, self.directions)

    def compared_with(self, eigenpairs: Eigenpairs) -> Plane:
        """Return the plane with the cosines between its directions and Hessian eigenvectors recorded, for `describe`.

        Args:
            eigenpairs: of the Hessian in the same parameters, with their vectors.

        Returns:
            The plane with `eigenvector_cosines` (directions, k): their squares sum to at most one along a direction, and to about k / n
            for a random one.

        Raises:
            ValueError: the vectors were not kept, or are of other parameters.
        """
        vectors = eigenpairs.vectors
        if vectors is None:
            raise ValueError("eigenpairs.vectors is None: compute the eigenpairs with their vectors kept")
        names = list(self.origin if eigenpairs.point is None else eigenpairs.point)
        size = sum(p.numel() for p in self.origin.values())
        if set(names) != set(self.origin) or vectors.shape[1] != size:
            raise ValueError(f"eigenvectors have {vectors.shape[1]} entries, the plane has {size} parameters: they must be the same ones")
        flat = torch.stack([torch.cat([d[name].reshape(-1).double() for name in names]) for d in self.directions])
        cosines = (flat / flat.norm(dim=1, keepdim=True)) @ vectors.to(flat).T
        return replace(self, eigenvector_cosines=tuple(tuple(row) for row in cosines.tolist()))

    def save(self, path: str | Path, name: str = "plane") -> None:
        """Keep the plane in a result file, for runs of other models and other days; see `Plane.load`."""
        from landscape.surfaces.files import save_plane

        save_plane(self, path, name)

    @classmethod
    def load(cls, path: str | Path, name: str | None = None) -> Plane:
        """Return a plane from a result file, on the CPU, bit for bit; `name` may be left out where the file holds one."""
        from landscape.surfaces.files import load_plane

        return load_plane(path, name)

    def around(self, objective: Objective, *, renormalize: bool = False) -> Plane:
        """Return the plane of the same directions around another model.

        Args:
            objective: whose parameters become the origin.
            renormalize: keep the normal draws instead of the directions and normalise them to this model's own filters or layers.

        Returns:
            The plane, on the objective's device and in its dtype.

        Raises:
            ValueError: the parameters differ in name or shape, or there are no draws to renormalise.
        """
        origin = copy_of(objective)
        check_alike("objective", shapes(origin), "the plane", shapes(self.origin))
        if not renormalize:
            moved = [{n: d[n].to(origin[n].device, origin[n].dtype) for n in origin} for d in self.directions]
            return replace(self, origin=origin, directions=tuple(moved), marks={}, eigenvector_cosines=())
        if self.kind != "random" or self.seed is None:
            raise ValueError(f"renormalize=True is for planes made by random_plane, this one is {self.kind!r}")
        draws = gaussian_draws(shapes(origin), self.seed, len(self.directions))
        own = [normalized(draw, origin, self.normalize, self.include_norm_and_bias) for draw in draws]
        return replace(self, origin=origin, directions=tuple(own), eigenvector_cosines=())

    def __repr__(self) -> str:
        angle = "" if self.cosine is None else f", cosine {self.cosine:.3g}"
        lengths = ", ".join(f"{norm:.4g}" for norm in self.norms)
        return f"<Plane {self.kind}, normalize={self.normalize!r}, seed={self.seed}, norms {lengths}{angle}>"


def random_plane(
    objective: Objective,
    normalize: Normalize = "filter",
    seed: int = 0,
    dimensions: int = 2,
    include_norm_and_bias: bool = False,
) -> Plane:
    """Draw random directions around a model's parameters.

    Args:
        objective: gives the origin, and the weights whose norms the directions get.
        normalize: "filter" scales each slice along dimension 0 to the norm of the weights' slice, "layer" each tensor as a whole, None
            leaves the standard normal draws.
        seed: the same seed, names and shapes give the same draws on every device and in every dtype.
        dimensions: 1 for a line, 2 for a plane.
        include_norm_and_bias: move tensors of one dimension too, each scaled as a whole. They move in any case where there are no
            others.

    Returns:
        The plane.

    Raises:
        ValueError: an argument outside what is allowed, or weights that are all zero.
        TypeError: `seed` or `dimensions` is no integer.
    """
    if normalize not in ("filter", "layer", None):
        raise ValueError(f"normalize must be 'filter', 'layer' or None, got {normalize!r}")
    for name, value in (("seed", seed), ("dimensions", dimensions)):
        if not isinstance(value, int) or isinstance(value, bool):
            raise TypeError(f"{name} must be an integer, got {value!r}")
    if seed < 0:
        raise ValueError(f"seed must not be negative, got {seed}")
    if dimensions not in (1, 2):
        raise ValueError(f"dimensions must be 1 or 2, got {dimensions}")
    origin = copy_of(objective)
    include_norm_and_bias = include_norm_and_bias or all(w.ndim <= 1 for w in origin.values())
    if normalize is not None and not any(bool(w.any()) for w in origin.values() if include_norm_and_bias or w.ndim > 1):
        raise ValueError(f"normalize={normalize!r} scales directions to the weights, and these are all zero; use normalize=None")
    draws = gaussian_draws(shapes(origin), seed, dimensions)
    directions = tuple(normalized(draw, origin, normalize, include_norm_and_bias) for draw in draws)
    return Plane(origin, directions, "random", normalize, seed, include_norm_and_bias)


def gaussian_draws(shapes: Mapping[str, Sequence[int]], seed: int, dimensions: int = 2) -> list[Parameters]:
    """Return standard normal draws: float64, on the CPU, direction after direction, within each tensor after tensor as named."""
    generator = torch.Generator().manual_seed(seed)
    return [
        {name: torch.randn(tuple(shape), generator=generator, dtype=torch.float64) for name, shape in shapes.items()}
        for _ in range(dimensions)
    ]


def normalized(draw: Parameters, weights: Parameters, normalize: Normalize, include_norm_and_bias: bool = False) -> Parameters:
    """Return a draw with the norms of the weights, in the weights' dtype; slices where the weights are zero become zero."""
    direction = {}
    for name, weight in weights.items():
        d = draw[name].to(weight.device)
        if weight.ndim <= 1 and not include_norm_and_bias:
            d = torch.zeros_like(d)
        elif normalize is not None:
            rows = len(weight) if normalize == "filter" and weight.ndim > 1 else 1
            of_weight = weight.double().reshape(rows, -1).norm(dim=1, keepdim=True)
            of_draw = d.reshape(rows, -1).norm(dim=1, keepdim=True)
            ratio = torch.where(of_draw > 0, of_weight / of_draw, 0.0)
            d = (d.reshape(rows, -1) * ratio).reshape(weight.shape)
        direction[name] = d.to(weight.dtype)
    return direction
