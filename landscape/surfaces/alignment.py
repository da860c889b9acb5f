"""Permuting the units of one network such that its weights come near to those of another: weight matching (Ainsworth et al. 2022).

Two networks that were trained from different starts may differ by little more than the order of their units (Entezari et al. 2022). After
alignment the loss on the straight line between them shows what is left.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torch.func import functional_call

from landscape.batches import seed_torch
from landscape.objective import Objective
from landscape.stateless import skeleton_of, undisturbed
from landscape.surfaces.channels import Channels, Index, channels_of
from landscape.surfaces.weights import Point, Weights, weights_of

_ROUNDS = 100


def aligned(objective: Objective, a: Point | Weights, b: Point | Weights, *, seed: int = 0) -> Weights:
    r"""Permute the units of b such that its weights are as near as this finds to those of a; its function stays the same.

    Git Re-Basin's weight matching (arXiv 2209.04836, algorithm 1): layer after layer in random order, the permutation P that maximises the
    inner product <w_a, P w_b> with the others held fixed, a linear assignment problem, until no layer improves. A local maximum; for two
    networks that are permutations of each other usually the exact one.

    Args:
        objective: whose model says how units belong together; batch norm's statistics move with their units.
        a: the network that stays as it is.
        b: the network to permute.
        seed: of the order of the layers.

    Returns:
        The permuted parameters and running statistics of b. A model that is not understood is a ValueError that says what in it is not.
    """
    reference = a if isinstance(a, Weights) else weights_of(objective, a, "a")
    moving = b if isinstance(b, Weights) else weights_of(objective, b, "b")
    channels = channels_for(objective)
    to = matching(channels, reference.parameters, moving.parameters, seed)
    return Weights(channels.permuted(moving.parameters, to), channels.permuted(moving.statistics, to))


def channels_for(objective: Objective) -> Channels:
    """Return the units of an objective's model that can be permuted.

    Args:
        objective: with batches (inputs, targets) whose inputs are one tensor.

    Returns:
        The units.

    Raises:
        ValueError: its batches are of another form, or the objective does not vary everything that would be permuted.
    """
    batch = next(iter(objective.batches))
    inputs = batch[0] if objective.takes == "outputs" else None
    if not isinstance(inputs, Tensor):
        raise ValueError("models are aligned where the loss takes outputs and targets, and the inputs are one tensor; these are others")
    parameter = next(objective.model.parameters())
    inputs = inputs[:2].to(parameter.device, parameter.dtype if inputs.is_floating_point() else inputs.dtype)
    skeleton = skeleton_of(objective.model, "eval")
    with undisturbed(objective.device):
        channels = channels_of(skeleton, inputs)
        _check_function(channels, skeleton, inputs)
    permuted = {u for units in channels.classes for u in units.tolist()}
    held = [n for n, p in objective.model.named_parameters() if n in channels.axes and n not in objective.names]
    for name in held:
        if any(permuted.intersection(axis.units.tolist()) for axis in channels.axes[name]):
            raise ValueError(f"the objective does not vary {name!r}, whose units alignment permutes; give it params='all'")
    return channels


def _check_function(channels: Channels, model: nn.Module, inputs: Tensor) -> None:
    """Permute units at random and look whether the function stays: the rules of `channels` cannot know what a model's code does besides."""
    to, draw = np.arange(channels.units), np.random.default_rng(0)
    for units in channels.classes:
        to[units] = draw.permutation(units)
    own = {name: t.detach() for name, t in [*model.named_parameters(), *model.named_buffers()]}
    outputs: list[Tensor] = []
    for tensors in (own, channels.permuted(own, to)):
        seed_torch(0, inputs.device)
        outputs.append(functional_call(model, {name: t.clone() for name, t in tensors.items()}, (inputs,)).double())
    tolerance = torch.finfo(next(iter(own.values())).dtype).eps ** 0.5 * float(outputs[0].abs().max())
    if not torch.allclose(outputs[0], outputs[1], rtol=0, atol=tolerance, equal_nan=True):
        raise ValueError(f"{type(model).__name__} cannot be aligned: its function changes where units are permuted that seem to be alike")


def matching(channels: Channels, a: dict[str, Tensor], b: dict[str, Tensor], seed: int) -> Index:
    """Return the permutation of units (units,) that `Channels.permuted` applies to b; see `aligned`."""
    to = np.arange(channels.units)
    generator = torch.Generator().manual_seed(seed)
    current = dict(b)
    for _ in range(_ROUNDS):
        improved = False
        for k in torch.randperm(len(channels.classes), generator=generator).tolist():
            units = channels.classes[k]
            similar = _similarities(channels, a, current, units)
            _, columns = linear_sum_assignment(similar, maximize=True)
            before, after = np.trace(similar), similar[np.arange(len(units)), columns].sum()
            if after <= before + 1e-12 * np.abs(similar).sum():
                continue
            step = np.arange(channels.units)
            step[units] = units[columns]
            current, to, improved = channels.permuted(current, step), to[step], True
        if not improved:
            break
    return to


def _similarities(channels: Channels, a: dict[str, Tensor], b: dict[str, Tensor], units: Index) -> np.ndarray:
    """Return the inner products (units, units) of all that belongs to a unit in a with all that belongs to one in b."""
    total = np.zeros((len(units), len(units)))
    for name, axes in channels.axes.items():
        if name in a:
            for axis in axes:
                one, other = channels.rows(a[name], axis, units), channels.rows(b[name], axis, units)
                if one is not None and other is not None:
                    total += (one @ other.T).cpu().numpy()
    return total
