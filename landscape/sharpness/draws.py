"""Losses at weights with Gaussian noise: what the average-case measures are made of."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from landscape.objective import NonFiniteLossError, Objective, Parameters
from landscape.progress import progress as progress_bar
from landscape.results.types import Array
from landscape.sharpness.measurement import check_seed, whole_number
from landscape.sharpness.over_ranks import Share
from landscape.sharpness.pieces import losses
from landscape.sharpness.shard_losses import Evaluate

Scale = Literal["none", "weight", "filter"]
_BUDGET = 2**28  # bytes of noisy weights held for one pass over the data
_AT_ONCE = 8


def scale_of(weights: list[Tensor], scale: Scale) -> list[Tensor | None]:
    """Return what noise is multiplied by, tensor by tensor: nothing, |w|, or the norm of each filter (of a vector: |w|).

    Args:
        weights: the tensors; a filter is what belongs to one index of the first dimension.
        scale: "none", "weight" or "filter".

    Returns:
        Tensors that broadcast against the weights.
    """
    if scale == "none":
        return [None] * len(weights)
    if scale == "weight":
        return [w.abs() for w in weights]
    return [w.flatten(1).norm(dim=1).view(-1, *[1] * (w.ndim - 1)) if w.ndim > 1 else w.abs() for w in weights]


def noisy_losses(
    objective: Objective,
    rho: float,
    draws: int,
    *,
    scale: Scale,
    antithetic: bool,
    seed: int,
    label: str,
    evaluate: Evaluate | None = None,
    ranks: bool = False,
    progress: bool | None = None,
) -> Array:
    """Return the mean loss at w + delta for every draw of delta ~ N(0, rho^2 diag(T^2)): (draws,), or (draws, 2) at w + delta, w - delta.

    The numbers of a draw belong to the seed and its number alone, on every device; only T differs between models of the same shape.

    Args:
        objective: the loss.
        rho: width of the noise.
        draws: how many.
        scale: T, see `scale_of`.
        antithetic: evaluate w - delta, too.
        seed: of the noise.
        label: of the progress bar.
        evaluate: the mean loss of a batch at some parameters; None for the objective's.
        ranks: deal the draws out over the processes of torch.distributed.
        progress: show a bar; None shows it on a terminal.

    Returns:
        The losses.

    Raises:
        NonFiniteLossError: a loss is NaN or infinite.
    """
    params = objective.parameters
    weights = [params[name] for name in objective.names]
    scales = scale_of(weights, scale)
    share = Share(ranks)
    mine = list(range(draws))[share.mine]
    size = sum(w.numel() * w.element_size() for w in weights) * (2 if antithetic else 1)
    at_once = max(1, min(_AT_ONCE, _BUDGET // max(size, 1)))
    rows: list[Array] = []
    with share.gathering(draws, objective.device) as gathered:
        with progress_bar(len(mine), label, "draw", show=progress) as bar:
            for start in range(0, len(mine), at_once):
                chosen = mine[start : start + at_once]
                points = [point for i in chosen for point in _points(objective, weights, scales, rho, seed, i, antithetic)]
                found, sizes = losses(objective, points, evaluate, small=False)
                rows.append((found @ sizes / sizes.sum()).reshape(len(chosen), -1))
                bar.update(len(chosen))
        gathered.append(np.concatenate(rows) if rows else np.zeros((0, 1)), np.ones(len(mine)))
    values = gathered.values
    if not np.isfinite(values).all():
        where = int(np.flatnonzero(~np.isfinite(values).all(1))[0])
        raise NonFiniteLossError(f"the loss at draw {where} (counted from 0) of noise of width {rho:g} is not finite (try a smaller rho)")
    return values if antithetic else values[:, 0]


def _points(
    objective: Objective, weights: list[Tensor], scales: list[Tensor | None], rho: float, seed: int, draw: int, antithetic: bool
) -> Iterator[Parameters]:
    # PyTorch's generator looks at 32 bits of a seed only.
    generator = torch.Generator().manual_seed(int(np.random.SeedSequence([seed, draw]).generate_state(1)[0]))
    noise = []
    for w, t in zip(weights, scales, strict=True):
        # In float64 whatever the dtype, so that float32 and float64 see the same noise.
        z = torch.randn(w.shape, generator=generator, dtype=torch.float64).to(w)
        noise.append(rho * z if t is None else rho * t * z)
    for sign in (1, -1) if antithetic else (1,):
        yield {name: w + sign * z for name, w, z in zip(objective.names, weights, noise, strict=True)}


def check_draws(rho: float, draws: int, seed: int) -> None:
    """Refuse a width, a number of draws or a seed that cannot be.

    Args:
        rho: width of the noise.
        draws: how many.
        seed: of the noise.

    Raises:
        ValueError: the width is out of range.
    """
    if isinstance(rho, bool) or not (isinstance(rho, int | float) and 0 <= rho < math.inf):
        raise ValueError(f"rho, the width of the noise, must be in [0, inf), got {rho!r}")
    whole_number("draws", draws, 3, None, "the number of draws")
    check_seed(seed)
