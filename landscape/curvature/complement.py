"""What is known of an operator on a subspace, and the operator on the rest."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from landscape.curvature.operators import Operator
from landscape.results.types import Array

_TOGETHER = 8  # products at once: a graph that is not kept is built once for all of them, and a bar moves now and then


class Known(NamedTuple):
    """An operator on the span of some vectors."""

    basis: Tensor  # (m, n), orthonormal rows Q
    projected: Array  # (m, m), Q H Q^T

    @property
    def trace(self) -> float:
        """The trace on the span."""
        return float(np.trace(self.projected))


class Counted(Operator):
    """An operator that counts its products.

    Args:
        operator: the operator.
        limit: products at most; whoever uses it looks at `left`.
        seen: called with the number of products after each; a progress bar's `update`.
    """

    def __init__(self, operator: Operator, limit: int, seen: Callable[[int], object]) -> None:
        super().__init__(operator.size, operator.dtype, operator.device)
        self.operator, self.limit, self.products, self._seen = operator, limit, 0, seen

    @property
    def left(self) -> int:
        """How many products may follow."""
        return self.limit - self.products

    def matvec(self, vector: Tensor) -> Tensor:
        """Return H v for a vector (n,)."""
        self.products += 1
        product = self.operator.matvec(vector)
        self._seen(1)
        return product

    def matmat(self, vectors: Tensor) -> Tensor:
        """Return H V for the columns of a matrix (n, k), a few at a time."""
        parts = []
        for columns in vectors.split(_TOGETHER, 1):
            self.products += columns.shape[1]
            parts.append(self.operator.matmat(columns))
            self._seen(columns.shape[1])
        return parts[0] if len(parts) == 1 else torch.cat(parts, 1)


class Complement(Operator):
    """P H P with P = 1 - Q^T Q: the operator on what is orthogonal to the rows of Q.

    Args:
        operator: the operator H.
        basis: Q (m, n), orthonormal rows; None for none.
    """

    def __init__(self, operator: Operator, basis: Tensor | None) -> None:
        super().__init__(operator.size, operator.dtype, operator.device)
        self.operator, self.basis = operator, basis

    def matvec(self, vector: Tensor) -> Tensor:
        """Return P H P v for a vector (n,)."""
        return self.project(self.operator.matvec(self.project(vector)))

    def project(self, vectors: Tensor) -> Tensor:
        """Return P v for a vector (n,), or for the columns of a matrix (n, k)."""
        return without(vectors, self.basis)


def without(vectors: Tensor, basis: Tensor | None) -> Tensor:
    """Return a vector (n,) or the columns of a matrix (n, k) without their parts in the span of orthonormal rows."""
    if basis is None or not len(basis):
        return vectors
    if vectors.ndim == 2:
        # One after the other: matrix-matrix products may be set to run in TF32.
        return torch.stack([without(column, basis) for column in vectors.unbind(1)], 1)
    found = vectors.to(basis.dtype)
    for _ in range(2):  # the second pass takes out what rounding left in the first
        found = torch.addmv(found, basis.T, basis @ found, alpha=-1)
    return found.to(vectors.dtype)


def inside(vectors: Tensor, basis: Tensor) -> Tensor:
    """Return the coefficients Q V (m, k) of the columns of a matrix (n, k) along the rows of Q (m, n)."""
    return torch.stack([basis @ column.to(basis.dtype) for column in vectors.unbind(1)], 1)


def signs(operator: Operator, count: int, generator: torch.Generator) -> Tensor:
    """Return random signs (n, count); drawn as integers, one column after the other: the same in every dtype and for every grouping."""
    columns = [torch.randint(0, 2, (operator.size,), generator=generator, device=operator.device, dtype=torch.int8) for _ in range(count)]
    return torch.stack(columns, 1).to(operator.dtype).mul_(2).sub_(1)


def column_dots(one: Tensor, other: Tensor) -> Tensor:
    """Return the inner products (k,) of the columns of two matrices (n, k), summed in float64."""
    return torch.stack([torch.dot(a.double(), b.double()) for a, b in zip(one.unbind(1), other.unbind(1), strict=True)])


def length_of(vector: Tensor) -> float:
    """Return the norm of a vector, summed in float64: squares of float32 overflow from 1e19 on, and vanish below 1e-23."""
    return float(torch.linalg.vector_norm(vector, dtype=torch.float64))
