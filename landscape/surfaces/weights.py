"""Points and directions in parameter space, as dictionaries of tensors by parameter name: products, hashes, and who fits whom.

A point may be given as a module, as a state_dict, or as parameters alone; batch-norm statistics come with it where it has them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from landscape.objective import Objective, Parameters
from landscape.stateless import unwrapped

Point = nn.Module | Mapping[str, Tensor]


class Weights(NamedTuple):
    """A point in parameter space with the running statistics that belong to it; copies, in an objective's dtype and on its device."""

    parameters: Parameters  # those that the objective varies
    statistics: Parameters  # running means and variances of batch norm, by buffer name; empty without


def dot(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> Tensor:
    """Return the inner product in float64, 0-d, without waiting for the device."""
    return torch.stack([torch.sum(a[name].double() * b[name].double()) for name in a]).sum()


def difference(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> Parameters:
    """Return a - b, name by name, in float64."""
    return {name: a[name].double() - b[name].double() for name in a}


def gram(vectors: Sequence[Mapping[str, Tensor]], others: Sequence[Mapping[str, Tensor]] | None = None) -> NDArray[np.float64]:
    """Return the inner products (n, m) of vectors with others, or with each other; summed in float64, tensor after tensor."""
    others = vectors if others is None else others
    total = torch.zeros(len(vectors), len(others), dtype=torch.float64)
    for name in vectors[0]:
        rows = torch.stack([v[name].detach().reshape(-1).double() for v in vectors])
        columns = rows if others is vectors else torch.stack([o[name].detach().reshape(-1).double() for o in others])
        total += (rows @ columns.T).cpu()
    return total.numpy()


def projected(
    points: Sequence[Mapping[str, Tensor]], origin: Mapping[str, Tensor], directions: Sequence[Mapping[str, Tensor]]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    r"""Project points on a plane by least squares.

    The coordinates x of a point w minimise ||w - origin - sum_i x_i d_i||. With G_ij = <d_i, d_j> and p_i = <w - origin, d_i> they solve
    G x = p, which for orthogonal directions is p_i / ||d_i||^2; so the point of the surface at x is the one next to w.

    Args:
        points: n points by parameter name.
        origin: where the plane has the coordinates 0.
        directions: d directions, of any length and not parallel.

    Returns:
        The coordinates (n, d), and the distances (n,) of the points from the plane.
    """
    differences = [difference(point, origin) for point in points]
    onto = gram(differences, directions)
    coordinates = np.asarray(np.linalg.solve(gram(directions), onto.T).T, dtype=np.float64)
    left = []
    for moved, x in zip(differences, coordinates, strict=True):
        for step, direction in zip(x.tolist(), directions, strict=True):
            moved = {name: torch.add(m, direction[name].double(), alpha=-step) for name, m in moved.items()}
        left.append(dot(moved, moved))
    return coordinates, np.asarray(torch.stack(left).sqrt().cpu())


def tensors_of(point: Point, what: str) -> dict[str, Tensor]:
    """Return all tensors of a point by name, as they are.

    Args:
        point: a module, a state_dict, or parameters.
        what: what errors call it.

    Returns:
        Parameters, and buffers where there are any.

    Raises:
        TypeError: it is none of these.
    """
    if isinstance(point, nn.Module):
        model = unwrapped(point)
        return {name: t.detach() for name, t in (*model.named_parameters(), *model.named_buffers())}
    if not isinstance(point, Mapping) or not all(isinstance(t, Tensor) for t in point.values()):
        raise TypeError(f"{what} must be a model or a dictionary of tensors by parameter name, got {type(point).__name__}")
    return {name: t.detach() for name, t in point.items()}


def statistics_names(objective: Objective) -> list[str]:
    """Return the names of the running statistics that the objective's evaluations read."""
    if objective.batch_norm != "eval":
        return []
    norms = [(n, m) for n, m in objective.model.named_modules() if isinstance(m, nn.modules.batchnorm._NormBase)]
    names = (f"{name}.{key}" if name else key for name, m in norms if m.running_mean is not None for key in ("running_mean", "running_var"))
    present = dict(objective.model.named_buffers())
    return [name for name in names if name in present]


def weights_of(objective: Objective, point: Point, what: str) -> Weights:
    """Return a point as an objective can be evaluated there.

    Args:
        objective: the loss; what it does not vary must be the same in the point, if the point says anything about it.
        point: a module, a state_dict, or parameters; without running statistics, those of the objective's model.
        what: what errors call it.

    Returns:
        Copies of its tensors.

    Raises:
        ValueError: a parameter is missing, of another shape or not finite; or one that the objective holds fixed differs.
    """
    given = tensors_of(point, what)
    wanted = objective.parameters
    check_alike(what, {n: s for n, s in shapes(given).items() if n in wanted}, "the objective's model", shapes(wanted))
    names = statistics_names(objective)
    own = dict(objective.model.named_parameters()) | dict(objective.model.named_buffers())
    for name, tensor in own.items():
        read = name not in wanted and name not in names and name in given and not name.endswith("num_batches_tracked")
        if read and not torch.equal(given[name].to(tensor), tensor.detach()) and not _of_batch_norm(objective.model, name):
            raise ValueError(
                f"{what} differs from the objective's model in {name!r}, which the objective does not vary; "
                "give the objective params='all', or a model with the same frozen parts"
            )

    def placed(name: str) -> Tensor:
        like = wanted.get(name, own[name])
        tensor = given.get(name, own[name].detach()).to(objective.device, objective.dtype if like.is_floating_point() else like.dtype)
        return tensor.clone(memory_format=torch.contiguous_format)

    parameters = {name: placed(name).to(p.dtype) for name, p in wanted.items()}
    bad = [name for name, t in parameters.items() if not bool(torch.isfinite(t).all())]
    if bad:
        raise ValueError(f"{what} has entries that are not finite, in {bad[0]!r}")
    return Weights(parameters, {name: placed(name) for name in names})


def _of_batch_norm(model: nn.Module, name: str) -> bool:
    return isinstance(model.get_submodule(name.rpartition(".")[0]), nn.modules.batchnorm._NormBase) and "running_" in name


def copy_of(objective: Objective) -> Parameters:
    """Return a copy of the parameters that vary: the model may be trained further, a plane stays where it was made."""
    return {name: p.clone(memory_format=torch.contiguous_format) for name, p in objective.parameters.items()}


def shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Return shapes by name."""
    return {name: tuple(t.shape) for name, t in tensors.items()}


def check_alike(what: str, got: Mapping[str, tuple[int, ...]], where: str, expected: Mapping[str, tuple[int, ...]]) -> None:
    """Compare names and shapes.

    Raises:
        ValueError: they differ; the message names the first difference.
    """
    for name in [*expected, *got]:
        if got.get(name) != expected.get(name):
            said = [f"no {name!r}" if s is None else f"{name!r} of shape {s}" for s in (got.get(name), expected.get(name))]
            raise ValueError(f"{what} has {said[0]} where {where} has {said[1]}")
