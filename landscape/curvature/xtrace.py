"""XTrace: a trace from random probes, each of which is a probe for the basis that all the others span."""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy.linalg import solve_triangular
from torch import Tensor

from landscape.curvature.complement import Counted, inside, length_of, signs, without
from landscape.intervals import mean_stderr
from landscape.results.types import Array

_FIRST = 8  # probes before the first look
_GROWTH = 0.25
_AT_ONCE = 16  # leave-one-out estimates: k^2 numbers each


class XTrace:
    r"""The exchangeable estimator of Epperly, Tropp and Webber (2024).

    With Y = H Omega for k random signs Omega = (w_1 ... w_k) and Q_i an orthonormal basis of the columns of Y but the i-th,
    tr_i = tr(Q_i H Q_i^T) + P_i w_i . H P_i w_i with P_i = 1 - Q_i^T Q_i is unbiased, because w_i is independent of Q_i; the estimate is
    their mean. All tr_i come from one basis Q of all columns: Q_i is Q without the direction s_i, the i-th column of R^-T, Y = Q^T R.
    Two products per probe: H w_i and H q_i.

    Args:
        operator: H.
        generator: draws the probes.
    """

    name = "xtrace"

    def __init__(self, operator: Counted, generator: torch.Generator) -> None:
        self.operator, self.generator = operator, generator
        dtype = torch.promote_types(operator.dtype, torch.float32)
        self._probes = torch.zeros(operator.size, 0, dtype=operator.dtype, device=operator.device)  # Omega
        self._basis = torch.zeros(0, operator.size, dtype=dtype, device=operator.device)  # Q
        self._inner: Array = np.zeros((0, 0))  # Q H Q^T
        self._probes_inside: Array = np.zeros((0, 0))  # W = Q Omega
        self._images_inside: Array = np.zeros((0, 0))  # R = Q H Omega
        self._scale = 0.0
        self._deficient = False
        self._estimates: Array | None = np.zeros(0)
        self._error: float | None = None

    @property
    def samples(self) -> Array:
        """The exchangeable estimates tr_i (k,)."""
        if self._estimates is None:
            self._estimates = self._leave_out()
        return self._estimates

    @property
    def ready(self) -> bool:
        """Whether there are enough probes for a spread."""
        return len(self.samples) >= min(_FIRST, self.operator.size)

    @property
    def stderr(self) -> float:
        """The standard error of the estimate."""
        if self._error is None:
            self._error = self._jackknife()
        return self._error

    def needed(self, tol: float) -> int:
        """Return how many products are still needed if the error falls no faster than that of independent probes."""
        samples = self.samples
        if len(samples) < _FIRST:
            return 2 * (_FIRST - len(samples))
        target = tol * abs(float(samples.mean()))
        ratio = (self.stderr / target) ** 2 if target else (math.inf if self.stderr else 0.0)
        return 0 if ratio <= 1 else 2**31 if ratio > 2**24 else max(2, 2 * math.ceil(len(samples) * (math.sqrt(ratio) - 1)))

    def advance(self, tol: float) -> bool:
        """Take a few more probes; False where the operator allows no more products or the space no more directions."""
        have = self._probes.shape[1]
        count = _FIRST if not have else max(2, min(math.ceil(_GROWTH * have), self.needed(tol) // 2))
        count = min(count, self.operator.left // 2, self.operator.size - have)
        if count < 1 or self._deficient:
            return False
        probes = signs(self.operator, count, self.generator)
        images = self.operator.matmat(probes)
        added = self._new_directions(images)
        products = self.operator.matmat(added.T.to(self.operator.dtype)) if len(added) else probes[:, :0]
        basis, old = torch.cat([self._basis, added]), len(self._basis)
        # What the old directions see of the new probes, and the new directions of all.
        inner = np.pad(self._inner, (0, len(added)))
        if len(added):
            inner[:, old:] = _numpy(inside(products, basis))
            inner[old:, :] = inner[:, old:].T
            inner = (inner + inner.T) / 2
        w, r = np.zeros((len(basis), have + count)), np.zeros((len(basis), have + count))
        w[:old, :have], r[:old, :have] = self._probes_inside, self._images_inside
        w[:, have:], r[:, have:] = _numpy(inside(probes, basis)), _numpy(inside(images, basis))
        if len(added) and have:
            w[old:, :have] = _numpy(inside(self._probes, added))  # old images lie in the old basis: r there is zero
        self._probes, self._basis = torch.cat([self._probes, probes], 1), basis
        self._inner, self._probes_inside, self._images_inside = inner, w, r
        self._estimates = self._error = None
        return True

    def _new_directions(self, images: Tensor) -> Tensor:
        """Return orthonormal rows that span what the columns of a matrix add to the basis."""
        found = self._basis
        noise = 100 * torch.finfo(self.operator.dtype).eps
        for image in images.unbind(1):
            image = image.to(found.dtype)
            self._scale = max(self._scale, length_of(image))
            rest = without(image, found)
            length = length_of(rest)
            if length <= noise * self._scale:
                self._deficient = True  # the range of the operator is exhausted: every further image lies in it
            else:
                found = torch.cat([found, without(rest / length, found)[None]])
        return found[len(self._basis) :]

    def _leave_out(self) -> Array:
        """Return tr_i for all i."""
        s = self._missing()
        trace = np.trace(self._inner)
        if s is None:
            return trace + self._quadratic(self._probes_inside)
        return trace - (s * (self._inner @ s)).sum(0) + self._quadratic(_without(self._probes_inside, s))

    def _missing(self) -> Array | None:
        """Return the unit vectors s_i (k, k), as columns; None where the others span the whole range without any one of them."""
        m, k = self._probes_inside.shape
        if m < k:
            return None
        s = solve_triangular(self._images_inside, np.eye(k), trans="T")
        return s / np.linalg.norm(s, axis=-2, keepdims=True)

    def _quadratic(self, left: Array) -> Array:
        """Return x . H x for x = w_i - Q^T left_i; Q H w_i is known, it is the i-th column of R."""
        w, r = self._probes_inside, self._images_inside
        return (w * r).sum(-2) - 2 * (left * r).sum(-2) + (left * (self._inner @ left)).sum(-2)

    def _jackknife(self) -> float:
        """Return the standard error of the estimate, from what it would be without each of the probes.

        The tr_i are correlated, so their spread does not tell. By Efron and Stein (1981) the jackknife errs on the safe side.
        """
        samples, s = self.samples, self._missing()
        k = len(samples)
        if k < 3:
            return math.inf
        rounding = np.finfo(np.float64).eps * float(np.abs(samples).max())
        if s is None:
            return float(np.hypot(samples.std(ddof=1), rounding))
        h, w = self._inner, self._probes_inside
        estimates = np.zeros(k)
        for chosen in np.array_split(np.arange(k), -(-k // _AT_ONCE)):
            one = s.T[chosen, :, None]  # s_j for each probe j that is left out of everything
            both = _without(np.broadcast_to(s, (len(chosen), *s.shape)), one)  # and what the others but the i-th lack besides
            lengths = np.linalg.norm(both, axis=-2, keepdims=True)
            lengths[np.arange(len(chosen)), 0, chosen] = np.inf  # the probe itself
            both = both / lengths
            gone = (one * (h @ one)).sum(-2) + (both * (h @ both)).sum(-2)
            each = np.trace(h) - gone + self._quadratic(_without(_without(np.broadcast_to(w, both.shape), one), both))
            each[np.arange(len(chosen)), chosen] = 0
            estimates[chosen] = each.sum(-1) / (k - 1)
        return float(np.hypot(mean_stderr((k - 1) * estimates), rounding))


def _without(columns: Array, units: Array) -> Array:
    """Return columns (..., m, k) without their parts along unit vectors: a column (..., m, 1) for all, or (..., m, k) one for each."""
    return columns - units * (units * columns).sum(-2, keepdims=True)


def _numpy(tensor: Tensor) -> Array:
    return tensor.double().cpu().numpy()
