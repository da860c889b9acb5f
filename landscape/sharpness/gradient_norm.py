r"""The norm of the gradient, ||grad L(w)||_q: SAM's gap per unit of rho, for small rho (gap = rho ||g||_q + O(rho^2), 1/p + 1/q = 1).

Penalised as such by Zhao et al. (2022, arXiv 2202.03599). With m < n it is the mean over shards of ||grad L_i(w)||_q, which noise of the
gradient makes larger: E ||g_i||^2 = ||g||^2 + (variance of the gradient) / m.

The standard error with m = n is that of the mean over pieces b of the data of <d, grad L_b(w)>, d the gradient's own direction, whose mean
is the norm. It costs one gradient for the value and one for the error.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from landscape.objective import Objective
from landscape.results.types import Sharpness
from landscape.sharpness.measurement import Known, Measurement, shard_size
from landscape.sharpness.pieces import slopes
from landscape.sharpness.shard_losses import ShardLoss
from landscape.sharpness.shards import Work, check_batch_statistics, over_shards
from sam_core.optim.ascent import PNorm, dual


def gradient_norm(
    objective: Objective,
    *,
    m: int | None = None,
    p: float = 2.0,
    vectorize: bool | None = None,
    memory_budget: int | None = None,
    ranks: bool = False,
    known: Known = (),
    progress: bool | None = None,
) -> Sharpness:
    """Return ||grad L(w)||_q, or its mean over shards of m examples.

    Arguments out of range are a ValueError, a gradient that is not finite a NonFiniteLossError.

    Args:
        objective: the loss.
        m: examples per shard; None takes all data at once.
        p: the norm of weights whose dual norm is taken, 1/p + 1/q = 1; 2 is its own dual.
        vectorize: see `m_sharpness`.
        memory_budget: see `m_sharpness`.
        ranks: see `m_sharpness`; not used with all data at once.
        known: earlier results; one of the same settings and weights is returned as it is.
        progress: show a bar; None shows it on a terminal.

    Returns:
        The norm and its standard error, over shards or over pieces of the data.
    """
    m = shard_size(objective, m)
    PNorm(1.0, p)  # refuses a norm that cannot be
    check_batch_statistics(objective, m)
    measurement = Measurement(objective, "gradient_norm", m=m, p=p)
    if (earlier := measurement.earlier(known)) is not None:
        return earlier
    if m == objective.examples:
        gradient = objective.gradient()[1]
        direction = dual([gradient[name] for name in objective.names], p)
        values, weights = slopes(objective, direction)
        measurement.check_finite(np.zeros(len(values)), values, "piece")
        return measurement.result(values, weights)

    def norm(at: ShardLoss) -> Tensor:
        value, gradient = at.gradient(at.weights)
        flat = torch.cat([g.reshape(-1) for g in gradient])
        q = math.inf if p == 1 else 1.0 if p == math.inf else p / (p - 1)
        return torch.stack([value, torch.linalg.vector_norm(flat, q)])

    work = Work(vectorize, memory_budget, progress, ranks, f"gradient norm, m = {m}", joined=True)
    rows, weights = over_shards(objective, m, norm, work)
    measurement.check_finite(rows[:, 0], rows[:, 1])
    objective.count("gradients", objective.examples)
    return measurement.result(rows[:, 1], weights)
