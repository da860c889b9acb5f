"""Dense references, computed on another way than the code under test: the plain model, all data at once, float64."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel


def flat_loss(
    model: nn.Module, loss: Callable, data: tuple, names: Sequence[str] | None = None
) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    """Return the loss of the whole data as a function of a flat float64 vector, and the vector at which the model is now."""
    model = model.eval()
    named = dict(model.named_parameters())
    chosen = {name: named[name].detach().double() for name in (names or named)}
    fixed = {name: p.detach().double() for name, p in named.items() if name not in chosen}
    fixed |= {name: b.detach().double() if b.is_floating_point() else b for name, b in model.named_buffers()}
    inputs, target = (t.double() if t.is_floating_point() else t for t in data)

    def function(vector: Tensor) -> Tensor:
        parts = torch.split(vector, [p.numel() for p in chosen.values()])
        params = {name: part.view_as(p) for (name, p), part in zip(chosen.items(), parts, strict=True)}
        return loss(functional_call(model, fixed | params, (inputs,)), target)

    return function, torch.cat([p.reshape(-1) for p in chosen.values()])


def dense_hessian(model: nn.Module, loss: Callable, data: tuple, names: Sequence[str] | None = None) -> Tensor:
    """Return the Hessian (n, n) of the mean loss over the whole data, in float64."""
    function, point = flat_loss(model, loss, data, names)
    with sdpa_kernel(SDPBackend.MATH):
        return torch.autograd.functional.hessian(function, point)


def finite_difference_product(model: nn.Module, loss: Callable, data: tuple, vector: Tensor, h: float = 1e-5) -> Tensor:
    """Return H v by central differences of the gradient, in float64: error about h^2 times the fourth derivative."""
    function, point = flat_loss(model, loss, data)

    def gradient(at: Tensor) -> Tensor:
        at = at.detach().requires_grad_()
        return torch.autograd.grad(function(at), at)[0]

    return (gradient(point + h * vector) - gradient(point - h * vector)) / (2 * h)


def top_by_magnitude(matrix: Tensor, k: int) -> np.ndarray:
    """Return the k eigenvalues of largest absolute value, descending."""
    values = torch.linalg.eigvalsh(matrix.double()).numpy()
    return values[np.argsort(-np.abs(values), kind="stable")][:k]
