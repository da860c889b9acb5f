"""Extreme eigenvalues and their vectors, by Lanczos that stops on residuals."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from landscape.curvature.lanczos import Lanczos, Ritz, generator_for
from landscape.curvature.operators import Operator, as_operator, undisturbed
from landscape.objective import Objective
from landscape.progress import progress as progress_bar
from landscape.results.types import Array, Cost, Eigenpairs, Provenance

Which = Literal["magnitude", "largest", "smallest", "both"]

_GUARD = 2  # vectors beyond the k wanted: a loose stop with none can step over an eigenvector
_GUARD_TOLERANCE = 0.03
_BASIS_KEPT = 2**28  # bytes
_SURE_UP_TO = 1000  # parameters up to which looking twice costs next to nothing


def top_eigenpairs(
    of: Objective | Operator,
    k: int = 5,
    *,
    tol: float = 1e-4,
    which: Which = "magnitude",
    max_matvecs: int | None = None,
    seed: int = 0,
    start: Tensor | None = None,
    multiplicities: bool | None = None,
    memory_budget: float = 2 * 2**30,
    keep_basis: bool | None = None,
    progress: bool | None = None,
) -> Eigenpairs:
    r"""Return the k eigenvalues of largest absolute value of the Hessian, with eigenvectors.

    Lanczos with full reorthogonalisation; it stops when every residual ||H v - lambda v|| is at most tol * max |lambda|. An eigenvalue of H
    lies within the residual of each value returned, and usually within residual^2 / gap.

    Args:
        of: an objective, for its Hessian; or an operator.
        k: how many pairs; all n of them if n < k.
        tol: bound on the residuals, relative to the largest |lambda|.
        which: "magnitude", "largest" or "smallest" (by sign), or "both": half of the pairs from each end.
        max_matvecs: products at most; None for max(300, 20 k).
        seed: of the random start vector; no global random state is used.
        start: vectors to start from, (n,) or (j, n), such as the eigenvectors of an earlier point: few products are needed then. The pairs
            returned are as good as their residuals say; one that has come up from far below since may be missing.
        multiplicities: look again, from a second random vector, for the copies of a multiple eigenvalue; doubles the cost. One start
            vector sees a single copy, except where the copies make up all that is left. None does so up to 1,000 parameters, if
            `start` is not given.
        memory_budget: bytes that the basis may take; the iteration restarts (thick restart) when it is full.
        keep_basis: keep the whole basis, with which the trace and the density cost fewer products; None does if it takes up to 256 MiB.
        progress: show a progress bar; None if stderr is a terminal.

    Returns:
        Values by descending absolute value, residuals, and orthonormal vectors (k, n) in the order of `objective.names`.

    Raises:
        ValueError: an argument is outside what is allowed.
    """
    if not isinstance(k, int) or k < 1:
        raise ValueError(f"k must be a positive integer, got {k!r}")
    if not tol > 0:
        raise ValueError(f"tol must be positive, got {tol!r}")
    if which not in ("magnitude", "largest", "smallest", "both"):
        raise ValueError(f"which must be 'magnitude', 'largest', 'smallest' or 'both', got {which!r}")
    if not memory_budget >= 0:
        raise ValueError(f"memory_budget must be a number of bytes, at least 0, got {memory_budget!r}")
    operator = as_operator(of)
    n = operator.size
    k = min(k, n)
    limit = max(300, 20 * k) if max_matvecs is None else max_matvecs
    if limit < k:
        raise ValueError(f"max_matvecs must be at least k = {k}, got {max_matvecs!r}")
    first = None if start is None else _start_vector(start, operator)
    meter = operator.objective.meter() if operator.objective else None
    capacity = int(min(memory_budget, 2**62) // (n * torch.promote_types(operator.dtype, torch.float32).itemsize))
    sure = start is None and n <= _SURE_UP_TO if multiplicities is None else multiplicities
    with undisturbed(operator), progress_bar(None, "eigenvalues", "product", show=progress) as bar:
        lanczos = Lanczos(operator, generator_for(operator, seed), first)
        search = _Search(lanczos, k, tol, which, sure, max(capacity, 2 * k + 10), guard=0 if start is not None else _GUARD)
        while lanczos.products < limit and not lanczos.exhausted:
            lanczos.step(search.end)
            bar.update()
            if search.finished():
                break
            if bar.total != search.expected:
                bar.total = search.expected
        ritz = lanczos.ritz()
        chosen = _wanted(ritz.values, which)[:k]
        chosen = chosen[np.argsort(-np.abs(ritz.values[chosen]), kind="stable")]
        vectors = lanczos.combine(ritz.coefficients[:, chosen]).to(operator.dtype)
        kept = lanczos.nbytes <= _BASIS_KEPT if keep_basis is None else keep_basis
        basis = lanczos.combine(np.eye(lanczos.size)) if kept else None
    scale = float(np.abs(ritz.values).max())
    # The recurrence knows nothing of the rounding in the products themselves, so no residual can be trusted below that.
    residuals = np.hypot(ritz.residuals[chosen], lanczos.noise * scale)
    return Eigenpairs(
        values=ritz.values[chosen],
        residuals=residuals,
        vectors=vectors,
        matvecs=lanczos.products,
        converged=len(chosen) == k and bool((residuals <= tol * scale).all()),
        tol=tol,
        which=which,
        point=operator.point,
        basis=basis,
        projected=lanczos.matrix.copy() if kept else None,
        cost=meter.cost() if meter else Cost(),
        provenance=operator.objective.provenance(seed) if operator.objective else Provenance(),
    )


class _Search:
    """Decides when to stop, restart, or look again."""

    def __init__(self, lanczos: Lanczos, k: int, tol: float, which: Which, sure: bool, capacity: int, guard: int) -> None:
        self.lanczos, self.k, self.which, self.sure, self.capacity, self.guard = lanczos, k, which, sure, capacity, guard
        self.tol = min(tol, _GUARD_TOLERANCE)
        self.end = -1  # which open end of the Krylov space to follow next
        self.expected: int | None = None  # products in the end, extrapolated
        self._found: Array | None = None  # the values before looking again
        self._since = 0  # products when that began
        self._history: list[tuple[int, float]] = []

    def finished(self) -> bool:
        """Look at the Ritz pairs after a step; restart the basis if it is full."""
        lanczos, k = self.lanczos, self.k
        n, m = lanczos.operator.size, lanczos.size
        if lanczos.exhausted:
            return True
        if m < min(k + self.guard, n):
            return False
        if m > 64 and m % (m // 32) and m < self.capacity:
            return False  # an eigenproblem of this size takes as long as a product of a small network
        ritz = lanczos.ritz()
        order = _wanted(ritz.values, self.which)
        self.end = -1
        looking = self._found is not None and lanczos.products < 2 * self._since
        if not looking and self._converged(ritz, order):
            values = ritz.values[order[:k]]
            if not self.sure or (self._found is not None and np.abs(self._found - values).max() <= self.tol * np.abs(values).max()):
                return True
            self._found, self._since = values, lanczos.products
            lanczos.refresh()
        elif not looking and self._found is not None:
            # Two chains are open: follow the one that the worst pair needs.
            worst = order[:k][np.argmax(ritz.residuals[order[:k]])]
            self.end = lanczos.end_for(ritz.coefficients[:, worst])
        if m >= self.capacity:
            keep = order[: k + (self.capacity - k) // 2]
            lanczos.restart(ritz.coefficients[:, keep])
        return False

    def _converged(self, ritz: Ritz, order: np.ndarray) -> bool:
        scale = np.abs(ritz.values).max()
        limit = max(self.tol, self.lanczos.noise) * scale
        worst = float(ritz.residuals[order[: self.k]].max())
        self._extrapolate(worst, limit)
        guard = ritz.residuals[order[self.k : self.k + min(self.guard, 1)]]
        return worst <= limit and bool((guard <= _GUARD_TOLERANCE * scale).all())

    def _extrapolate(self, worst: float, limit: float) -> None:
        self._history = [*self._history[-5:], (self.lanczos.products, math.log(max(worst, 1e-300)))]
        (m0, r0), (m1, r1) = self._history[0], self._history[-1]
        if r1 < r0 and limit > 0:
            rest = (r1 - math.log(limit)) / ((r0 - r1) / (m1 - m0))
            self.expected = m1 + max(1, math.ceil(rest))


def _wanted(values: Array, which: Which) -> np.ndarray:
    """Return the indices of ascending `values`, those that are wanted most first."""
    n = len(values)
    if which == "magnitude":
        return np.argsort(-np.abs(values), kind="stable")
    if which == "smallest":
        return np.arange(n)
    top = np.arange(n)[::-1]
    if which == "largest":
        return top
    return np.stack([top, np.arange(n)], 1).reshape(-1)[:n]


def _start_vector(start: Tensor, operator: Operator) -> Tensor:
    start = start.detach().to(operator.device, torch.promote_types(operator.dtype, torch.float32))
    if start.ndim not in (1, 2) or start.shape[-1] != operator.size:
        raise ValueError(f"start must have shape ({operator.size},) or (j, {operator.size}), got {tuple(start.shape)}")
    vector = start.reshape(-1, operator.size).sum(0)
    if not bool(torch.isfinite(vector).all()) or not bool((vector != 0).any()):
        raise ValueError("start must be finite and not zero")
    return vector
