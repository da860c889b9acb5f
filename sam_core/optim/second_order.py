"""The term that SAM drops: d eps / dw, by which L(w + eps(w)) depends on w a second time."""

import torch
from torch import Tensor

from sam_core.optim.ascent import Ascent, Site
from sam_core.optim.gradients import Gradient


def eps_with_graph(ascent: Ascent, slope: list[Tensor] | None, site: Site) -> list[Tensor]:
    """Return eps as a function of the weights.

    Raises:
        ValueError: The gradients came without their graph.
    """
    if not site.params:
        return []
    if slope is None or not any(g.requires_grad for g in slope):
        raise ValueError("second_order=True needs closures that call loss.backward(create_graph=True)")
    with torch.enable_grad():
        return ascent.perturbation(slope, site.params, site.rho, site.scaled)


def with_second_order(perturbed: Gradient, everywhere: list[Tensor], index: list[int], graph: list[Tensor]) -> Gradient:
    """Return g_s + (d eps / dw)^T g_s: the gradient of L(w + eps(w)), one vector-Jacobian product."""
    result = [None if g is None else g.detach() for g in perturbed]
    pairs = [(e, g) for e, g in zip(graph, (result[i] for i in index), strict=True) if g is not None and e.requires_grad]
    if not pairs:
        return result
    wanted = [i for i, p in enumerate(everywhere) if p.requires_grad]
    terms = torch.autograd.grad([e for e, _ in pairs], [everywhere[i] for i in wanted], [g for _, g in pairs], allow_unused=True)
    for i, term in zip(wanted, terms, strict=True):
        if term is not None:
            own = result[i]
            result[i] = term if own is None else own + term
    return result
