"""Rank correlation of two measured quantities, with how far so few points can tell it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.stats import kendalltau

from landscape.results.types import Array

_Z = 1.959964  # of a two-sided 95 % interval


@dataclass(frozen=True)
class RankCorrelation:
    """Kendall's tau of n points, with a 95 % interval and the p-value of no correlation; NaN where there are too few points."""

    tau: float
    low: float
    high: float
    p: float
    n: int

    def __str__(self) -> str:
        if not math.isfinite(self.tau):
            return f"n = {self.n}: no rank correlation"
        return f"τ = {self.tau:.2f} (95 %: {self.low:.2f} … {self.high:.2f}), p = {self.p:.2g}, n = {self.n}".replace("-", "\N{MINUS SIGN}")


def kendall_tau(x: Array, y: Array) -> RankCorrelation:
    r"""Return Kendall's tau-b of the points (x_i, y_i); points that are not finite do not count.

    tau is the share of pairs in the same order minus that in the opposite order. With C_i the sum over j of sign((x_i - x_j)(y_i - y_j)),
    its variance is (Samara and Randles 1988; Hollander and Wolfe, section 8.3)

        sigma^2 = 2 / (n (n - 1)) [2 (n - 2) / (n (n - 1)^2) sum (C_i - mean C)^2 + 1 - tau^2].

    tau ± 1.96 sigma covers too little where points are few and nothing at all where tau = 1. The interval is Wilson's, for the share
    (1 + tau) / 2 of as many independent pairs as have that variance, which are n / 2 at least (disjoint pairs are independent). It covers
    the tau of correlated normal variables in 95 to 100 of 100 samples for n = 4 ... 40. Errors of measurement are among what scatters
    the points; that seeds of one method are alike is not counted.

    Args:
        x: (n,) one quantity.
        y: (n,) the other one.

    Returns:
        tau, its interval, and the two-sided p-value, exact up to 33 points without ties.

    Raises:
        ValueError: x and y differ in length.
    """
    x, y = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    if x.shape != y.shape or x.ndim != 1:
        raise ValueError(f"x and y must be one-dimensional and of one length, got shapes {x.shape} and {y.shape}")
    there = np.isfinite(x) & np.isfinite(y)
    x, y, n = x[there], y[there], int(there.sum())
    if n < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return RankCorrelation(math.nan, math.nan, math.nan, math.nan, n)
    found = kendalltau(x, y)
    tau = min(max(float(found.statistic), -1.0), 1.0)
    concordance = (np.sign(np.subtract.outer(x, x)) * np.sign(np.subtract.outer(y, y))).sum(1)
    spread = float(np.square(concordance - concordance.mean()).sum())
    variance = 2 / (n * (n - 1)) * (2 * (n - 2) / (n * (n - 1) ** 2) * spread + 1 - tau**2)
    pairs = max((1 - tau**2) / variance if variance > 0 else 0.0, n / 2)
    share, more = (1 + tau) / 2, _Z**2 / pairs
    middle = (share + more / 2) / (1 + more)
    half = _Z / (1 + more) * math.sqrt(share * (1 - share) / pairs + more / (4 * pairs))
    return RankCorrelation(tau, max(2 * (middle - half) - 1, -1.0), min(2 * (middle + half) - 1, 1.0), float(found.pvalue), n)
