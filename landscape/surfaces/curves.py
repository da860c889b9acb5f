"""Curves between two points of parameter space: their weights are sums of corners, with coefficients that depend on t in [0, 1] alone."""

from __future__ import annotations

from collections.abc import Sequence
from math import comb
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from landscape.objective import Parameters

CurveType = Literal["linear", "bezier", "chain"]


def coefficients(curve: CurveType, corners: int, t: NDArray[np.float64]) -> NDArray[np.float64]:
    r"""Return the coefficients (n, corners) of w(t) = sum_k c_k(t) w_k; they sum to one, and the ends are exactly the outer corners.

    "bezier": the Bernstein polynomials c_k = (m choose k) (1 - t)^(m - k) t^k, m = corners - 1; of degree two with one bend, as in Garipov
    et al. 2018, eq. 4. "chain": straight lines from corner to corner, each for an equal part of [0, 1], their eq. 3. "linear": the same of
    two corners.

    Args:
        curve: which.
        corners: the two ends and the bends between them.
        t: places (n,) on the curve.

    Returns:
        The coefficients.
    """
    last = corners - 1
    if curve == "bezier":
        return np.stack([comb(last, k) * (1 - t) ** (last - k) * t**k for k in range(corners)], axis=1)
    return np.clip(1 - np.abs(t[:, None] * last - np.arange(corners)), 0, None)


def place(corners: Sequence[Parameters], c: Sequence[float], out: Parameters) -> None:
    """Write sum_k c_k w_k into `out`, in place; where one coefficient is 1 it is that corner to the bit."""
    used = [(float(share), corner) for share, corner in zip(c, corners, strict=True) if share]
    targets = list(out.values())
    if not targets:
        return
    share, first = used[0]
    torch._foreach_copy_(targets, [first[name] for name in out])
    if share != 1:
        torch._foreach_mul_(targets, share)
    for share, corner in used[1:]:
        torch._foreach_add_(targets, [corner[name] for name in out], alpha=share)
