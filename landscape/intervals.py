"""Error bars of weighted means of few numbers."""

from __future__ import annotations

import math

import numpy as np
from scipy.stats import t as student


def student_factor(freedom: float) -> float:
    """Return how much wider than a normal 95 % interval Student's is, for so many degrees of freedom."""
    return float(student.ppf(0.975, freedom) / student.ppf(0.975, math.inf))


def spread_to_stderr(weights: np.ndarray) -> float:
    r"""Return c such that c sqrt(sum w^2 (v - mean)^2) is the standard error of mean = sum(w v) / sum(w); NaN for a single value.

    A value v over w examples has variance s^2 / w, so E sum w^2 (v - mean)^2 = s^2 W (1 - sum w^2 / W^2) with W = sum w, and the mean has
    s^2 / W. Equal weights give the usual k / (k - 1). Student's factor makes mean ± 1.96 stderr a 95 % interval for few values too;
    the sum of squares has (Satterthwaite 1946) tr(M)^2 / tr(M^2) degrees of freedom, M = diag(w) - w w^T / W.

    Args:
        weights: of the values.

    Returns:
        c.
    """
    if len(weights) < 2:
        return math.nan
    share = weights / weights.sum()
    two, three = float((share**2).sum()), float((share**3).sum())
    freedom = (1 - two) ** 2 / (two - 2 * three + two**2)
    return student_factor(freedom) / math.sqrt(1 - two) / float(weights.sum())
