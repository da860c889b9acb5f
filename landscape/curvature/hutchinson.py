"""Hutchinson's estimator of a trace, on the whole space or on what is orthogonal to a basis on which the trace is known."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from landscape.curvature.complement import Counted, Known, column_dots, inside, signs, without
from landscape.intervals import mean_stderr
from landscape.results.types import Array

MIN_PROBES = 16  # before the spread over probes says anything about the error
_GROWTH = 0.25  # more probes by at most this share between two looks at the error


class Hutchinson:
    r"""tr H = tr(Q H Q^T) + E[Pz . H Pz] with random signs z and P = 1 - Q^T Q; holds for any orthonormal Q (m, n), also an empty one.

    With Q spanning the outliers of the spectrum, these no longer add to the variance, 2 (||P H P||_F^2 - sum_i (P H P)_ii^2).

    Args:
        operator: H.
        generator: draws the probes.
        known: Q and Q H Q^T; Q must not depend on probes that are still to be drawn.
    """

    name = "hutchinson"

    def __init__(self, operator: Counted, generator: torch.Generator, known: Known | None = None) -> None:
        self.operator, self.generator, self.known = operator, generator, known
        self._new: list[Tensor] = []  # on the device: read when somebody looks
        self._samples: list[float] = []

    @property
    def samples(self) -> Array:
        """An independent estimate of the trace from each probe."""
        if self._new:
            self._samples += torch.cat(self._new).tolist()
            self._new = []
        return np.array(self._samples) + (self.known.trace if self.known else 0.0)

    @property
    def stderr(self) -> float:
        """The standard error of their mean."""
        return mean_stderr(self.samples)

    @property
    def ready(self) -> bool:
        """Whether the spread over probes says something."""
        return len(self.samples) >= MIN_PROBES

    def needed(self, tol: float) -> int:
        """Return how many products are still needed, as far as can be seen now."""
        samples = self.samples
        if len(samples) < MIN_PROBES:
            return MIN_PROBES - len(samples)
        now, target = mean_stderr(samples), tol * abs(float(samples.mean()))
        if now <= target:
            return 0
        ratio = (now / target) ** 2 if target else math.inf
        return 2**31 if ratio > 2**24 else max(1, math.ceil(len(samples) * (ratio - 1)))

    def advance(self, tol: float) -> bool:
        """Take a few more products towards a relative error of `tol`; False where the operator allows no more."""
        have = len(self.samples)
        count = MIN_PROBES - have if have < MIN_PROBES else min(self.needed(tol), max(1, math.ceil(_GROWTH * have)))
        count = min(count, self.operator.left)
        if count < 1:
            return False
        probes = signs(self.operator, count, self.generator)
        if self.known is not None:
            probes = without(probes, self.known.basis)
        self._new.append(column_dots(probes, self.operator.matmat(probes)))
        return True

    def take(self, probes: Tensor, products: Tensor) -> None:
        """Make samples of probes (n, k) whose products H z are there, without further products."""
        values = column_dots(probes, products)
        if self.known is not None:
            # Pz . H Pz = z.Hz - 2 Qz.QHz + Qz.(Q H Q^T) Qz
            a, b = inside(probes, self.known.basis).double(), inside(products, self.known.basis).double()
            t = torch.as_tensor(self.known.projected, dtype=torch.float64, device=a.device)
            values = values - 2 * (a * b).sum(0) + (a * (t @ a)).sum(0)
        self._new.append(values)
