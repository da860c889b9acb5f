"""Evaluates points of a plane on one batch.

Every way to do it is a function of (batch, its number, points), and agrees with the plain one, `PointLoop`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from landscape.objective import Objective, Parameters
from landscape.surfaces.directions import Plane

Point = tuple[float, float]

# Tensors begin at multiples of so many bytes in the flat vectors, as allocators would place them: kernels expect it.
_ALIGNMENT = 64


class Evaluator(Protocol):
    """Losses (g,) in float64 of g points on batch number `index`, and how many are right at each (g,), or None without classes."""

    def __call__(self, batch: Any, index: int, points: Sequence[Point]) -> tuple[Tensor, Tensor | None]:
        """Evaluate."""
        ...


class PointLoop:
    """One point after another: the parameters are formed in place in one vector that the model reads, and nothing waits for the host."""

    def __init__(self, objective: Objective, plane: Plane, dimensions: int) -> None:
        self._objective = objective
        like = objective.parameters
        self._vectors, self.point = _flatten(plane.origin, like)
        self._origin, *self._directions = (_flatten(t, like)[0] for t in (plane.origin, *plane.directions[:dimensions]))
        self._row = self._origin if dimensions == 1 else [torch.empty_like(o) for o in self._origin]
        self._row_at: float | None = None if dimensions == 2 else 0.0
        self._call = objective.bound(self.point)

    def move(self, x: float, y: float) -> None:
        """Write origin + x d0 + y d1 into `point`, rounded as `Plane.at` rounds it; the part of a row is kept for its points."""
        if y != self._row_at:
            for row, o, d in zip(self._row, self._origin, self._directions[1], strict=True):
                torch.add(o, d, alpha=y, out=row)
            self._row_at = y
        for vector, row, d in zip(self._vectors, self._row, self._directions[0], strict=True):
            torch.add(row, d, alpha=x, out=vector)

    def __call__(self, batch: Any, index: int, points: Sequence[Point]) -> tuple[Tensor, Tensor | None]:
        """Evaluate one point after another."""
        losses, rights = [], []
        for x, y in points:
            self.move(x, y)
            loss, outputs = self._call(batch, index)
            losses.append(loss)
            rights.append(self._objective.batch_correct(outputs, batch))
        found = [right for right in rights if right is not None]
        return torch.stack(losses).double(), torch.stack(found).double() if len(found) == len(rights) else None


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
