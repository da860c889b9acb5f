r"""m-sharpness (Foret et al. 2021, arXiv 2010.01412): how far the loss rises in the step that SAM climbs, shard by shard.

The data are cut into consecutive shards S_i of m examples, and each climbs along its own gradient:

    value = sum_i |S_i| v_i / sum_i |S_i|,    v_i = L_i(w + eps_i) - L_i(w),    eps_i = argmax of the linearised L_i in the rho-ball

with eps_i from `sam_core.optim.ascent`: what is measured is what is trained. m counts examples per shard; in mSAM (Behdin et al. 2023) m is
the number of shards. The value depends on m, rho, p, the data and the batch-norm mode; results carry them all. It costs one gradient and
one forward pass per example, whatever m; with `steps` that many gradients, and again for every restart.

The standard error is that of the mean over shards. With one shard (m = n) there is none: NaN.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from landscape.objective import Objective
from landscape.results.types import Sharpness
from landscape.sharpness.ball import Ball
from landscape.sharpness.climbs import Start, projected_ascent
from landscape.sharpness.measurement import Known, Measurement, ascent_of, shard_size, weighted_mean
from landscape.sharpness.shard_losses import JoinedStacks, ShardLoss
from landscape.sharpness.shards import Measure, Work, check_batch_statistics, over_shards
from sam_core.optim.ascent import PNorm
from sam_core.optim.vectors import safe

__all__ = ["m_sharpness", "weighted_mean"]


def m_sharpness(
    objective: Objective,
    rho: float = 0.05,
    m: int = 128,
    *,
    p: float = 2.0,
    adaptive: bool = False,
    eta: float = 0.0,
    steps: int = 1,
    restarts: int = 0,
    seed: int = 0,
    vectorize: bool | None = None,
    memory_budget: int | None = None,
    ranks: bool = False,
    known: Known = (),
    progress: bool | None = None,
) -> Sharpness:
    """Return the mean over shards of m examples of L_i(w + eps_i) - L_i(w).

    Arguments out of range, and a shard of one example that would have to give batch statistics, are a ValueError; a loss that is NaN or
    infinite, before or after the climb, is a NonFiniteLossError that tells the shard.

    Args:
        objective: the loss; shards are consecutive in its data order, the last one may be shorter.
        rho: radius of the climb.
        m: examples per shard, 1 ... n. m = n gives the loss gap of one full-batch SAM step.
        p: the ball is one of the p-norm, 1 <= p <= inf.
        adaptive: measure steps relative to |w| + eta, weight by weight.
        eta: see `adaptive`.
        steps: of the climb; with more than one it stays in the ball and the largest loss counts (`climbs.projected_ascent`).
        restarts: further climbs of as many steps, from points drawn uniformly from the ball, the same for every shard.
        seed: of those points.
        vectorize: compute many shards at once (`torch.func.vmap`), or loop; None tries both on the first shards and takes the faster.
        memory_budget: bytes for shards computed at once.
        ranks: deal the shards out over the processes of torch.distributed; all of them call alike, on the same data.
        known: earlier results; one of the same settings and weights is returned as it is.
        progress: show a bar; None shows it on a terminal.

    Returns:
        The value, its standard error over shards, widened for few of them such that value ± 1.96 stderr covers in 95 % of all runs (NaN
        with one shard), the values of the shards, and with several steps or restarts the value reached after each step; `measure` then is
        "multistep_m_sharpness".
    """
    m = shard_size(objective, m)
    ascent = ascent_of(rho, p, adaptive, eta, steps, restarts, seed)
    check_batch_statistics(objective, m)
    single = steps == 1 and not restarts
    measurement = Measurement(
        objective,
        ("" if single else "multistep_") + ("adaptive_m_sharpness" if adaptive else "m_sharpness"),
        rho=rho,
        m=m,
        p=p,
        settings={"adaptive": adaptive, "eta": float(eta), "steps": steps, "restarts": restarts},
        seed=seed if restarts else None,
    )
    if (earlier := measurement.earlier(known)) is not None:
        return earlier
    measure = _one_step(ascent) if single else several_steps(objective, ascent, steps, restarts, seed)
    passes = steps * (1 + restarts)
    work = Work(
        vectorize,
        memory_budget,
        progress,
        ranks,
        f"m-sharpness, m = {m}",
        passes,
        4 if single else 6,
        stacked=_one_step_of_all(ascent) if single else None,
    )
    rows, weights = over_shards(objective, m, measure, work)
    before, after = rows[:, 0], rows[:, 1:]
    measurement.check_finite(before, after)
    gains = after - before[:, None]
    # Every climb takes a gradient where it starts and at each step but the last, whose loss alone is asked for.
    objective.count("gradients", objective.examples * passes)
    objective.count("forwards", objective.examples * (1 + restarts))
    reached = None if single else (weights[:, None] * gains).sum(0) / weights.sum()
    return measurement.result(gains[:, -1], weights, steps=reached)


def _one_step(ascent: PNorm) -> Measure:
    """Return SAM's own step as a measure: losses before and after."""

    def measure(at: ShardLoss) -> Tensor:
        before, gradient = at.gradient(at.weights)
        eps = ascent.perturbation(gradient, at.weights)
        return torch.stack([before, at.value([w + e for w, e in zip(at.weights, eps, strict=True)])])

    return measure


def _one_step_of_all(ascent: PNorm) -> Callable[[JoinedStacks], Tensor]:
    """Return the same for all shards in one go, (S, 2)."""

    def measure(at: JoinedStacks) -> Tensor:
        before, gradients = at.gradients()
        return torch.stack([before, at.values(climbed(ascent, gradients, at.weights))], 1)

    return measure


def climbed(ascent: PNorm, gradients: Tensor, weights: Tensor) -> Tensor:
    """Return w + eps for the gradient of every shard; SAM's own ball, p = 2, in fewer passes over memory than under `vmap`.

    Args:
        ascent: rho, p, adaptive and eta.
        gradients: (S, n), overwritten.
        weights: w (n,).

    Returns:
        (S, n).
    """
    if ascent.p != 2 or ascent.adaptive:
        return weights + torch.func.vmap(lambda g: ascent.perturbation([g], [weights])[0])(gradients)
    assert isinstance(ascent.rho, float)
    # Relative to the largest entry no square under- or overflows.
    gradients /= safe(torch.linalg.vector_norm(gradients, math.inf, dim=1, keepdim=True))
    length = safe(torch.linalg.vector_norm(gradients, dim=1, keepdim=True))
    return torch.addcmul(weights, gradients, ascent.rho / length)


def several_steps(objective: Objective, ascent: PNorm, steps: int, restarts: int, seed: int) -> Measure:
    """Return a climb of several steps as a measure: the loss before, and the largest after each step.

    Args:
        objective: whose weights are the centre of the ball.
        ascent: rho, p, adaptive and eta.
        steps: of every climb.
        restarts: climbs from random points.
        seed: of the points.

    Returns:
        The measure.
    """
    ball, starts = ball_and_starts(objective, ascent, restarts, seed)
    return lambda at: projected_ascent(at, ball, starts, steps)


def ball_and_starts(objective: Objective, ascent: PNorm, restarts: int, seed: int) -> tuple[Ball, list[Start]]:
    """Return the ball around the model's weights, and where to climb from: the weights, and random points.

    Args:
        objective: whose weights.
        ascent: rho, p, adaptive and eta.
        restarts: number of random points.
        seed: of the points.

    Returns:
        Both.
    """
    params = objective.parameters
    ball = Ball(ascent, [params[name] for name in objective.names])
    generator = np.random.default_rng(seed)
    return ball, [None, *(ball.random(generator) for _ in range(restarts))]
