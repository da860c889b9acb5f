"""Many points of a plane at once, for networks that are a chain of linear layers and functions of single numbers.

For such a network one point is so little work that most of its time goes into starting kernels. Here the weights of g points are stacked,
and each layer is one batched matrix product; features come before examples, so that a softmax runs along whole rows of them. The first
layer is linear in the weights: its products with origin and directions are computed once for a batch, and their sums are all that is left
of it for a point.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from landscape.batches import untouched_random_state
from landscape.objective import Objective
from landscape.stateless import skeleton_of
from landscape.surfaces.directions import Plane
from landscape.surfaces.found import Found
from landscape.surfaces.metrics import Metric, measured

# Functions of single numbers: the same on stacked points.
_MODULES = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.Tanh, nn.Sigmoid, nn.Softplus, nn.Softsign,
    nn.Hardtanh, nn.Hardswish, nn.Hardsigmoid, nn.LogSigmoid, nn.Tanhshrink, nn.Identity,
)  # fmt: skip
_FUNCTIONS = (
    torch.tanh, torch.relu, torch.sigmoid, F.relu, F.gelu, F.silu, F.elu, F.leaky_relu, F.selu, F.softplus, F.mish, F.hardtanh, F.hardswish,
    F.tanh, F.sigmoid, torch.sin, torch.cos, torch.exp, torch.square, torch.abs,
)  # fmt: skip
_METHODS = ("tanh", "relu", "sigmoid", "sin", "cos", "exp", "square", "abs")

_IGNORED = -100  # the class that cross entropy leaves out of its mean

# Numbers of one layer's outputs over all points of a group: they should stay in a cache.
_CPU_ELEMENTS, _GPU_ELEMENTS = 2**18, 2**26


@dataclass(frozen=True)
class Layer:
    """A linear layer by the names of its parameters, or a function of single numbers."""

    weight: str = ""
    bias: str = ""
    function: Callable[[Tensor], Tensor] | None = None


def chain_of(objective: Objective) -> list[Layer] | None:
    """Return the layers of a network that takes one tensor through a chain of them, beginning with a linear one; else None.

    Symbolic tracing proves it; a network that decides by its inputs, draws, or has hooks is none. Flattening may come first.
    """
    model = objective.model
    if objective.takes != "outputs" or any(
        getattr(m, name) for m in model.modules() for name in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks")
    ):
        return None
    # Tracing runs the model's own code, which may write into a buffer: into a copy of it.
    copied = skeleton_of(model, objective.batch_norm, {id(b): b.detach().clone() for b in model.buffers()})
    try:
        with warnings.catch_warnings(), untouched_random_state(torch.device("cpu")):
            warnings.simplefilter("ignore")
            nodes = list(fx.Tracer().trace(copied).nodes)
    except Exception:  # whatever a model raises that meets no tensors
        return None
    if sum(node.op == "placeholder" for node in nodes) != 1 or nodes[-1].args[0] is not nodes[-2]:
        return None
    modules, names = dict(copied.named_modules()), {id(p): name for name, p in copied.named_parameters()}
    layers: list[Layer] = []
    for before, node in zip(nodes[:-2], nodes[1:-1], strict=True):
        if not node.args or node.args[0] is not before or len(before.users) != 1 or any(isinstance(a, fx.Node) for a in node.args[1:]):
            return None
        module = modules.get(str(node.target)) if node.op == "call_module" else None
        flattens = (type(module) is nn.Flatten and module.start_dim == 1 and module.end_dim == -1) or (
            node.op == "call_function" and node.target is torch.flatten and node.args[1:] == (1,) and not node.kwargs
        ) or (node.op == "call_method" and node.target == "flatten" and node.args[1:] == (1,) and not node.kwargs)  # fmt: skip
        if flattens and not layers:
            continue
        if type(module) is nn.Linear:
            layers.append(Layer(names[id(module.weight)], "" if module.bias is None else names[id(module.bias)]))
        elif type(module) is nn.Tanh or node.target in (torch.tanh, F.tanh, "tanh"):
            layers.append(Layer(function=torch.tanh))
        elif type(module) in _MODULES or type(module) is nn.Dropout:
            layers.append(Layer(function=nn.Identity() if type(module) is nn.Dropout else module))
        elif node.op == "call_function" and node.target in _FUNCTIONS:
            layers.append(Layer(function=_with(node.target, node.args[1:], node.kwargs)))
        elif node.op == "call_method" and node.target in _METHODS and not node.args[1:]:
            layers.append(Layer(function=getattr(torch, str(node.target))))
        else:
            return None
    linear = [layer for layer in layers if layer.weight]
    return layers if linear and layers[0].weight else None


def _with(function: Callable[..., Tensor], arguments: tuple[Any, ...], named: dict[str, Any]) -> Callable[[Tensor], Tensor]:
    return lambda x: function(x, *arguments, **{k: v for k, v in named.items() if k != "inplace"})


def _tanh(x: Tensor) -> Tensor:
    """Return tanh(x) = 2 sigmoid(2 x) - 1."""
    return (2 * x).sigmoid_().mul_(2).sub_(1)


class Together:
    """Groups of points at once; see `points.Evaluator`.

    Args:
        objective: of a network that is a chain.
        plane: the plane.
        dimensions: 1 on a line.
        layers: of the network, from `chain_of`.
        sigmoids: compute tanh by sigmoids, which is four times as fast on a CPU, to 2e-7 (absolute).
        metrics: what is measured beside the loss.
        low: dtype of the products, where it is lower than that of the parameters.
    """

    def __init__(
        self,
        objective: Objective,
        plane: Plane,
        dimensions: int,
        layers: Sequence[Layer],
        *,
        sigmoids: bool = False,
        metrics: tuple[Metric, ...] = (),
        low: torch.dtype | None = None,
    ) -> None:
        self._objective, self._metrics, self._low = objective, metrics, low
        self._layers = [replace(layer, function=_tanh) if sigmoids and layer.function is torch.tanh else layer for layer in layers]
        held = objective.held().fixed
        directions = plane.directions[:dimensions]
        like = objective.parameters

        def stacked(name: str) -> Tensor:
            """Return (1 + dimensions, ...): origin and directions of a parameter; a frozen one does not move."""
            if name in held:
                return torch.stack([held[name], *(torch.zeros_like(held[name]) for _ in directions)])
            return torch.stack([part[name].to(like[name].device, like[name].dtype) for part in (plane.origin, *directions)])

        self._parts = [(stacked(layer.weight), stacked(layer.bias) if layer.bias else None) if layer.weight else None for layer in layers]
        widest = max(int(part[0].shape[1]) for part in self._parts if part is not None)
        elements = _GPU_ELEMENTS if objective.device.type == "cuda" else _CPU_ELEMENTS
        self._numbers = max(1, elements // widest)  # examples times points in a group
        self._loss = torch.func.vmap(lambda outputs, target, weight: objective.loss_of_outputs(outputs, target, weight), (0, None, None))
        self._is_cross_entropy = objective.loss_function is F.cross_entropy and objective.reduction == "mean"
        self._first: tuple[int, int, Tensor] | None = None  # of which batch, and its products with the first layer

    def __call__(self, batch: Any, index: int, points: Sequence[tuple[float, float]]) -> Found:
        """Evaluate groups of points."""
        inputs, target = batch
        x = inputs.flatten(1)
        size = max(1, self._numbers // len(x))
        classes = self._classes_of(target)
        losses: list[Tensor] = []
        rights: list[Tensor | None] = []
        further: list[Tensor] = []
        for start in range(0, len(points), size):
            outputs = self._outputs(x, index, points[start : start + size])
            classified = classes is not None and outputs.shape[1] > 1
            if classes is not None and classified and self._is_cross_entropy:
                losses.append(_cross_entropies(outputs, classes))
            else:
                losses.append(self._loss(outputs.mT, target, self._objective.weight(batch)))
            if classes is not None and classified:
                rights.append(_right(outputs, classes))
            else:
                rights.append(_stacked([self._objective.batch_correct(o.mT, batch) for o in outputs.unbind()]))
            if self._metrics:
                further.append(torch.stack([measured(self._metrics, o.mT, target, x.device) for o in outputs.unbind()], 1))
        known = [right for right in rights if right is not None]
        right = torch.cat(known).double() if len(known) == len(rights) else None
        return Found(torch.cat(losses).double(), right, torch.cat(further, 1) if further else None)

    def _classes_of(self, target: Any) -> Tensor | None:
        """Return targets that are classes, as `batch_correct` sees it."""
        one_each = isinstance(target, Tensor) and target.ndim == 1 and not target.is_floating_point()
        return target if one_each and self._objective._classification else None

    def _outputs(self, x: Tensor, index: int, points: Sequence[tuple[float, float]]) -> Tensor:
        """Return the outputs (g, c, n) of g points."""
        at = torch.tensor([(1.0, *point) for point in points], dtype=torch.float64)[:, : len(self._parts[0][0])]  # type: ignore[index]
        at = at.to(x.device, self._parts[0][0].dtype)  # type: ignore[index]
        h: Tensor | None = None
        for layer, part in zip(self._layers, self._parts, strict=True):
            if part is None:
                assert h is not None and layer.function is not None
                h = layer.function(h)
                continue
            weight, bias = part
            if h is None:
                h = (at @ self._products(x, index, weight, bias).flatten(1)).view(len(points), -1, len(x))
                h = h if self._low is None else h.to(self._low)
                continue
            # Points are formed in full precision: only products are not.
            w = (at @ weight.flatten(1)).view(len(points), *weight.shape[1:]).to(h.dtype)
            h = torch.bmm(w, h) if bias is None else torch.baddbmm((at @ bias)[..., None].to(h.dtype), w, h)
        assert h is not None
        return h if self._low is None else h.to(at.dtype)

    def _products(self, x: Tensor, index: int, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return (1 + dimensions, h, n): the first layer at the origin and along the directions, once for a batch."""
        if self._first is None or self._first[:2] != (index, x.data_ptr()):
            found = torch.matmul(weight, x.T)
            self._first = index, x.data_ptr(), found if bias is None else found + bias[..., None]
        return self._first[2]


def _cross_entropies(outputs: Tensor, target: Tensor) -> Tensor:
    """Return the mean cross entropies (g,) of outputs (g, c, n) over what is not ignored; 0/0 where everything is, as in PyTorch."""
    counted = target != _IGNORED
    places = torch.where(counted, target, 0).expand(len(outputs), 1, -1)
    logs = torch.log_softmax(outputs, 1).gather(1, places)[:, 0]
    return -torch.where(counted, logs, 0).sum(1) / counted.sum()


def _right(outputs: Tensor, target: Tensor) -> Tensor:
    """Return of outputs (g, c, n) how many examples have the largest output at their class, the first one of equal ones."""
    ranks = torch.arange(outputs.shape[1], 0, -1, device=outputs.device, dtype=torch.float32)[:, None]
    first = ((outputs == outputs.amax(1, keepdim=True)) * ranks).amax(1)  # argmax(1) is slow on a CPU: it goes along strides
    return (first == outputs.shape[1] - target).sum(1)


def _stacked(found: Sequence[Tensor | None]) -> Tensor | None:
    known = [right for right in found if right is not None]
    return torch.stack(known) if len(known) == len(found) else None
