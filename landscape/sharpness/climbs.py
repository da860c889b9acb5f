r"""Ascent of several steps inside a ball, for one shard: what it reached after each step.

`projected_ascent` is SAM's climb repeated: u_k = P(u_{k-1} + rho / sqrt(k) d(u_{k-1})), d the steepest direction of the p-norm at
w + T u and P the projection onto the ball. From u_0 = 0 the first step is SAM's own. Steps do not depend on their number, so that more
steps never find less.

`auto_pgd` is the rule of Croce and Hein (2020, arXiv 2003.01690) in parameter space, as Andriushchenko et al. (2023) use it: steps of
length eta from 2 rho on, momentum 0.75, and at checkpoints 0.22, 0.41, ... of all steps eta is halved, and the ascent goes on from the best
point, if fewer than 75 % of the steps since the last checkpoint went up, or if neither eta nor the best value has changed.

All decisions are tensors, so that both run inside `torch.func.vmap`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from landscape.sharpness.ball import Ball
from landscape.sharpness.shard_losses import ShardLoss

Start = list[Tensor] | None  # None is the model's own weights


def projected_ascent(at: ShardLoss, ball: Ball, starts: Sequence[Start], steps: int) -> Tensor:
    """Return the loss before, and the largest loss after each step of any start.

    Args:
        at: the loss of a shard.
        ball: where to stay.
        starts: points to start from.
        steps: of each start.

    Returns:
        (1 + steps,). It costs one gradient for each step and one forward pass, per start.
    """
    before, first = at.gradient(at.weights)
    best: Tensor | None = None
    for start in starts:
        u = ball.centre() if start is None else start
        g = first if start is None else at.gradient(ball.point(u))[1]
        reached: list[Tensor] = []
        for k in range(1, steps + 1):
            u = ball.project([x + ball.rho / math.sqrt(k) * d for x, d in zip(u, ball.uphill(g), strict=True)])
            if k < steps:
                value, g = at.gradient(ball.point(u))
            else:
                value = at.value(ball.point(u))
            reached.append(torch.maximum(reached[-1], value) if reached else value)
        found = torch.stack(reached)
        best = found if best is None else torch.maximum(best, found)
    assert best is not None
    return torch.cat([before.reshape(1).to(best.dtype), best])


def auto_pgd(at: ShardLoss, ball: Ball, starts: Sequence[Start], steps: int, where: list[list[Tensor]] | None = None) -> Tensor:
    """Return the loss before, and the largest loss found up to each step of any start, not below the loss before.

    Args:
        at: the loss of a shard.
        ball: where to stay.
        starts: points to start from.
        steps: of each start.
        where: a list that the best point u is appended to.

    Returns:
        (1 + steps,). It costs one gradient for each step and one forward pass, per start.
    """
    before, first = at.gradient(at.weights)
    best, top, best_u = before.reshape(1), before, ball.centre()
    for start in starts:
        if start is None:
            found, u = _auto_pgd(at, ball, ball.centre(), before, first, steps)
        else:
            found, u = _auto_pgd(at, ball, start, *at.gradient(ball.point(start)), steps)
        best_u = _choose(found[-1] > top, u, best_u)
        best = torch.maximum(best, found)
        top = best[-1]
    if where is not None:
        where.append(best_u)
    return torch.cat([before.reshape(1), best])


def checkpoints(steps: int) -> list[int]:
    """Return after how many steps the length of steps is reconsidered: ceil(p_j steps), p_{j+1} = p_j + max(p_j - p_{j-1} - 0.03, 0.06)."""
    shares, found = [0.0, 0.22], list[int]()
    while (at := math.ceil(shares[-1] * steps - 1e-9)) < steps:
        if not found or at > found[-1]:
            found.append(at)
        shares.append(shares[-1] + max(shares[-1] - shares[-2] - 0.03, 0.06))
    return found


def _auto_pgd(at: ShardLoss, ball: Ball, u: list[Tensor], value: Tensor, g: list[Tensor], steps: int) -> tuple[Tensor, list[Tensor]]:
    last, best_u, best_g, best = u, u, g, value
    eta = torch.full_like(value, 2 * ball.rho)
    rises = torch.zeros_like(value)
    checked, eta_then, best_then = 0, eta, best
    look = set(checkpoints(steps))
    reached = []
    for k in range(1, steps + 1):
        new = ball.project([x + eta * d for x, d in zip(u, ball.uphill(g), strict=True)])
        if k > 1:
            new = ball.project([x + 0.75 * (z - x) + 0.25 * (x - y) for x, y, z in zip(u, last, new, strict=True)])
        last, u, before = u, new, value
        if k < steps:
            value, g = at.gradient(ball.point(u))
        else:
            value = at.value(ball.point(u))
        rises = rises + (value > before)
        # A loss that is no number is kept, to be told, not passed over.
        better = ~(value <= best) & ~best.isnan()
        best_u, best_g = _choose(better, u, best_u), _choose(better, g, best_g)
        best = torch.where(better, value, best)
        reached.append(best)
        if k in look:
            halve = (rises < 0.75 * (k - checked)) | ((eta == eta_then) & (best == best_then))
            checked, eta_then, best_then = k, eta, best
            rises = torch.zeros_like(rises)
            eta = torch.where(halve, eta / 2, eta)
            u, last, g = _choose(halve, best_u, u), _choose(halve, best_u, last), _choose(halve, best_g, g)
            value = torch.where(halve, best, value)
    return torch.stack(reached), best_u


def _choose(condition: Tensor, yes: list[Tensor], no: list[Tensor]) -> list[Tensor]:
    return [torch.where(condition, a, b) for a, b in zip(yes, no, strict=True)]
