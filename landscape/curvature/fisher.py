r"""Fisher matrices: means of g_i g_i^T, where g_i is the gradient of the loss of one example.

With u_i the gradient of the loss of example i by the model's outputs for it, g_i = J_i^T u_i, and g_i g_i^T = J_i^T (u_i u_i^T) J_i: no
gradient of a single example is ever formed. "Empirical" takes the labels of the data, which is no approximation of curvature (Kunstner,
Balles, Hennig 2019); "Monte-Carlo" draws them from the model's distribution, and its expectation is the Gauss-Newton matrix.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_map

from landscape.curvature.draws import uniforms
from landscape.curvature.ggn import Outputs, OutputsOperator
from landscape.objective import Objective

Likelihood = Literal["categorical", "gaussian", "bernoulli"]

_LIKELIHOODS: dict[Any, Likelihood] = {
    F.cross_entropy: "categorical",
    nn.CrossEntropyLoss: "categorical",
    F.mse_loss: "gaussian",
    nn.MSELoss: "gaussian",
    F.binary_cross_entropy_with_logits: "bernoulli",
    nn.BCEWithLogitsLoss: "bernoulli",
}


class OuterProducts:
    """M t = 1/(n s) sum over s draws of u_i (u_i . t_i), example by example.

    Args:
        gradients: of every draw by the outputs, each (s, n, ...).
    """

    def __init__(self, gradients: list[Tensor]) -> None:
        self.shapes = [u.shape[2:] for u in gradients]
        self.stacked = torch.cat([u.detach().flatten(2) if u.ndim > 2 else u.detach()[..., None] for u in gradients], 2)  # (s, n, c)

    def product(self, tangents: list[Tensor], *, batched: bool) -> list[Tensor | None]:
        """Return M t for a tangent t of the outputs; with one more dimension in front where `batched`."""
        lead = 2 if batched else 1
        t = torch.cat([t.flatten(lead) if t.ndim > lead else t[..., None] for t in tangents], -1)  # (..., n, c)
        s, n, _ = self.stacked.shape
        inner = torch.einsum("snc,...nc->...sn", self.stacked, t)
        image = torch.einsum("snc,...sn->...nc", self.stacked, inner / (n * s))
        parts = image.split([shape.numel() for shape in self.shapes], -1)
        return [part.reshape(*part.shape[:-1], *shape) for part, shape in zip(parts, self.shapes, strict=True)]


class EmpiricalFisherOperator(OutputsOperator):
    r"""The empirical Fisher matrix (1/N) sum_i g_i g_i^T, with g_i the gradient of the loss of example i, at one point.

    The loss of a batch must be the mean (or, with reduction="sum", the sum) of losses of its examples, and the model's outputs must have
    the examples in their first dimension; with batch_norm="batch", outputs of other examples are part of g_i. Arguments are those of
    `OverBatches`.

    Raises:
        ValueError: the loss takes the model itself, or is no mean of losses of examples; or the objective weighs batches in another way
            than by their examples.
    """

    _does = "Fisher product"

    def __init__(self, objective: Objective, params: Mapping[str, Tensor] | None = None, **options: Any) -> None:
        super().__init__(objective, params, **options)
        if not objective.weighs_examples:
            raise ValueError("weight must be None: a Fisher matrix is a mean over examples, this objective weighs batches in another way")

    def _middle(self, outputs: Outputs, index: int, weight: float) -> OuterProducts:
        return OuterProducts([u[None] for u in self._example_gradients(outputs, weight, check=index == 0)])

    def _example_gradients(self, outputs: Outputs, weight: float, check: bool) -> list[Tensor]:
        """Return the gradients u_i of the losses of examples by the outputs."""
        n = round(weight)
        if any(not leaf.ndim or len(leaf) != n for leaf in outputs.leaves):
            shapes = [tuple(leaf.shape) for leaf in outputs.leaves]
            raise ValueError(f"the model's outputs must have the {n} examples of the batch in their first dimension, got shapes {shapes}")
        gradients = self._by_outputs(outputs.leaves, outputs, outputs.target, weight)
        if check:
            for i in sorted({0, n // 2, n - 1}):
                single = self._by_outputs(
                    [leaf[i : i + 1].detach().requires_grad_() for leaf in outputs.leaves], outputs, _row(outputs.target, i), 1
                )
                if not all(_close(u[i], one[0] / n) for u, one in zip(gradients, single, strict=True)):
                    raise ValueError(
                        "loss must be a mean of losses of examples for a Fisher matrix, and it is not: the loss of example "
                        f"{i} alone has another gradient than its part in the batch; class weights, ignored targets, a loss over pairs of "
                        "examples, or a sum without reduction='sum' do that"
                    )
        return [u * n for u in gradients]

    def _by_outputs(self, leaves: list[Tensor], outputs: Outputs, target: Any, weight: float) -> list[Tensor]:
        loss = self._of.loss_of_outputs(outputs.tree(leaves), target, weight)
        found = torch.autograd.grad(loss, leaves, allow_unused=True) if loss.requires_grad else [None] * len(leaves)
        return [torch.zeros_like(leaf) if u is None else u for leaf, u in zip(leaves, found, strict=True)]


class MonteCarloFisherOperator(EmpiricalFisherOperator):
    r"""The Fisher matrix of the model's distribution, with labels drawn from it: (1/(N s)) sum_i sum_s g_is g_is^T, at one point.

    The loss is c times a negative log-likelihood, up to a constant: of classes with the softmax of the outputs ("categorical"), of a normal
    distribution around the outputs ("gaussian"), or of independent yes-or-no labels with the sigmoid ("bernoulli"). The factor c is read
    from the loss; the g's are those of the log-likelihood times sqrt(c), so that the expectation is the Gauss-Newton matrix. A draw belongs
    to (seed, example, draw): the same in every product, for any batch size, on any device. Other arguments are those of `OverBatches`.

    Args:
        objective: the loss on its data.
        params: the point, by parameter name; the model's own parameters by default.
        draws: labels per example, s; the error falls with its root.
        seed: of the draws.
        likelihood: the distribution; None tells it from PyTorch's losses.
        first_example: number of the first example, where the data are a part of a larger set: on ranks, draws shall not repeat.
        **options: of `OverBatches`.

    Raises:
        ValueError: the loss takes the model itself, is none of these likelihoods, or is no mean of losses of examples.
    """

    def __init__(
        self,
        objective: Objective,
        params: Mapping[str, Tensor] | None = None,
        *,
        draws: int = 1,
        seed: int = 0,
        likelihood: Likelihood | None = None,
        first_example: int = 0,
        **options: Any,
    ) -> None:
        super().__init__(objective, params, **options)
        if not isinstance(draws, int) or draws < 1:
            raise ValueError(f"draws must be a positive integer, got {draws!r}")
        self.likelihood = likelihood or _likelihood_of(objective.loss_function)
        if self.likelihood not in ("categorical", "gaussian", "bernoulli"):
            raise ValueError(f"likelihood must be 'categorical', 'gaussian', 'bernoulli' or None, got {likelihood!r}")
        self.draws, self.seed = draws, seed
        self._starts = {0: first_example}
        self._factor: float | None = None

    def _middle(self, outputs: Outputs, index: int, weight: float) -> OuterProducts:
        n = round(weight)
        self._starts[index + 1] = self._starts[index] + n
        if len(outputs.leaves) != 1:
            raise ValueError(f"MonteCarloFisherOperator needs one tensor of outputs, got {len(outputs.leaves)} that carry gradients")
        logits = outputs.leaves[0].detach().double()
        if self._factor is None or index == 0:
            self._factor = self._scale_of_loss(logits, outputs, weight)
        # As many numbers per example as outputs, whether needed or not: which ones an example gets is then known from afar.
        u = uniforms(self.seed, self._starts[index], tuple(logits.shape), self.draws, logits.device)
        many = logits.expand(u.shape).flatten(0, 1)
        residuals = self._residual(many, self._label(many, u.flatten(0, 1))).view(u.shape)
        return OuterProducts([math.sqrt(self._factor) * residuals.to(outputs.leaves[0].dtype)])

    def _label(self, outputs: Tensor, u: Tensor) -> Tensor:
        """Draw labels with numbers that are uniform on (0, 1)."""
        if self.likelihood == "categorical":
            below = outputs.softmax(1).cumsum(1) < u.select(1, 0).unsqueeze(1)
            return below.sum(1).clamp_(max=outputs.shape[1] - 1)
        if self.likelihood == "gaussian":
            return outputs + math.sqrt(2) * torch.erfinv(2 * u - 1)
        return (u < outputs.sigmoid()).double()

    def _residual(self, outputs: Tensor, label: Tensor) -> Tensor:
        """Return the gradient of the negative log-likelihood by the outputs."""
        if self.likelihood == "categorical":
            if not label.is_floating_point():
                label = F.one_hot(label, outputs.shape[1]).movedim(-1, 1)
            return outputs.softmax(1) - label
        return (outputs if self.likelihood == "gaussian" else outputs.sigmoid()) - label

    def _scale_of_loss(self, outputs: Tensor, given: Outputs, weight: float) -> float:
        """Return c in loss = c * (-log p) + constant."""
        actual = self._example_gradients(given, weight, check=True)[0].double()
        try:
            residual = self._residual(outputs, given.target)
            factor = float((actual * residual).sum() / residual.square().sum())
            fits = factor > 0 and _close(actual, factor * residual)
        except (RuntimeError, IndexError):  # targets of another shape than outputs
            fits = False
        if not fits:
            raise ValueError(
                f"the loss is no {self.likelihood} negative log-likelihood of the model's outputs: on the first batch its gradient by the "
                "outputs is another one (label smoothing and class weights change it); GGNOperator takes any loss of outputs"
            )
        return factor


def _likelihood_of(loss: Any) -> Likelihood:
    while isinstance(loss, partial):
        loss = loss.func
    found = _LIKELIHOODS.get(type(loss) if isinstance(loss, nn.Module) else loss)
    if found is None:
        raise ValueError(
            "likelihood must be 'categorical', 'gaussian' or 'bernoulli' for a loss that is not one of PyTorch's own, got None"
        )
    return found


def _row(target: Any, i: int) -> Any:
    return tree_map(lambda t: t[i : i + 1] if isinstance(t, Tensor) and t.ndim else t, target)


def _close(a: Tensor, b: Tensor) -> bool:
    tolerance = 10 * math.sqrt(torch.finfo(torch.promote_types(a.dtype, torch.float32)).eps)
    return bool(torch.linalg.vector_norm(a.double() - b.double()) <= tolerance * torch.linalg.vector_norm(b.double()) + 1e-30)
