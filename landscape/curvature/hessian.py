"""The Hessian of a loss: products by differentiating the gradient once more (Pearlmutter 1994)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from landscape.batches import count_examples
from landscape.curvature.over_batches import OverBatches
from landscape.fastforms import Form
from landscape.objective import Held, Objective

_MARK = once_differentiable(lambda ctx, grad: grad).__code__  # one code object for every backward that is marked


class HessianOperator(OverBatches):
    r"""The Hessian of the mean loss over a data set, H = sum_b n_b H_b / sum_b n_b, at one point.

    A product differentiates the gradient along the vector: H_b v = d/dw (grad loss_b(w) . v). With the graph of the gradient kept it
    takes two gradients' work, with graphs that are rebuilt three. Arguments and errors are those of `OverBatches`.
    """

    _does = "Hessian-vector product"

    def _term(self, index: int, batch: Any, point: list[Tensor], form: Form) -> _GradientGraph:
        return _GradientGraph(self._of, point, self._held, batch, form, check=index == 0)


class _GradientGraph:
    """The gradient of one batch's loss, with the graph that differentiates it again."""

    def __init__(self, objective: Objective, point: list[Tensor], held: Held, batch: Any, form: Form, check: bool) -> None:
        self.point, self.weight, self.examples = point, objective.weight(batch), count_examples(batch)
        loss = objective.batch_loss(dict(zip(objective.names, point, strict=True)), batch, held, form)
        forward = loss.grad_fn
        gradient = torch.autograd.grad(loss, point, create_graph=True, allow_unused=True) if loss.requires_grad else [None] * len(point)
        objective.count("gradients", self.examples)
        # A parameter that the loss does not use, or uses linearly, has no entry here: its rows are zero.
        self.gradient = {i: g for i, g in enumerate(gradient) if g is not None and g.requires_grad}
        if check:
            refuse_once_differentiable([forward, *(g.grad_fn for g in self.gradient.values())])

    def products(self, directions: list[Tensor], chosen: Sequence[int], *, release: bool, batched: bool) -> list[Tensor | None]:
        """Return the parts of H_b v; see `over_batches.Term`."""
        vector = dict(zip(chosen, directions, strict=True))
        used = [i for i in chosen if i in self.gradient]
        if not used:
            return [None] * len(chosen)
        outputs, along = [self.gradient[i] for i in used], [vector[i] for i in used]
        return derivative(outputs, [self.point[i] for i in chosen], along, release=release, batched=batched)


def derivative(outputs: list[Tensor], inputs: list[Tensor], along: list[Tensor], *, release: bool, batched: bool) -> list[Tensor | None]:
    """Return d/d inputs of sum_i <outputs_i, along_i>, None where it is zero.

    Args:
        outputs: tensors with a graph.
        inputs: what to differentiate by.
        along: a tensor like each output, with one more dimension in front where `batched`.
        release: free the graph.
        batched: for several `along` at once.

    Returns:
        A tensor like each input, with the additional dimension in front where `batched`.

    Raises:
        NotImplementedError: the model uses an operation without second derivative.
        RuntimeError: whatever else goes wrong in autograd.
    """
    try:
        parts = torch.autograd.grad(outputs, inputs, along, retain_graph=not release, allow_unused=True, is_grads_batched=batched)
    except RuntimeError as error:
        if "derivative for" not in str(error) or "not implemented" not in str(error):
            raise
        raise NotImplementedError(f"the model uses an operation that cannot be differentiated twice: {error}") from error
    return list(parts)


def refuse_once_differentiable(nodes: list[Any]) -> None:
    """Raise where a graph has an operation that autograd would take for linear: its backward is marked as not differentiable."""
    seen = set()
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        backward = getattr(getattr(node, "_forward_cls", None), "backward", None)
        # The second is what the mark leaves in the graph of a gradient; where what flows back is constant, it leaves nothing.
        if getattr(backward, "__code__", None) is _MARK or node.name().rsplit("::", 1)[-1] == "Error":
            raise NotImplementedError(
                f"the model or the loss uses an operation whose backward is marked once_differentiable ({node.name()}), such as a "
                "custom kernel: it has no second derivative, and the Hessian needs one"
            )
        nodes += [following for following, _ in node.next_functions]
