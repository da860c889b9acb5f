"""Lanczos with full reorthogonalisation: an orthonormal basis of a Krylov space, and the operator as it looks on it.

The three-term recurrence loses orthogonality as soon as a Ritz value converges, and then finds it again and again. So every product is
orthogonalised against the whole basis, twice (Parlett: "twice is enough"), as matrix-vector products on the device. All coefficients go
into the projected matrix T = Q H Q^T, which stays right when the basis is restarted (Wu and Simon 2000) or a new random vector joins it.
What products leave outside the basis are its open ends, H Q^T = Q^T T + sum_e u_e d_e^T: usually one, the next vector. They give the
residual of any Ritz vector without a product. One transfer of a few numbers per step is the only synchronisation.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from landscape.curvature.operators import Operator
from landscape.results.types import Array

_BLOCK = 16  # basis vectors per allocation: a growing basis is never copied


class Ritz(NamedTuple):
    """Eigenpairs of the projected operator, ascending."""

    values: Array  # (m,)
    coefficients: Array  # (m, m), column i belongs to value i
    residuals: Array  # (m,) ||H y - theta y||


class _End(NamedTuple):
    """A direction that leads out of the basis."""

    vector: Tensor  # (n,) u, a unit vector orthogonal to the basis
    column: Array  # (m,) d, how much of it the product of each basis vector has
    fresh: bool = True  # orthogonal to the whole basis, to rounding


class Lanczos:
    """A Krylov space that grows by one product a step.

    Args:
        operator: the symmetric operator.
        generator: draws the start vector, and the vectors that go on when an invariant subspace is complete; on the operator's device.
        start: start vector (n,), not necessarily normalised; None for a random one.
    """

    def __init__(self, operator: Operator, generator: torch.Generator, start: Tensor | None = None) -> None:
        self.operator, self.generator = operator, generator
        self.dtype = torch.promote_types(operator.dtype, torch.float32)
        self.size = 0  # vectors in the basis, m
        self.products = 0
        self.matrix: Array = np.zeros((0, 0))  # T
        self.scale = 0.0  # largest |T_ij| so far: within a factor of the largest |eigenvalue|
        self.broken_down = False  # the last step completed an invariant subspace
        self._blocks: list[Tensor] = []
        first = self._normal() if start is None else start.to(self.dtype)
        first = first / first.abs().max().clamp(min=torch.finfo(self.dtype).tiny)  # or the squares of tiny numbers vanish
        self._ends = [_End(first / torch.linalg.vector_norm(first), np.zeros(0))]
        self._gram: Array = np.ones((1, 1))  # (e, e) inner products of the ends

    @property
    def exhausted(self) -> bool:
        """Whether the basis spans the whole space."""
        return self.size == self.operator.size

    @property
    def nbytes(self) -> int:
        """Bytes that the vectors of the basis take."""
        return self.size * self.operator.size * self.dtype.itemsize

    @property
    def noise(self) -> float:
        """What the rounding of a product may add to a residual, relative to ||H||; the factor covers networks in float32."""
        return 10 * torch.finfo(self.operator.dtype).eps

    def step(self, end: int = -1) -> None:
        """Take an open end (the newest by default) into the basis and compute its product."""
        q, _, fresh = self._ends.pop(end)
        if not fresh:  # it was made orthogonal to a smaller basis, and little of it may be left: as in `refresh`
            for _ in range(2):
                q = self._orthogonalised(q)[1]
                q = q / torch.linalg.vector_norm(q)
        self._append(q)
        product = self.operator.matvec(q.to(self.operator.dtype)).to(self.dtype)
        self.products += 1
        coefficients, remainder = self._orthogonalised(product)
        vectors = [torch.addcmul(e.vector, q, torch.dot(q, e.vector), value=-1) for e in self._ends] + [remainder]
        norms = torch.stack([torch.linalg.vector_norm(v, dtype=torch.float64) for v in vectors])
        vectors = [v / norm.to(self.dtype) for v, norm in zip(vectors, norms, strict=True)]
        gram = torch.stack([torch.dot(a, b) for a in vectors for b in vectors])
        numbers = torch.cat([coefficients.double(), norms, gram.double()]).cpu().numpy()
        m, e = self.size, len(vectors)
        column, lengths, inner = numbers[:m], numbers[m : m + e], numbers[m + e :].reshape(e, e)
        self.matrix = np.pad(self.matrix, (0, 1))
        self.matrix[:, -1] = self.matrix[-1, :] = column
        self.scale = max(self.scale, float(np.abs(column).max()))
        last = np.zeros(m)
        last[-1] = lengths[-1]
        columns = [length * np.append(end.column, 0.0) for length, end in zip(lengths, self._ends, strict=False)] + [last]
        # An end without a column is a random vector that has not been followed yet.
        sizes = np.array([np.abs(c).max() / (self.scale or 1.0) if c.any() else length for c, length in zip(columns, lengths, strict=True)])
        alive = np.flatnonzero(sizes > 100 * torch.finfo(self.dtype).eps) if not self.exhausted else np.zeros(0, dtype=int)
        self.broken_down = e - 1 not in alive
        self._ends, self._gram = [_End(vectors[i], columns[i], bool(i == e - 1)) for i in alive], inner[np.ix_(alive, alive)]
        if not self._ends:
            self.refresh()

    def ritz(self) -> Ritz:
        """Return the Ritz pairs with the norms of their residuals."""
        values, coefficients = np.linalg.eigh(self.matrix)
        parts = self.leaving(coefficients)
        return Ritz(values, coefficients, np.sqrt(np.maximum(((self._gram @ parts) * parts).sum(0), 0)))

    def leaving(self, coefficients: Array) -> Array:
        """Return (e, p): the coefficients of the ends in the residuals of Q c, for the columns c of a matrix (m, p)."""
        return np.stack([end.column for end in self._ends]) @ coefficients if self._ends else np.zeros((0, coefficients.shape[1]))

    def end_for(self, coefficients: Array) -> int:
        """Return the end that has the largest part in the residual of Q c."""
        return int(np.argmax(np.abs(self.leaving(coefficients[:, None])[:, 0])))

    def refresh(self) -> None:
        """Open a random end: it leads to the copies of a multiple eigenvalue, of which one start vector sees a single one."""
        if self.exhausted:
            return
        vector = self._normal()
        # Near the full space little of a random vector is left, and what is left is rounding error: project again.
        for _ in range(2):
            _, vector = self._orthogonalised(vector)
            vector = vector / torch.linalg.vector_norm(vector)
        # Without a column it has no part in any residual, and its inner products with other ends do not matter.
        self._ends.append(_End(vector, np.zeros(self.size)))
        self._gram = np.pad(self._gram, (0, 1))
        self._gram[-1, -1] = 1

    def restart(self, keep: Array) -> None:
        """Shrink the basis to the Ritz vectors with coefficients `keep` (m, p); the Krylov space goes on from there."""
        shrunk = self.combine(keep)
        self.matrix = keep.T @ self.matrix @ keep
        self._ends = [_End(end.vector, keep.T @ end.column, end.fresh) for end in self._ends]
        self._blocks, self.size = [], 0
        for row in shrunk:
            self._append(row)

    def combine(self, coefficients: Array) -> Tensor:
        """Return the vectors Q c for the columns c of a matrix (m, p), as rows (p, n)."""
        result = torch.zeros(coefficients.shape[1], self.operator.size, dtype=self.dtype, device=self.operator.device)
        weights = torch.as_tensor(coefficients, dtype=self.dtype, device=self.operator.device)
        start = 0
        for block in self._filled():
            part = weights[start : start + len(block)]
            # One product per vector: matrix-matrix products may be set to run in TF32.
            for row, weight in zip(result, part.unbind(1), strict=True):
                row.addmv_(block.T, weight)
            start += len(block)
        return result

    def _orthogonalised(self, vector: Tensor) -> tuple[Tensor, Tensor]:
        """Return the coefficients of a vector in the basis and what is left of it."""
        total = torch.zeros(self.size, dtype=self.dtype, device=self.operator.device)
        for _ in range(2 if self.size else 0):
            parts = [block @ vector for block in self._filled()]
            for block, part in zip(self._filled(), parts, strict=True):
                vector = torch.addmv(vector, block.T, part, alpha=-1)
            total = total + torch.cat(parts)
        return total, vector

    def _normal(self) -> Tensor:
        # Drawn in float32, so that float64 starts from the same vector.
        device = self.operator.device
        return torch.randn(self.operator.size, generator=self.generator, dtype=torch.float32, device=device).to(self.dtype)

    def _append(self, vector: Tensor) -> None:
        if self.size == len(self._blocks) * _BLOCK:
            self._blocks.append(torch.empty(_BLOCK, self.operator.size, dtype=self.dtype, device=self.operator.device))
        self._blocks[-1][self.size % _BLOCK] = vector
        self.size += 1

    def _filled(self) -> list[Tensor]:
        """Return the blocks of the basis (b, n), the last one cut to the vectors it holds."""
        full, rest = divmod(self.size, _BLOCK)
        return self._blocks[:full] + ([self._blocks[full][:rest]] if rest else [])


def generator_for(operator: Operator, seed: int) -> torch.Generator:
    """Return a generator on the operator's device."""
    return torch.Generator(operator.device).manual_seed(seed)
