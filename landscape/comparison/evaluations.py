"""Loss and accuracy of a model, piece by piece of the data: what the difference of two models on the same examples is made of."""

from __future__ import annotations

import math
from contextlib import closing

import numpy as np
import torch

from landscape.batches import count_examples
from landscape.comparison.examples import cut
from landscape.intervals import spread_to_stderr
from landscape.objective import Objective
from landscape.results.types import Array, Subsampled
from landscape.stateless import undisturbed

_PIECES = 64  # that an error bar is made of, where there are so many examples


def evaluation(objective: Objective, part: str) -> Subsampled:
    """Return loss and accuracy on all examples, and on each of at least 64 pieces of them in data order.

    Args:
        objective: the loss; with batch norm by batch statistics, its batches are the pieces.
        part: name of the data, such as "train".

    Returns:
        `values` (loss, accuracy), their standard errors over examples, and `per_part` (pieces, 2); accuracies are NaN without classes.
    """
    meter = objective.meter()
    size = max(1, objective.examples // _PIECES) if objective.batch_norm == "eval" else objective.examples
    per_part, weights, counts = _pieces(objective, size)
    values, stderr = mean_over_pieces(per_part, weights, counts)
    if not math.isclose(values[0], objective.loss_at_parameters, rel_tol=1e-4, abs_tol=1e-6):
        # A loss that is no mean over examples is another function of smaller batches.
        per_part, weights, counts = _pieces(objective, objective.examples)
        values, stderr = mean_over_pieces(per_part, weights, counts)
    return Subsampled(
        measure=f"evaluation_{part}",
        values=values,
        stderr=stderr,
        bias=np.zeros(2),
        per_part=per_part,
        part_sizes=weights,
        leave_out=False,
        converged=True,
        cost=meter.cost(),
        provenance=objective.provenance(),
    )


def _pieces(objective: Objective, size: int) -> tuple[Array, Array, Array]:
    """Return loss and accuracy of every piece (pieces, 2), the weights of the pieces, and their numbers of examples."""
    losses, rights, weights, counts = [], [], [], []
    with undisturbed(objective.device), closing(objective.batches.seeded()) as batches:
        params, held = objective.parameters, objective.held()
        for _, batch in batches:
            count = count_examples(batch)
            for start in range(0, count, size):
                piece = batch if size >= count else cut(batch, start + size, start)
                loss, outputs = objective.batch_loss_and_outputs(params, piece, held)
                right = objective.batch_correct(outputs, piece)
                losses.append(loss.double())
                rights.append(torch.full_like(losses[-1], math.nan) if right is None else right.double())
                weights.append(objective.weight(piece))
                counts.append(count_examples(piece))
        both = torch.stack([torch.stack(losses), torch.stack(rights)], 1).cpu().numpy()
    objective.count("forwards", sum(counts))
    return both / np.array([[1.0, c] for c in counts]), np.array(weights), np.array(counts, dtype=np.float64)


def mean_over_pieces(per_part: Array, weights: Array, counts: Array | None = None) -> tuple[Array, Array]:
    """Return the means (q,) of values of pieces (pieces, q), and their standard errors, widened for few pieces (`spread_to_stderr`).

    Args:
        per_part: values of pieces.
        weights: of the pieces.
        counts: of the second column, if it has weights of its own.

    Returns:
        Both.
    """
    means, errors = [], []
    for column, values in enumerate(per_part.T):
        w = weights if counts is None or column == 0 else counts
        mean = float(w @ values / w.sum())
        means.append(mean)
        errors.append(float(spread_to_stderr(w) * np.sqrt((w**2) @ (values - mean) ** 2)))
    return np.array(means), np.array(errors)
