"""Which units of a network can be permuted without changing its function, read from its graph.

Every axis of every tensor that passes through the network is followed from layer to layer as a list of units. A layer with weights makes
new units; activations, batch norm and pooling keep them; additions of a residual network tie two lists together, unit by unit; flattening
repeats a unit for every pixel, padding adds units that are zero. Units that nothing tells apart make a class: any permutation of them,
applied to all tensors that they belong to, leaves the function as it is. Inputs and outputs of the network stay as they are.
"""

from __future__ import annotations

import operator
import re
from collections import defaultdict
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn
from torch.nn import functional as F

from landscape.objective import Parameters

Index = NDArray[np.int64]

_KEEP_MODULES = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.Tanh, nn.Sigmoid, nn.Softplus, nn.Softsign,
    nn.Hardtanh, nn.Hardswish, nn.Hardsigmoid, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.Identity,
    nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d,
    nn.AdaptiveAvgPool3d, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d,
)  # fmt: skip
_KEEP_FUNCTIONS = {
    F.relu, F.relu6, F.leaky_relu, F.elu, F.selu, F.celu, F.gelu, F.silu, F.mish, F.softplus, F.hardtanh, F.hardswish, F.dropout,
    F.dropout2d, F.max_pool1d, F.max_pool2d, F.max_pool3d, F.avg_pool1d, F.avg_pool2d, F.avg_pool3d, F.adaptive_avg_pool1d,
    F.adaptive_avg_pool2d, F.adaptive_avg_pool3d, F.adaptive_max_pool2d, torch.relu, torch.tanh, torch.sigmoid, torch.selu,
}  # fmt: skip
_KEEP_METHODS = {"relu", "relu_", "tanh", "sigmoid", "contiguous", "clone", "float", "double"}
_SUMS = {operator.add, operator.iadd, operator.sub, operator.mul, operator.truediv, torch.add, torch.sub, torch.mul}


@dataclass(frozen=True)
class Axis:
    """The units along one dimension; a unit that stands for several entries, such as the pixels of a channel, has a slot for each."""

    dim: int
    units: Index
    slots: Index


@dataclass(frozen=True)
class Channels:
    """Classes of units that can be permuted, and where each unit lies in the parameters and buffers."""

    classes: tuple[Index, ...]  # of two or more units each
    axes: dict[str, tuple[Axis, ...]]  # by parameter or buffer name
    units: int

    def permuted(self, tensors: Parameters, to: Index) -> Parameters:
        """Return tensors in which the place of unit u has what belonged to unit to[u]."""
        result = dict(tensors)
        for name, axes in self.axes.items():
            if name in result:
                for axis in axes:
                    place = {pair: i for i, pair in enumerate(zip(axis.units.tolist(), axis.slots.tolist(), strict=True))}
                    index = [place[int(to[u]), s] for u, s in zip(axis.units.tolist(), axis.slots.tolist(), strict=True)]
                    if index != list(range(len(index))):
                        result[name] = result[name].index_select(axis.dim, torch.tensor(index, device=result[name].device))
        return result

    def rows(self, tensor: Tensor, axis: Axis, units: Index) -> Tensor | None:
        """Return what of a tensor belongs to each of some units, (units, entries) in float64; None if nothing does."""
        order = np.lexsort((axis.slots, axis.units))
        first = np.searchsorted(axis.units[order], units)
        if first[0] == len(order) or axis.units[order[first[0]]] != units[0]:
            return None
        slots = int((axis.units == units[0]).sum())
        places = order[first[:, None] + np.arange(slots)]
        moved = tensor.movedim(axis.dim, 0)[torch.as_tensor(places.reshape(-1), device=tensor.device)]
        return moved.reshape(len(units), -1).double()


def channels_of(model: nn.Module, inputs: Tensor) -> Channels:
    """Find the units of a network that can be permuted.

    Args:
        model: in evaluation mode; made of linear and convolutional layers without groups, batch norm, layer norm over units, activations,
            pooling, flattening, and sums or concatenations of these, as plain and residual networks are. It is only read.
        inputs: an example batch, to see shapes.

    Returns:
        The classes and places.

    Raises:
        ValueError: the model contains something else, or nothing in it can be permuted.
    """
    try:
        graph = fx.GraphModule(model, _Tracer().trace(model))
    except Exception as error:  # whatever the model's own code raises when it meets a symbol
        raise ValueError(
            f"{type(model).__name__} cannot be aligned: its graph cannot be read ({' '.join(str(error).split())[:200]})"
        ) from None
    follower = _Follower(graph, model)
    with torch.no_grad():
        follower.run(inputs)
    return follower.channels()


def _is_of_torch(module: nn.Module) -> bool:
    """Say whether a module computes what one of PyTorch's own does; subclasses that only add to it do."""
    return type(module).forward.__module__.startswith("torch.nn.")


class _Tracer(fx.Tracer):
    """Takes subclasses of PyTorch's layers that compute the same for the layers that they are."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return super().is_leaf_module(m, module_qualified_name) or (_is_of_torch(m) and not isinstance(m, nn.Sequential))


class _Follower(fx.Interpreter):
    """Runs a model node by node and follows its units."""

    def __init__(self, graph: fx.GraphModule, model: nn.Module) -> None:
        super().__init__(graph)
        self._name = type(model).__name__
        self._axis: dict[fx.Node, Axis | None] = {}
        self._parent: list[int] = []
        self._class: list[int] = []
        self._known: dict[tuple[int, int], int] = {}
        self._next = 0
        self._axes: dict[str, dict[int, Axis]] = defaultdict(dict)
        # Of the model: its graph calls a tensor that two layers share by the name in the layer that comes first in a pass.
        self._names = {id(t): n for n, t in [*model.named_parameters(), *model.named_buffers()]}

    # ---- units and classes ------------------------------------------------------------------------------------------

    def _new(self, count: int, dim: int, *, fixed: bool = False) -> Axis:
        units = np.arange(len(self._parent), len(self._parent) + count)
        self._parent.extend(units.tolist())
        self._class.extend(range(self._next, self._next + count) if fixed else [self._next] * count)
        self._next += count if fixed else 1
        return Axis(dim, units, np.zeros(count, dtype=np.int64))

    def _root(self, unit: int) -> int:
        while self._parent[unit] != unit:
            self._parent[unit] = self._parent[self._parent[unit]]
            unit = self._parent[unit]
        return unit

    def _both(self, one: int, other: int) -> int:
        """Return the class of units that are in both classes."""
        key = (min(one, other), max(one, other))
        if key not in self._known:
            self._known[key] = self._next
            self._next += 1
        return self._known[key]

    def _tie(self, one: Axis, other: Axis, what: str) -> None:
        if len(one.units) != len(other.units) or not np.array_equal(one.slots, other.slots):
            self._refuse(f"{what} adds {len(one.units)} to {len(other.units)} units")
        new: dict[int, int] = {}
        for a, b in {(self._root(a), self._root(b)) for a, b in zip(one.units.tolist(), other.units.tolist(), strict=True)}:
            if a != b:
                self._parent[b] = a
                new[a] = self._both(self._class[a], self._class[b])
        for unit, of in new.items():
            self._class[unit] = of

    def _apart(self, units: Index) -> None:
        """Tell some units apart from the rest of their classes."""
        mark = self._next
        self._next += 1
        for unit in {self._root(u) for u in units.tolist()}:
            self._class[unit] = self._both(self._class[unit], mark)

    def _fix(self, units: Index) -> None:
        for unit in {self._root(u) for u in units.tolist()}:
            self._class[unit] = self._next
            self._next += 1

    def _belongs(self, tensor: Tensor | None, axis: Axis, dim: int, what: str) -> None:
        if tensor is None:
            return
        if id(tensor) not in self._names:
            self._refuse(f"{what} has a weight that is computed from others, as by weight or spectral normalisation")
        name, placed = self._names[id(tensor)], Axis(dim, axis.units, axis.slots)
        if dim in self._axes[name]:
            self._tie(self._axes[name][dim], placed, what)
        else:
            self._axes[name][dim] = placed

    def _refuse(self, why: str) -> NoReturn:
        raise ValueError(
            f"{self._name} cannot be aligned: {why}. Understood are linear and convolutional layers without groups, batch norm, "
            "activations, pooling, flattening, sums and concatenations"
        )

    def channels(self) -> Channels:
        """Return what was found."""
        roots = np.array([self._root(u) for u in range(len(self._parent))])
        members: dict[int, list[int]] = defaultdict(list)
        for unit in np.unique(roots).tolist():
            members[self._class[unit]].append(unit)
        axes = {n: tuple(Axis(a.dim, roots[a.units], a.slots) for a in dims.values()) for n, dims in self._axes.items()}
        for name, dims in axes.items():
            for axis in dims:
                if len(set(zip(axis.units.tolist(), axis.slots.tolist(), strict=True))) < len(axis.units):
                    self._refuse(f"a unit of {name} is tied to another one of the same layer")
        used = {u for dims in axes.values() for axis in dims for u in axis.units.tolist()}
        classes = tuple(np.array(group) for of in members.values() if len(group := [u for u in of if u in used]) > 1)
        if not classes:
            self._refuse("none of its units can be permuted")
        return Channels(classes, axes, len(roots))

    # ---- the graph --------------------------------------------------------------------------------------------------

    def run_node(self, n: fx.Node) -> Any:
        """Run one node, and follow the units through it."""
        value = super().run_node(n)
        self._axis[n] = self._followed(n, value) if isinstance(value, Tensor) or n.op == "output" else None
        return value

    def _followed(self, n: fx.Node, value: Any) -> Axis | None:
        what = f"{n.name} ({n.target})"
        sources = [a for a in n.all_input_nodes if isinstance(self.env.get(a), Tensor)]
        axes = [axis for a in sources if (axis := self._axis[a]) is not None]
        if n.op == "placeholder":
            return self._new(value.shape[1], 1, fixed=True) if value.ndim > 1 else self._refuse("its inputs have no units (dimension 1)")
        if n.op == "output":
            if not isinstance(value, Tensor):
                self._refuse(f"it returns a {type(value).__name__} and not one tensor")
            self._fix(axes[0].units)
            return None
        if not axes:
            self._refuse(f"{what} uses a tensor of its own")
        if n.op == "call_module":
            return self._through(self.fetch_attr(str(n.target)), axes[0], self.env[sources[0]], value, what)
        function: Any = n.target
        source = self.env[sources[0]]
        if function in _SUMS:
            if len(axes) == 2:
                if axes[0].dim != axes[1].dim or self.env[sources[0]].shape != self.env[sources[1]].shape:
                    self._refuse(f"{what} combines tensors of different shapes")
                self._tie(axes[0], axes[1], what)
            return axes[0]
        if function in _KEEP_FUNCTIONS or (n.op == "call_method" and function in _KEEP_METHODS):
            self._not_pooled(str(getattr(function, "__name__", function)), axes[0], source, what)
            return axes[0]
        if function is torch.cat:
            joined: Any = n.args[0]
            which: Any = n.args[1] if len(n.args) > 1 else n.kwargs.get("dim", 0)
            dim = which % value.ndim
            if any(axis.dim != dim for axis in axes) or len(axes) != len(joined):
                self._refuse(f"{what} does not join units")
            return Axis(dim, np.concatenate([a.units for a in axes]), np.concatenate([a.slots for a in axes]))
        if function in (torch.mean, "mean", torch.sum, "sum", torch.amax):
            return self._reduced(n, axes[0], source, value, what)
        if function in (torch.flatten, "flatten", "view", "reshape", torch.reshape):
            return self._flattened(axes[0], source, value, what)
        if function is operator.getitem:
            return self._sliced(n.args[1], axes[0], what)
        if function is F.pad:
            return self._padded(n, axes[0], source, value, what)
        self._refuse(f"{what} is unknown")

    def _through(self, module: nn.Module, axis: Axis, source: Tensor, value: Tensor, what: str) -> Axis:
        kind = type(module)
        if not _is_of_torch(module):
            self._refuse(f"{what} is a {kind.__name__}")
        if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d):
            dim = source.ndim - 1 if isinstance(module, nn.Linear) else 1
            if getattr(module, "groups", 1) != 1:
                self._refuse(f"{what} has groups")
            if axis.dim != dim:
                self._refuse(f"{what} takes units on dimension {dim}, and they are on dimension {axis.dim}")
            self._belongs(module.weight, axis, 1, what)
            out = self._new(value.shape[dim], dim)
            self._belongs(module.weight, out, 0, what)
            out = self._axes[self._names[id(module.weight)]][0]
            self._belongs(module.bias, out, 0, what)
            return Axis(dim, out.units, out.slots)
        over_units = isinstance(module, nn.LayerNorm) and axis.dim == source.ndim - 1 and len(module.normalized_shape) == 1
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d) and axis.dim == 1 or over_units:
            for key in ("weight", "bias", "running_mean", "running_var"):
                self._belongs(getattr(module, key, None), axis, 0, what)
            return axis
        if isinstance(module, nn.Flatten):
            return self._flattened(axis, source, value, what)
        if isinstance(module, _KEEP_MODULES):
            self._not_pooled(next(k.__name__ for k in kind.__mro__ if k in _KEEP_MODULES), axis, source, what)
            return axis
        self._refuse(f"{what} is a {kind.__name__}")

    def _not_pooled(self, name: str, axis: Axis, source: Tensor, what: str) -> None:
        """Refuse pooling over units: that of k dimensions is over the last k."""
        found = re.search("pool([123])d", name.lower())
        if found and axis.dim >= source.ndim - int(found[1]):
            self._refuse(f"{what} pools over units")

    def _reduced(self, n: fx.Node, axis: Axis, source: Tensor, value: Tensor, what: str) -> Axis:
        over: Any = n.args[1] if len(n.args) > 1 else n.kwargs.get("dim", n.kwargs.get("axis"))
        dims = {d % source.ndim for d in (over if isinstance(over, tuple | list) else range(source.ndim) if over is None else [over])}
        if dims & {0, axis.dim}:
            self._refuse(f"{what} reduces over units or examples")
        gone = 0 if value.ndim == source.ndim else sum(d < axis.dim for d in dims)
        return Axis(axis.dim - gone, axis.units, axis.slots)

    def _flattened(self, axis: Axis, source: Tensor, value: Tensor, what: str) -> Axis:
        if value.shape == source.shape:
            return axis
        if axis.dim != 1 or value.ndim != 2 or len(value) != len(source):
            self._refuse(f"{what} is no flattening of all dimensions but the first")
        pixels = source[0, 0].numel()
        slots = (axis.slots[:, None] * pixels + np.arange(pixels)).reshape(-1)
        return Axis(1, np.repeat(axis.units, pixels), slots)

    def _sliced(self, key: Any, axis: Axis, what: str) -> Axis:
        keys = key if isinstance(key, tuple) else (key,)
        if not all(isinstance(k, slice) for k in keys):
            self._refuse(f"{what} takes single entries")
        if axis.dim >= len(keys) or keys[axis.dim] == slice(None):
            return axis
        chosen = Axis(axis.dim, axis.units[keys[axis.dim]], axis.slots[keys[axis.dim]])
        self._apart(chosen.units)
        return chosen

    def _padded(self, n: fx.Node, axis: Axis, source: Tensor, value: Tensor, what: str) -> Axis:
        pads: Any = n.args[1] if len(n.args) > 1 else n.kwargs["pad"]
        mode = n.args[2] if len(n.args) > 2 else n.kwargs.get("mode", "constant")
        k = 2 * (source.ndim - 1 - axis.dim)
        before, after = (pads[k], pads[k + 1]) if len(pads) > k else (0, 0)
        if not before and not after:
            return axis
        if mode != "constant" or before < 0 or after < 0 or axis.slots.any():
            self._refuse(f"{what} pads units in the mode {mode!r}")
        zeros = self._new(before + after, axis.dim)
        units = np.concatenate([zeros.units[:before], axis.units, zeros.units[before:]])
        return Axis(axis.dim, units, np.zeros(len(units), dtype=np.int64))
