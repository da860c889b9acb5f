"""Operators J^T M J with the Jacobian J of the model's outputs: the Gauss-Newton matrix, and what Fisher matrices share with it.

The Jacobian's products need no forward mode: g(u) = J^T u is linear in u, so that J v = d/du <g(u), v> (the "double backward trick"). With
its graph kept, a product takes 4/3 of a gradient's work.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from landscape.batches import count_examples
from landscape.curvature.hessian import derivative, refuse_once_differentiable
from landscape.curvature.over_batches import OverBatches
from landscape.fastforms import Form
from landscape.objective import Objective


class Outputs:
    """What a model returned for a batch, cut off from the model: tensors of any nesting, those that carry gradients as leaves.

    Args:
        outputs: what the model returned, with its graph.
        target: what the loss compares with.
    """

    def __init__(self, outputs: Any, target: Any) -> None:
        given, self._structure = tree_flatten(outputs)
        self.places = [i for i, leaf in enumerate(given) if isinstance(leaf, Tensor) and leaf.requires_grad]
        self.attached = [given[i] for i in self.places]  # with the graph of the model
        self.leaves = [leaf.detach().requires_grad_() for leaf in self.attached]
        self._given = [leaf.detach() if isinstance(leaf, Tensor) else leaf for leaf in given]
        self.target = target

    def tree(self, tensors: Sequence[Tensor]) -> Any:
        """Return the outputs, nested as they were, with these in the places of the leaves."""
        values = list(self._given)
        for place, tensor in zip(self.places, tensors, strict=True):
            values[place] = tensor
        return tree_unflatten(values, self._structure)


class Middle(Protocol):
    """A symmetric operator on the model's outputs for a batch."""

    def product(self, tangents: list[Tensor], *, batched: bool) -> list[Tensor | None]:
        """Return M t for a tangent t of the outputs, None where it is zero; with one more dimension in front where `batched`."""
        ...


class LossHessian:
    """The Hessian of a batch's loss by the model's outputs.

    Args:
        loss: of the batch, a function of the leaves of `outputs`.
        outputs: of the model.
    """

    def __init__(self, loss: Tensor, outputs: Outputs) -> None:
        self.leaves = outputs.leaves
        used = torch.autograd.grad(loss, self.leaves, create_graph=True, allow_unused=True) if loss.requires_grad else []
        self.gradient = {i: g for i, g in enumerate(used) if g is not None and g.requires_grad}

    def product(self, tangents: list[Tensor], *, batched: bool) -> list[Tensor | None]:
        """Return M t for a tangent t of the outputs; with one more dimension in front where `batched`."""
        if not self.gradient:
            return [None] * len(self.leaves)
        outputs, along = list(self.gradient.values()), [tangents[i] for i in self.gradient]
        return derivative(outputs, self.leaves, along, release=False, batched=batched)


class OutputsOperator(OverBatches):
    """A mean over batches of J^T M J, where M is a symmetric operator on the model's outputs for the batch. The base of GGN and Fisher.

    Raises:
        ValueError: the loss takes the model itself, so that there are no outputs between them.
    """

    _does = "product"

    def __init__(
        self,
        objective: Objective,
        params: Mapping[str, Tensor] | None = None,
        *,
        memory_budget: float | None = None,
        form: Form | None = None,
        at_once: bool | None = None,
    ) -> None:
        if objective.takes != "outputs":
            raise ValueError(
                f"{type(self).__name__} needs the model's outputs, and loss(model, batch) shows none: give a loss(outputs, target) and "
                "batches that are pairs (inputs, target); HessianOperator takes any loss"
            )
        super().__init__(objective, params, memory_budget=memory_budget, form=form, at_once=at_once)

    @abstractmethod
    def _middle(self, outputs: Outputs, index: int, weight: float) -> Middle:
        """Build M for a batch."""

    def _term(self, index: int, batch: Any, point: list[Tensor], form: Form) -> _Term:
        weight = self._of.weight(batch)
        named = dict(zip(self._of.names, point, strict=True))
        outputs = Outputs(self._of.batch_loss_and_outputs(named, batch, self._held, form)[1], batch[1])
        self._of.count("gradients", count_examples(batch))
        return _Term(point, outputs, self._middle(outputs, index, weight), weight, count_examples(batch), check=index == 0)


class _Term:
    """One batch: the graphs of outputs and of g(u) = J^T u."""

    def __init__(self, point: list[Tensor], outputs: Outputs, middle: Middle, weight: float, examples: int, check: bool) -> None:
        self.point, self.outputs, self.middle, self.weight, self.examples = point, outputs.attached, middle, weight, examples
        self.cotangents = [torch.zeros_like(output).requires_grad_() for output in self.outputs]
        found = torch.autograd.grad(self.outputs, point, self.cotangents, create_graph=True, allow_unused=True) if self.outputs else []
        self.pulled = {i: g for i, g in enumerate(found) if g is not None and g.requires_grad}
        if check:
            refuse_once_differentiable([g.grad_fn for g in self.pulled.values()])

    def products(self, directions: list[Tensor], chosen: Sequence[int], *, release: bool, batched: bool) -> list[Tensor | None]:
        """Return the parts of J^T M J v; see `over_batches.Term`."""
        vector = dict(zip(chosen, directions, strict=True))
        used = [i for i in chosen if i in self.pulled]
        if not used:
            return [None] * len(chosen)
        pulled, along = [self.pulled[i] for i in used], [vector[i] for i in used]
        forward = derivative(pulled, self.cotangents, along, release=False, batched=batched)
        count = (len(directions[0]),) if batched else ()
        tangents = [torch.zeros(*count, *u.shape).to(u) if t is None else t for t, u in zip(forward, self.cotangents, strict=True)]
        images = self.middle.product(tangents, batched=batched)
        back = [(output, image) for output, image in zip(self.outputs, images, strict=True) if image is not None]
        if not back:
            return [None] * len(chosen)
        inputs = [self.point[i] for i in chosen]
        return derivative([output for output, _ in back], inputs, [image for _, image in back], release=release, batched=batched)


class GGNOperator(OutputsOperator):
    r"""The generalised Gauss-Newton matrix G = sum_b n_b J_b^T H_b J_b / sum_b n_b at one point (Schraudolph 2002).

    J_b is the Jacobian of the model's outputs for a batch, H_b the Hessian of the batch's loss by these outputs, for any twice
    differentiable loss of outputs in any nesting. For a convex loss G is positive semi-definite, and equal to the Hessian of the model that
    is linear in its parameters; for cross-entropy and squared error it is the Fisher matrix of the model's distribution.

    Arguments and errors are those of `OverBatches`.

    Raises:
        ValueError: the loss takes the model itself, so that there are no outputs between them.
    """

    _does = "Gauss-Newton product"

    def _middle(self, outputs: Outputs, index: int, weight: float) -> LossHessian:
        return LossHessian(self._of.loss_of_outputs(outputs.tree(outputs.leaves), outputs.target, weight), outputs)
