"""Forward and backward as methods want them: closures, and lists of closures for batches in shards."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sam_core.training.evaluation import count_correct

if TYPE_CHECKING:
    from sam_core.training.loop import Trainer


class Pass:
    """Forward and backward of a batch, or a shard of one: the closure that methods call."""

    def __init__(self, run: Trainer, inputs: Tensor, targets: Tensor) -> None:
        self.run, self.inputs, self.targets = run, inputs, targets
        self.correct: Tensor | None = None  # in the first call, which is the unperturbed one where there is one

    @property
    def size(self) -> int:
        """Number of examples."""
        return len(self.targets)

    def __call__(self) -> Tensor:
        """Clear the gradients, compute loss and gradients, return the loss."""
        run = self.run
        run.optimizer.zero_grad(set_to_none=True)
        outputs = run.model(self.inputs)
        loss = run.loss(outputs, self.targets)
        if run.optimizer.second_order:
            # backward(create_graph=True) would tie parameter and gradient together in a cycle
            wanted = [p for p in run.optimizer.parameters() if p.requires_grad]
            for p, g in zip(wanted, torch.autograd.grad(loss, wanted, create_graph=True, allow_unused=True), strict=True):
                p.grad = g
        else:
            loss.backward()
        if self.correct is None:
            self.correct = count_correct(outputs, self.targets)
        return loss


def step_arguments(here: list[Pass], there: list[Pass] | None) -> dict[str, Any]:
    """Return the arguments of a method's step for this batch and the next, each whole or in shards."""
    given: dict[str, Any] = {}
    for passes, closure, weights in ((here, "closure", "weights"), (there, "next_closure", "next_weights")):
        if passes is None:
            continue
        given[closure] = passes[0] if len(passes) == 1 else passes
        if len(passes) > 1:
            given[weights] = [p.size for p in passes]
    return given
