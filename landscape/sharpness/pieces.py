"""Losses at common points, piece by piece of the data: what a difference of means is made of, and how far it varies over examples."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from typing import Any

import numpy as np
import torch
from torch import Tensor

from landscape.batches import count_examples, seed_torch
from landscape.objective import Objective, differentiable
from landscape.results.types import Array
from landscape.sharpness.shard_losses import cut
from landscape.stateless import recurrent_gradients, undisturbed

AT_LEAST = 32  # pieces that an error bar is made of, where the data have that many examples


def pieces(objective: Objective, small: bool = True) -> Generator[Any, None, None]:
    """Yield the data in pieces of at most the objective's batch size, at least `AT_LEAST` of them; with batch statistics its batches.

    Args:
        objective: whose data.
        small: False for its batches in any case.

    Yields:
        Pieces, in data order.
    """
    size = 0 if objective.batch_norm == "batch" or not small else max(1, objective.examples // AT_LEAST)
    with closing(iter(objective.batches)) as batches:
        for batch in batches:
            yield from cut(batch, size)


def losses(
    objective: Objective,
    points: Sequence[Mapping[str, Tensor]],
    evaluate: Callable[..., Tensor] | None = None,
    small: bool = True,
) -> tuple[Array, Array]:
    """Return the loss of every piece at every point (points, pieces), and the weights of the pieces (pieces,).

    Args:
        objective: the loss.
        points: parameters by name.
        evaluate: the mean loss of a batch at some parameters; None for the objective's.
        small: cut batches for the sake of an error bar over pieces.

    Returns:
        Losses and weights.
    """
    evaluate = evaluate or objective.batch_loss
    rows: list[Tensor] = []
    weights: list[float] = []
    examples = 0
    with undisturbed(objective.device), closing(pieces(objective, small)) as cut_data:
        held = objective.held()
        for index, piece in enumerate(cut_data):
            row = []
            for params in points:
                seed_torch(index, objective.device)  # a model that draws draws the same at every point
                row.append(evaluate(params, piece, held).double())
            rows.append(torch.stack(row))
            weights.append(objective.weight(piece))
            examples += count_examples(piece)
        found = torch.stack(rows, 1).cpu().numpy()
    objective.count("forwards", examples * len(points))
    return found, np.array(weights)


def slopes(objective: Objective, direction: Sequence[Tensor]) -> tuple[Array, Array]:
    """Return the slope <d, grad L_b(w)> of the loss of every piece along a direction (pieces,), and the weights of the pieces.

    Args:
        objective: the loss.
        direction: one tensor for each of the objective's parameters.

    Returns:
        Slopes and weights.
    """
    found: list[Tensor] = []
    weights: list[float] = []
    examples = 0
    params = objective.parameters
    with undisturbed(objective.device), recurrent_gradients(objective.model, objective.device), closing(pieces(objective)) as cut_data:
        held, leaves = objective.held(), {name: differentiable(params[name]) for name in objective.names}
        for index, piece in enumerate(cut_data):
            seed_torch(index, objective.device)
            with torch.enable_grad():
                value = objective.batch_loss(leaves, piece, held)
                grads = torch.autograd.grad(value, list(leaves.values()), allow_unused=True)
            parts = [torch.vdot(g.reshape(-1), d.reshape(-1)).double() for g, d in zip(grads, direction, strict=True) if g is not None]
            found.append(torch.stack(parts).sum() if parts else torch.zeros((), dtype=torch.float64, device=objective.device))
            weights.append(objective.weight(piece))
            examples += count_examples(piece)
        slopes_ = torch.stack(found).cpu().numpy()
    objective.count("gradients", examples)
    return slopes_, np.array(weights)
