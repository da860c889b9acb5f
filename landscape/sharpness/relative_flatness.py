r"""Relative flatness (Petzka et al. 2021, arXiv 2001.00939): the curvature of one layer, relative to its weights,

    kappa = sum_{s, t} <w_s, w_t> tr(H_st)

with w_s the weights of neuron s (row s of W, kernels flattened) and H_st the block of the Hessian between neurons s and t. It is invariant
to rescaling neurons and layers of a ReLU network. The paper takes the last layer, or the one whose output is the feature space.

With H the layer's Hessian, kappa = tr(H (W W^T x 1)), and V = W Z with a matrix Z of random signs has covariance W W^T x 1: the mean of
<V, H V> over draws is unbiased. It costs one gradient and `draws` Hessian-vector products with one layer. The standard error is over
draws, with the data as they are.
"""

from __future__ import annotations

from contextlib import closing

import numpy as np
import torch
from torch import Tensor

from landscape.objective import NonFiniteLossError, Objective, differentiable, twice_differentiable
from landscape.progress import progress as progress_bar
from landscape.results.types import Sharpness
from landscape.sharpness.draws import check_draws
from landscape.sharpness.measurement import Known, Measurement
from landscape.stateless import recurrent_gradients, undisturbed


def relative_flatness(
    objective: Objective,
    layer: str | None = None,
    *,
    draws: int = 50,
    seed: int = 0,
    known: Known = (),
    progress: bool | None = None,
) -> Sharpness:
    """Return kappa of one layer.

    Args:
        objective: the loss.
        layer: name of a parameter with at least two dimensions, such as "4.weight"; None for the last one.
        draws: number of random matrices, at least 3.
        seed: of the draws.
        known: earlier results; one of the same settings and weights is returned as it is.
        progress: show a bar; None shows it on a terminal.

    Returns:
        The value, its standard error over draws, and the estimate of each draw.

    Raises:
        ValueError: there is no such parameter, or it has fewer than two dimensions.
        NonFiniteLossError: a product is NaN or infinite.
    """
    check_draws(0.0, draws, seed)
    params = objective.parameters
    matrices = [name for name in objective.names if params[name].ndim > 1]
    if not matrices:
        raise ValueError("no parameter that varies has two dimensions or more: relative flatness is that of a layer with neurons")
    layer = matrices[-1] if layer is None else layer
    if layer not in matrices:
        raise ValueError(f"layer must be the name of a parameter with neurons, one of {', '.join(matrices)}; got {layer!r}")
    settings = {"layer": layer, "draws": draws}
    measurement = Measurement(objective, "relative_flatness", m=objective.examples, settings=settings, seed=seed)
    if (earlier := measurement.earlier(known)) is not None:
        return earlier
    values = _products(objective, layer, draws, seed, progress)
    if not np.isfinite(values).all():
        raise NonFiniteLossError(f"the curvature of {layer} is not finite")
    objective.count("gradients", objective.examples)
    objective.count("hvps", objective.examples * draws)
    return measurement.result(values, np.ones(draws), of_draws=True)


def _products(objective: Objective, layer: str, draws: int, seed: int, show: bool | None) -> np.ndarray:
    """Return <V, H V> for every draw of V."""
    params = objective.parameters
    w = params[layer]
    rows = w.reshape(len(w), -1)
    with (
        undisturbed(objective.device),
        recurrent_gradients(objective.model, objective.device),
        twice_differentiable(),
        closing(objective.batches.seeded()) as batches,
        progress_bar(None, "relative flatness", "batch", show=show) as bar,
    ):
        held, weight = objective.held(), 0.0
        total = torch.zeros(draws, dtype=torch.float64, device=objective.device)
        for _, batch in batches:
            leaf = differentiable(w)
            with torch.enable_grad():
                loss = objective.batch_loss(params | {layer: leaf}, batch, held)
                (gradient,) = torch.autograd.grad(loss, [leaf], create_graph=True, materialize_grads=True)
            n = objective.weight(batch)
            generator = torch.Generator().manual_seed(seed)  # the same matrices for every batch, drawn anew instead of kept
            products: list[Tensor] = []
            for _ in range(draws):
                signs = torch.randint(0, 2, (rows.shape[1], rows.shape[1]), generator=generator).to(w) * 2 - 1
                v = (rows @ signs).view_as(w)
                if gradient.requires_grad:
                    (hv,) = torch.autograd.grad(gradient, [leaf], v, retain_graph=True, materialize_grads=True)
                else:  # a loss that is linear in the layer
                    hv = torch.zeros_like(v)
                products.append((v.double() * hv.double()).sum())
            total += n * torch.stack(products)
            weight += n
            bar.update(1)
        return (total / weight).cpu().numpy()
