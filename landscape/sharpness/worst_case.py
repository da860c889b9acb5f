r"""Worst-case adaptive sharpness by auto-PGD (Andriushchenko et al. 2023, arXiv 2302.07011):

    value = mean over shards S_i of m examples of  max_{||T^-1 eps||_p <= rho} L_i(w + eps) - L_i(w),    T = |w| + eta, or 1 if not adaptive

with p = inf or 2. The maximum is sought by auto-PGD (`climbs.auto_pgd`), so the value is a lower bound; `steps` of the result shows
how it grew. Unlike the published code, for p = 2 the ascent works in the coordinates u = T^-1 eps, where step and projection belong to
one geometry.

`normalize_logits` measures the loss of centred logits of length one, z -> (z - mean z) / ||z - mean z||: multiplying all logits by a
number, which changes no prediction, then changes nothing. With eta = 0 the adaptive measure is invariant to rescaling the layers of a
ReLU network.

It costs `steps` gradients and a forward pass per example, again for every restart. The standard error is over shards.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from landscape.batches import is_pair
from landscape.objective import Held, Objective, Parameters
from landscape.results.types import Sharpness
from landscape.sharpness.climbs import auto_pgd
from landscape.sharpness.m_sharpness import ball_and_starts
from landscape.sharpness.measurement import Known, Measurement, ascent_of, shard_size
from landscape.sharpness.shard_losses import Evaluate, ShardLoss
from landscape.sharpness.shards import Work, check_batch_statistics, over_shards


def worst_case(
    objective: Objective,
    rho: float = 0.002,
    m: int | None = 256,
    *,
    p: float = math.inf,
    adaptive: bool = True,
    eta: float = 0.0,
    steps: int = 20,
    restarts: int = 0,
    seed: int = 0,
    normalize_logits: bool = False,
    vectorize: bool | None = None,
    memory_budget: int | None = None,
    ranks: bool = False,
    known: Known = (),
    progress: bool | None = None,
) -> Sharpness:
    """Return the mean over shards of the largest rise of the loss that auto-PGD finds in the ball.

    Arguments out of range are a ValueError, a loss that is not finite a NonFiniteLossError.

    Args:
        objective: the loss; shards are consecutive in its data order, the last one may be shorter.
        rho: radius of the ball.
        m: examples per shard; None for all. With fewer than m examples in the data, all.
        p: inf or 2.
        adaptive: measure perturbations relative to |w| + eta, weight by weight.
        eta: see `adaptive`.
        steps: of auto-PGD.
        restarts: further ascents from points drawn uniformly from the ball.
        seed: of those points.
        normalize_logits: centre each example's outputs (N, classes) and divide them by their length.
        vectorize: see `m_sharpness`.
        memory_budget: see `m_sharpness`.
        ranks: see `m_sharpness`.
        known: earlier results; one of the same settings and weights is returned as it is.
        progress: show a bar; None shows it on a terminal.

    Returns:
        The value, its standard error over shards, and what was reached after each step.

    Raises:
        ValueError: p is neither 2 nor inf.
    """
    if p not in (2, math.inf):
        raise ValueError(f"p must be 2 or inf in worst_case (m_sharpness takes any p), got {p}")
    m = min(m, objective.examples) if isinstance(m, int) and m > 1 else m
    m = shard_size(objective, m)
    ascent = ascent_of(rho, p, adaptive, eta, steps, restarts, seed)
    check_batch_statistics(objective, m)
    evaluate = normalized(objective) if normalize_logits else None
    settings = {"adaptive": adaptive, "eta": float(eta), "steps": steps, "restarts": restarts, "normalize_logits": normalize_logits}
    measurement = Measurement(objective, "worst_case", rho=rho, m=m, p=p, settings=settings, seed=seed if restarts else None)
    if (earlier := measurement.earlier(known)) is not None:
        return earlier
    ball, starts = ball_and_starts(objective, ascent, restarts, seed)

    def measure(at: ShardLoss) -> Tensor:
        return auto_pgd(at, ball, starts, steps)

    passes = steps * (1 + restarts)
    work = Work(vectorize, memory_budget, progress, ranks, f"worst case, m = {m}", passes, 10)
    rows, weights = over_shards(objective, m, measure, work, evaluate=evaluate)
    measurement.check_finite(rows[:, 0], rows[:, 1:])
    gains = rows[:, 1:] - rows[:, :1]
    objective.count("gradients", objective.examples * passes)
    objective.count("forwards", objective.examples * (1 + restarts))
    return measurement.result(gains[:, -1], weights, steps=(weights[:, None] * gains).sum(0) / weights.sum())


def normalized(objective: Objective) -> Evaluate:
    """Return the loss of a batch at centred outputs of length one.

    Args:
        objective: the loss of outputs (N, classes).

    Returns:
        (parameters, batch, held) -> the loss.

    Raises:
        ValueError: the loss takes no outputs (N, classes).
    """
    first = next(iter(objective.batches))
    outputs = None
    if objective.takes == "outputs" and is_pair(first):
        with torch.no_grad():
            outputs = objective.batch_loss_and_outputs(objective.parameters, first)[1]
    if not isinstance(outputs, Tensor) or outputs.ndim < 2 or outputs.shape[1] < 2:
        raise ValueError("normalize_logits=True needs a loss(outputs, target) of outputs (N, classes)")

    def evaluate(params: Parameters, batch: Any, held: Held) -> Tensor:
        z = objective.batch_loss_and_outputs(params, batch, held)[1]
        z = z - z.mean(1, keepdim=True)
        z = z / torch.linalg.vector_norm(z, dim=1, keepdim=True).clamp(min=1e-10)
        return objective.loss_of_outputs(z, batch[1], objective.weight(batch))

    return evaluate
