"""Symmetric linear maps and their arithmetic: what the algorithms of this package see instead of a model."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from numbers import Real
from typing import Any

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator
from torch import Tensor

from landscape.objective import Objective


class Operator(ABC):
    """A symmetric linear map of vectors (n,).

    Operators add up and scale without computing anything: `a + b`, `a - b`, `2 * a`, `-a`; a number added is a multiple of the identity,
    so that `a + 0.1` is the damped operator A + 0.1 I.

    Args:
        size: n, the length of the vectors.
        dtype: dtype in which products are computed.
        device: where they are computed.
        objective: the objective that the operator belongs to, which counts the work; None for a bare matrix.
    """

    def __init__(self, size: int, dtype: torch.dtype, device: torch.device, objective: Objective | None = None) -> None:
        self.size, self.dtype, self.device, self.objective = size, dtype, device, objective
        self.point: dict[str, Tensor] | None = None  # where an operator of an objective was taken, by parameter name

    @abstractmethod
    def matvec(self, vector: Tensor) -> Tensor:
        """Return the product with a vector (n,), as a new tensor."""

    def matmat(self, vectors: Tensor) -> Tensor:
        """Return the products with the columns of a matrix (n, k)."""
        if not vectors.shape[1]:
            return vectors.new_zeros(self.size, 0)
        return torch.stack([self.matvec(column) for column in vectors.unbind(1)], 1)

    def to_scipy(self) -> LinearOperator:
        """Return the operator as SciPy's solvers take it; vectors travel through host memory."""
        dtype = torch.promote_types(self.dtype, torch.float32)

        def product(vectors: Any) -> Any:
            if np.iscomplexobj(vectors):
                return product(vectors.real) + 1j * product(vectors.imag)
            columns = torch.from_numpy(np.array(vectors).reshape(self.size, -1)).to(self.device, self.dtype)  # copied: views run backwards
            return self.matmat(columns).to("cpu", dtype).numpy().reshape(vectors.shape)

        numpy_dtype = torch.empty(0, dtype=dtype).numpy().dtype
        return LinearOperator((self.size, self.size), matvec=product, rmatvec=product, matmat=product, dtype=numpy_dtype)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.size:,} x {self.size:,}, {self.dtype}, {self.device}>"

    def __add__(self, other: Operator | float) -> Operator:
        if isinstance(other, Operator):
            return LinearCombination([(1.0, self), (1.0, other)])
        return LinearCombination([(1.0, self)], shift=float(other)) if isinstance(other, Real) else NotImplemented

    __radd__ = __add__

    def __sub__(self, other: Operator | float) -> Operator:
        return self + -other if isinstance(other, Operator | Real) else NotImplemented

    def __rsub__(self, other: float) -> Operator:
        return -self + other

    def __mul__(self, factor: float) -> Operator:
        return LinearCombination([(float(factor), self)]) if isinstance(factor, Real) else NotImplemented

    __rmul__ = __mul__

    def __truediv__(self, divisor: float) -> Operator:
        return self * (1 / divisor) if isinstance(divisor, Real) else NotImplemented

    def __neg__(self) -> Operator:
        return self * -1.0


class LinearCombination(Operator):
    """sum_i c_i A_i + shift I: damped, shifted, scaled operators and their sums. Products are made of products of the A_i.

    Args:
        terms: pairs of a factor and an operator, one at least.
        shift: multiple of the identity.

    Raises:
        ValueError: operators of different sizes, dtypes or devices, or factors that are not finite.
    """

    def __init__(self, terms: Sequence[tuple[float, Operator]], shift: float = 0.0) -> None:
        shift = float(shift)
        flat: list[tuple[float, Operator]] = []
        for factor, operator in terms:
            if isinstance(operator, LinearCombination):
                shift += factor * operator.shift
                flat += [(factor * inner, term) for inner, term in operator.terms]
            else:
                flat.append((factor, operator))
        first = flat[0][1]
        for _, operator in flat[1:]:
            if (operator.size, operator.dtype, operator.device) != (first.size, first.dtype, first.device):
                raise ValueError(f"operators that are added must have the same size, dtype and device, got {first} and {operator}")
        if not all(math.isfinite(number) for number in (shift, *(factor for factor, _ in flat))):
            raise ValueError(f"factors and shifts of an operator must be finite, got {[factor for factor, _ in flat]} and {shift}")
        objectives = {id(operator.objective): operator.objective for _, operator in flat if operator.objective is not None}
        super().__init__(first.size, first.dtype, first.device, next(iter(objectives.values())) if len(objectives) == 1 else None)
        self.terms: tuple[tuple[float, Operator], ...] = tuple(flat)
        self.shift: float = shift
        self.point = next((operator.point for _, operator in flat if operator.point is not None), None)

    def matvec(self, vector: Tensor) -> Tensor:
        """Return the product with a vector (n,)."""
        return self._combine(vector, [operator.matvec(vector) for _, operator in self.terms])

    def matmat(self, vectors: Tensor) -> Tensor:
        """Return the products with the columns of a matrix (n, k)."""
        return self._combine(vectors, [operator.matmat(vectors) for _, operator in self.terms])

    def _combine(self, given: Tensor, products: list[Tensor]) -> Tensor:
        total = given.to(self.dtype) * self.shift
        for (factor, _), product in zip(self.terms, products, strict=True):
            total = total.add_(product, alpha=factor)
        return total

    def __repr__(self) -> str:
        parts = [f"{factor:g} * {operator!r}" for factor, operator in self.terms]
        return f"<{' + '.join(parts + [f'{self.shift:g} I'] * bool(self.shift))}>"


class DenseOperator(Operator):
    """A symmetric matrix (n, n) that is given explicitly.

    Args:
        matrix: the matrix; anything that `torch.as_tensor` takes.

    Raises:
        ValueError: the matrix is not square or not symmetric.
    """

    def __init__(self, matrix: Any) -> None:
        matrix = torch.as_tensor(matrix)
        if not matrix.is_floating_point():
            matrix = matrix.to(torch.get_default_dtype())
        if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or not len(matrix):
            raise ValueError(f"matrix must be square and not empty, got shape {tuple(matrix.shape)}")
        tolerance = 1e3 * torch.finfo(matrix.dtype).eps * float(matrix.abs().max())
        if not bool(((matrix - matrix.T).abs() <= tolerance).all()):
            raise ValueError("matrix must be symmetric and finite")
        super().__init__(len(matrix), matrix.dtype, matrix.device)
        self.matrix = matrix

    def matvec(self, vector: Tensor) -> Tensor:
        """Return the product with a vector (n,)."""
        return self.matrix @ vector

    def matmat(self, vectors: Tensor) -> Tensor:
        """Return the products with the columns of a matrix (n, k)."""
        return self.matrix @ vectors
