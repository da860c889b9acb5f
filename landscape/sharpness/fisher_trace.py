r"""The trace of the Fisher matrix, tr F = E_x E_y ||grad log p(y | x, w)||^2.

Labels y are drawn from the model ("model", the Fisher matrix itself; its trace equals that of the Gauss-Newton matrix), or are those of the
data ("data", the mean squared gradient of single examples, often called empirical Fisher; Kunstner et al. 2019, arXiv 1905.12558, say how
the two differ). Jastrzebski et al. (2021, arXiv 2012.14193) relate tr F early in training to generalisation.

It needs the gradient of every example for itself: one gradient over the data, vectorised where that is faster. The standard error is over
examples and, for drawn labels, over the draws too.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from landscape.batches import is_pair
from landscape.objective import Held, Objective, Parameters
from landscape.results.types import Sharpness
from landscape.sharpness.measurement import Known, Measurement, check_seed
from landscape.sharpness.shard_losses import ShardLoss
from landscape.sharpness.shards import Work, check_batch_statistics, over_shards


def fisher_trace(
    objective: Objective,
    *,
    labels: Literal["model", "data"] = "model",
    seed: int = 0,
    vectorize: bool | None = None,
    memory_budget: int | None = None,
    ranks: bool = False,
    known: Known = (),
    progress: bool | None = None,
) -> Sharpness:
    """Return the mean over examples of the squared norm of the gradient of one example.

    Args:
        objective: the loss; a cross-entropy of logits (N, classes) for labels drawn from the model, any loss for those of the data.
        labels: "model" draws one label per example from the model's distribution, "data" takes those of the data.
        seed: of the draws.
        vectorize: see `m_sharpness`.
        memory_budget: see `m_sharpness`.
        ranks: see `m_sharpness`.
        known: earlier results; one of the same settings and weights is returned as it is.
        progress: show a bar; None shows it on a terminal.

    Returns:
        The trace and its standard error over examples.

    Raises:
        ValueError: labels is neither, the loss is no cross-entropy of classes where labels are drawn, or batch norm would have to take
            statistics of one example.
    """
    if labels not in ("model", "data"):
        raise ValueError(f"labels must be 'model' or 'data', got {labels!r}")
    check_seed(seed)
    drawn = labels == "model"
    if drawn and not _is_cross_entropy(objective):
        raise ValueError("labels='model' needs cross_entropy(outputs, classes) as the loss, as its labels are classes; take labels='data'")
    check_batch_statistics(objective, 1)
    measurement = Measurement(objective, "fisher_trace", m=1, settings={"labels": labels}, seed=seed if drawn else None)
    if (earlier := measurement.earlier(known)) is not None:
        return earlier

    def square(at: ShardLoss) -> Tensor:
        value, gradient = at.gradient(at.weights)
        return torch.stack([value, torch.stack([g.square().sum() for g in gradient]).sum()])

    classes = _classes(objective) if drawn else 0

    def decorate(shard: Any, index: int) -> Any:
        # max_y (logits + Gumbel noise) is a draw from softmax(logits); the noise belongs to the example, whichever way it is computed.
        noise = torch.from_numpy(np.random.default_rng([seed, index]).gumbel(size=(len(shard[1]), classes)))
        return shard, noise.to(objective.device)

    def evaluate(params: Parameters, decorated: Any, held: Held) -> Tensor:
        shard, noise = decorated
        outputs = objective.batch_loss_and_outputs(params, shard, held)[1]
        label = (outputs.detach() + noise).argmax(1)
        return F.cross_entropy(outputs, label)

    work = Work(vectorize, memory_budget, progress, ranks, "Fisher trace", copies=2, joined=True)
    rows, _ = over_shards(objective, 1, square, work, evaluate=evaluate if drawn else None, decorate=decorate if drawn else None)
    measurement.check_finite(rows[:, 0], rows[:, 1])
    objective.count("gradients", objective.examples)
    # Every example counts alike, whatever weight its batch has in the loss.
    return measurement.result(rows[:, 1], np.ones(len(rows)), of_draws=True)


def _is_cross_entropy(objective: Objective) -> bool:
    loss = objective.loss_function
    plain = loss is F.cross_entropy or (isinstance(loss, nn.CrossEntropyLoss) and loss.weight is None and not loss.label_smoothing)
    first = next(iter(objective.batches))
    return plain and objective.takes == "outputs" and is_pair(first) and first[1].ndim == 1 and not first[1].is_floating_point()


def _classes(objective: Objective) -> int:
    first = next(iter(objective.batches))
    with torch.no_grad():
        outputs = objective.batch_loss_and_outputs(objective.parameters, first)[1]
    if not isinstance(outputs, Tensor) or outputs.ndim != 2:
        raise ValueError("labels='model' needs logits (N, classes) as outputs; take labels='data'")
    return outputs.shape[1]
