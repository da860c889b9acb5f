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
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor

from landscape.objective import Objective, Parameters
from landscape.provenance import tensors_sha256
from landscape.results.types import Eigenpairs

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

    def __post_init__(self) -> None:
        object.__setattr__(self, "directions", tuple(self.directions))
        if not self.directions:
            raise ValueError("directions is empty: a line needs one, a plane two")
        for what, tensors in (("origin", self.origin), *((f"directions[{i}]", d) for i, d in enumerate(self.directions))):
            if not isinstance(tensors, Mapping) or not all(isinstance(t, Tensor) for t in tensors.values()):
                raise TypeError(f"{what} must be a dictionary of tensors by parameter name, got {type(tensors).__name__}")
            _check_alike(what, _shapes(tensors), "origin", _shapes(self.origin))
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
        return [float(_dot(d, d)) ** 0.5 for d in self.directions]

    @cached_property
    def cosines(self) -> list[list[float]]:
        """Cosines between the directions, a symmetric matrix."""
        pairs = [[float(_dot(a, b)) for b in self.directions] for a in self.directions]
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
        return {
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

    def at(self, x: float, y: float = 0.0) -> Parameters:
        """Return the parameters at coordinates (x, y)."""
        if y and len(self.directions) < 2:
            raise ValueError(f"y must be 0 on a line, got {y}")
        point = dict(self.origin)
        for step, direction in reversed(list(zip((x, y), self.directions, strict=False))):
            point = {name: torch.add(p, direction[name], alpha=step) for name, p in point.items()}
        return point

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
        origin = _copy_of(objective)
        _check_alike("objective", _shapes(origin), "the plane", _shapes(self.origin))
        if not renormalize:
            moved = [{n: d[n].to(origin[n].device, origin[n].dtype) for n in origin} for d in self.directions]
            return replace(self, origin=origin, directions=tuple(moved))
        if self.kind != "random" or self.seed is None:
            raise ValueError(f"renormalize=True is for planes made by random_plane, this one is {self.kind!r}")
        draws = gaussian_draws(_shapes(origin), self.seed, len(self.directions))
        own = [normalized(draw, origin, self.normalize, self.include_norm_and_bias) for draw in draws]
        return replace(self, origin=origin, directions=tuple(own))

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
    origin = _copy_of(objective)
    include_norm_and_bias = include_norm_and_bias or all(w.ndim <= 1 for w in origin.values())
    if normalize is not None and not any(bool(w.any()) for w in origin.values() if include_norm_and_bias or w.ndim > 1):
        raise ValueError(f"normalize={normalize!r} scales directions to the weights, and these are all zero; use normalize=None")
    draws = gaussian_draws(_shapes(origin), seed, dimensions)
    directions = tuple(normalized(draw, origin, normalize, include_norm_and_bias) for draw in draws)
    return Plane(origin, directions, "random", normalize, seed, include_norm_and_bias)


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
    point = _copy_of(objective) if objective is not None else eigenpairs.point
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


def _copy_of(objective: Objective) -> Parameters:
    # The model may be trained further; a plane stays where it was made.
    return {name: p.clone(memory_format=torch.contiguous_format) for name, p in objective.parameters.items()}


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(t.shape) for name, t in tensors.items()}


def _check_alike(what: str, got: Mapping[str, tuple[int, ...]], where: str, expected: Mapping[str, tuple[int, ...]]) -> None:
    for name in [*expected, *got]:
        if got.get(name) != expected.get(name):
            shapes = [f"no {name!r}" if s is None else f"{name!r} of shape {s}" for s in (got.get(name), expected.get(name))]
            raise ValueError(f"{what} has {shapes[0]} where {where} has {shapes[1]}")


def _dot(a: Parameters, b: Parameters) -> Tensor:
    return torch.stack([torch.sum(a[name].double() * b[name].double()) for name in a]).sum()
