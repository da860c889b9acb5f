r"""Keskar's epsilon-sharpness (Keskar et al. 2017, arXiv 1609.04836, Metric 2.1 in the full space):

    value = 100 (max_{|y_i| <= eps (|w_i| + 1)} L(w + y) - L(w)) / (1 + L(w))

The box is the ball of p = inf, T = |w| + 1. The paper runs ten iterations of L-BFGS-B; here auto-PGD climbs, whose sign steps suit a box
and whose value never is below that of one SAM step. The value depends on the scale of the loss, and on that of the weights: it is not
invariant to rescaling layers.

With m = n it costs `steps` gradients and a few forward passes; the standard error then is over pieces of the data at the point that was
found, by the delta method (as the point maximises the loss, its own variation counts to second order only). With m < n the value is the
mean over shards, each with its own point.
"""

from __future__ import annotations

import math

import numpy as np
from torch import Tensor

from landscape.objective import Objective
from landscape.results.types import Sharpness
from landscape.sharpness.climbs import auto_pgd
from landscape.sharpness.m_sharpness import ball_and_starts
from landscape.sharpness.measurement import Known, Measurement, ascent_of, shard_size
from landscape.sharpness.pieces import losses
from landscape.sharpness.shard_losses import ShardLoss
from landscape.sharpness.shards import Work, check_batch_statistics, over_shards


def keskar(
    objective: Objective,
    eps: float = 1e-3,
    m: int | None = None,
    *,
    steps: int = 10,
    restarts: int = 0,
    seed: int = 0,
    vectorize: bool | None = None,
    memory_budget: int | None = None,
    ranks: bool = False,
    known: Known = (),
    progress: bool | None = None,
) -> Sharpness:
    """Return 100 (max L - L(w)) / (1 + L(w)) over the box |y_i| <= eps (|w_i| + 1), in per cent.

    Arguments out of range are a ValueError, a loss that is not finite a NonFiniteLossError.

    Args:
        objective: the loss, above -1.
        eps: half the side of the box, relative to |w| + 1; the paper takes 1e-3 and 5e-4.
        m: examples per shard; None takes all data at once, as the paper does.
        steps: of auto-PGD.
        restarts: further ascents from points drawn uniformly from the box.
        seed: of those points.
        vectorize: see `m_sharpness`.
        memory_budget: see `m_sharpness`.
        ranks: see `m_sharpness`.
        known: earlier results; one of the same settings and weights is returned as it is.
        progress: show a bar; None shows it on a terminal.

    Returns:
        The value (`rho` holds eps), its standard error, and what was reached after each step.

    Raises:
        ValueError: the loss is -1 or below.
    """
    m = shard_size(objective, m)
    ascent = ascent_of(eps, math.inf, True, 1.0, steps, restarts, seed)
    check_batch_statistics(objective, m)
    settings = {"adaptive": True, "eta": 1.0, "steps": steps, "restarts": restarts}
    measurement = Measurement(objective, "keskar", rho=eps, m=m, p=math.inf, settings=settings, seed=seed if restarts else None)
    if (earlier := measurement.earlier(known)) is not None:
        return earlier
    ball, starts = ball_and_starts(objective, ascent, restarts, seed)
    whole = m == objective.examples
    found: list[list[Tensor]] = []

    def measure(at: ShardLoss) -> Tensor:
        return auto_pgd(at, ball, starts, steps, found if whole else None)

    work = Work(False if whole else vectorize, memory_budget, progress, ranks and not whole, f"Keskar, m = {m}", steps * (1 + restarts), 10)
    rows, weights = over_shards(objective, m, measure, work)
    measurement.check_finite(rows[:, 0], rows[:, 1:])
    if (rows[:, 0] <= -1).any():
        raise ValueError(f"the loss must be above -1 to be divided by 1 + loss, it is {rows[:, 0].min():g}")
    objective.count("gradients", objective.examples * steps * (1 + restarts))
    objective.count("forwards", objective.examples * (1 + restarts))
    relative = 100 * (rows[:, 1:] - rows[:, :1]) / (1 + rows[:, :1])
    reached = (weights[:, None] * relative).sum(0) / weights.sum()
    if not whole:
        return measurement.result(relative[:, -1], weights, steps=reached)
    names, params = objective.names, objective.parameters
    point = dict(zip(names, ball.point(found[0]), strict=True))
    (before, after), weights = losses(objective, [params, point])
    base = 1 + float((weights * before).sum() / weights.sum())
    gain = float((weights * (after - before)).sum() / weights.sum())
    # The mean of these is the value, and their spread that of its linearisation in the means of the two losses.
    values = np.asarray(100 * (gain / base + (after - before - gain * (1 + before) / base) / base))
    return measurement.result(values, weights, steps=reached)
