r"""The losses of many shards at weights of their own, and their gradients, layer by layer: the same numbers as a loop, without its calls.

A network whose parameters sit in linear layers, convolutions and normalisations, and whose other operations take every example for itself,
is run once for S shards of m examples. Its weights are stacks W (S, out, in), one for each shard, or one for all (stride 0 along S):

    y = x W_s' + b_s        d/dW_s = sum over the examples of the shard of g x'        (one product of matrices per shard)

Convolutions are the same with S times as many groups. Batch normalisation with running statistics, y -> c y + t, disappears into the
convolution before it: with G the gradient by the kernel that is then convolved with, c W, those by W, c and t are c G, <G, W> and sum g.

Which networks these are is read from the traced graph (`torch.fx`, for every input), not guessed; in any other one `layers_of` finds none.
"""

from __future__ import annotations

import operator
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from landscape.batches import untouched_random_state
from landscape.objective import Objective
from landscape.sharpness.shard_layers import affine, convolution, linear
from landscape.stateless import skeleton_of

_LINEAR = (nn.Linear,)
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_OTHER_NORMS = (nn.LayerNorm, nn.GroupNorm)
# In evaluation mode these take every example for itself, and have no parameters.
_ELEMENTWISE = (
    nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.CELU, nn.SELU, nn.GELU,
    nn.SiLU, nn.Mish, nn.Tanh, nn.Sigmoid, nn.Softplus, nn.Softsign, nn.LogSigmoid, nn.Hardtanh, nn.Hardswish, nn.Hardsigmoid,
)  # fmt: skip
_POOLS = (
    nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d,
    nn.AdaptiveAvgPool3d, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d,
)  # fmt: skip
_FUNCTIONS: dict[Any, Callable[..., Any]] = {
    f: f
    for f in (
        torch.relu, torch.tanh, torch.sigmoid, torch.square, torch.abs, torch.exp, F.relu, F.relu6, F.leaky_relu, F.elu, F.gelu, F.silu,
        F.mish, F.softplus, F.tanh, F.sigmoid, F.hardtanh, F.hardswish, F.max_pool1d, F.max_pool2d, F.avg_pool1d, F.avg_pool2d,
        F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, torch.add, torch.mul, torch.sub, operator.add, operator.mul, operator.sub,
        operator.neg, operator.truediv,
    )
}  # fmt: skip
_IN_PLACE = {operator.iadd: operator.add, operator.imul: operator.mul, operator.isub: operator.sub, operator.itruediv: operator.truediv}
_FUNCTIONS |= _IN_PLACE
_METHODS = ("relu", "tanh", "sigmoid", "square", "abs", "exp", "add", "mul", "sub", "contiguous")
_SHAPES = ("flatten", "view", "reshape")


class _Value(fx.Proxy):
    """What a traced network computes with. `x += y` changes x here, as it does in PyTorch; a plain proxy writes down x = x + y."""

    def __iadd__(self, other: Any) -> Any:
        return self.tracer.create_proxy("call_function", operator.iadd, (self, other), {})

    def __isub__(self, other: Any) -> Any:
        return self.tracer.create_proxy("call_function", operator.isub, (self, other), {})

    def __imul__(self, other: Any) -> Any:
        return self.tracer.create_proxy("call_function", operator.imul, (self, other), {})

    def __itruediv__(self, other: Any) -> Any:
        return self.tracer.create_proxy("call_function", operator.itruediv, (self, other), {})


class _Tracer(fx.Tracer):
    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Value(node, self)


class NotByLayers(TypeError):
    """A network, or a batch, that has to be run in another way."""


@dataclass(frozen=True)
class _Step:
    """One operation of the network: `out` = call(*args)."""

    out: str
    call: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class Layers:
    """A network as a list of operations on stacks of shards, and its loss.

    Args:
        steps: the operations, in order.
        inputs: name of the inputs.
        outputs: name of the outputs.
        loss: (outputs, targets) of all shards' examples, and the number of shards -> their losses (S,).
    """

    def __init__(self, steps: list[_Step], inputs: str, outputs: str, loss: Callable[[Tensor, Tensor, int], Tensor]) -> None:
        self._steps, self._inputs, self._outputs, self._loss = steps, inputs, outputs, loss
        self._last = {name: i for i, step in enumerate(steps) for name in _names(step.args)}

    def losses(self, tensors: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        """Return the loss of every shard.

        Args:
            tensors: parameters and buffers by name, parameters with a first dimension of S.
            x: inputs (S, m, ...).
            y: targets (S, m).

        Returns:
            (S,), differentiable.

        Raises:
            NotByLayers: an operation does not leave examples apart.
        """
        shards, m = x.shape[:2]
        held: dict[str, Any] = {self._inputs: x.flatten(0, 1)}
        for i, step in enumerate(self._steps):
            args = fx.node.map_aggregate(step.args, lambda a: held[a.name] if isinstance(a, _Ref) else a)
            found = step.call(tensors, shards, *args, **step.kwargs)
            if isinstance(found, Tensor) and (found.ndim == 0 or len(found) != shards * m):
                raise NotByLayers(f"{step.out} does not keep examples apart")
            held[step.out] = found
            for name in _names(step.args):
                if self._last[name] == i and name != self._outputs:
                    held.pop(name, None)
        return self._loss(held[self._outputs], y.flatten(0, 1), shards)


@dataclass(frozen=True)
class _Ref:
    """What an earlier operation gave."""

    name: str


def _names(args: Any) -> list[str]:
    found: list[str] = []
    fx.node.map_aggregate(args, lambda a: found.append(a.name) if isinstance(a, _Ref) else None)
    return found


def layers_of(objective: Objective) -> Layers | None:
    """Return an objective's network as operations on stacks of shards, or None where it has others."""
    try:
        return _layers_of(objective)
    except NotByLayers:
        return None


def _layers_of(objective: Objective) -> Layers:
    model = objective.caller().model
    if objective.takes != "outputs" or objective.reduction != "mean" or objective.batch_norm != "eval" or objective.held().written:
        raise NotByLayers("the loss takes the model, sums, or statistics of batches; or the network writes buffers")
    loss = _loss_of(objective.loss_function)
    if _has_hooks(model):
        raise NotByLayers("hooks may do anything")
    try:
        with warnings.catch_warnings(), untouched_random_state(torch.device("cpu")):
            warnings.simplefilter("ignore")
            # Of a copy, with buffers of its own: the model's code runs, and may keep what it sees or count in them.
            graph = _Tracer().trace(skeleton_of(model, "eval", {id(b): b.detach().clone() for b in model.buffers()}))
    except Exception as error:  # whatever a model raises that meets no tensors
        raise NotByLayers("the network cannot be traced") from error
    return _compile(graph, model, loss)


def _loss_of(loss: Any) -> Callable[[Tensor, Tensor, int], Tensor]:
    """Return the losses of shards, for the losses whose mean is over examples."""
    given = nn.CrossEntropyLoss() if loss is F.cross_entropy else nn.MSELoss() if loss is F.mse_loss else loss
    if type(given) is nn.CrossEntropyLoss and given.weight is None and given.reduction == "mean":
        smoothing, ignored = given.label_smoothing, given.ignore_index

        def of_classes(outputs: Tensor, y: Tensor, shards: int) -> Tensor:
            if outputs.ndim != 2 or y.ndim != 1 or y.is_floating_point():
                raise NotByLayers("cross-entropy of something else than logits (N, classes) and classes (N,)")
            each = F.cross_entropy(outputs, y, reduction="none", label_smoothing=smoothing, ignore_index=ignored)
            return each.view(shards, -1).sum(1) / (y != ignored).view(shards, -1).sum(1)

        return of_classes
    if type(given) is nn.MSELoss and given.reduction == "mean":

        def of_squares(outputs: Tensor, y: Tensor, shards: int) -> Tensor:
            if outputs.shape != y.shape:
                raise NotByLayers("squares of outputs and targets of different shapes")
            return (outputs - y).square().reshape(shards, -1).mean(1)

        return of_squares
    raise NotByLayers("a loss of the user's own")


def _compile(graph: fx.Graph, model: nn.Module, loss: Callable[[Tensor, Tensor, int], Tensor]) -> Layers:
    modules = dict(model.named_modules())
    if len({p.dtype for p in model.parameters()}) > 1:
        raise NotByLayers("parameters of several dtypes")
    # Tied weights have one name, the one that the objective knows.
    names = {id(t): name for tensors in (model.named_parameters(), model.named_buffers()) for name, t in tensors}
    nodes = list(graph.nodes)
    _refuse_overwritten(nodes, modules)
    inputs = [node for node in nodes if node.op == "placeholder"]
    outputs = [node for node in nodes if node.op == "output"]
    if len(inputs) != 1 or not isinstance(outputs[0].args[0], fx.Node):
        raise NotByLayers("several inputs or outputs")
    steps: list[_Step] = []
    absorbed: dict[fx.Node, fx.Node] = {}  # a normalisation, by the convolution before it
    for node in nodes:
        if node.op in ("placeholder", "output"):
            continue
        after = _norm_behind(node, modules)
        if after is not None:
            absorbed[after] = node
        if node in absorbed:
            steps.append(_Step(node.name, lambda tensors, shards, x: x, (_Ref(absorbed[node].name),), {}))
            continue
        args: Any = fx.node.map_aggregate(node.args, lambda a: _Ref(a.name) if isinstance(a, fx.Node) else a)  # type: ignore[arg-type, return-value]
        kwargs = dict(node.kwargs)
        if any(isinstance(a, fx.Node) for a in fx.node.map_aggregate(kwargs, lambda a: a).values()):
            raise NotByLayers(f"{node} is given something computed by keyword")
        if node.op == "call_module":
            call = _module_call(modules[str(node.target)], None if after is None else modules[str(after.target)], names)
        elif node.op == "call_function":
            call = _function_call(node.target)
        elif node.op == "call_method":
            call = _method_call(str(node.target))
        else:
            raise NotByLayers(f"{node.op} {node.target}")
        steps.append(_Step(node.name, call, args, kwargs))
    return Layers(steps, inputs[0].name, outputs[0].args[0].name, loss)


def _refuse_overwritten(nodes: list[fx.Node], modules: dict[str, nn.Module]) -> None:
    """Refuse a network in which something reads a value that another operation has changed in place: here operations change nothing.

    Args:
        nodes: of the graph, in order.
        modules: by name.

    Raises:
        NotByLayers: something does.
    """
    memory: dict[fx.Node, set[fx.Node]] = {}  # those that may share a node's memory
    place = {node: i for i, node in enumerate(nodes)}
    for i, node in enumerate(nodes):
        changed = node.args[0] if _is_in_place(node, modules) else None
        for old in memory.get(changed, ()) if isinstance(changed, fx.Node) else ():
            if old.op == "placeholder" or any(place[user] > i for user in old.users):
                raise NotByLayers(f"{node} changes what is read again")
        memory[node] = {node}
        for other in {n for arg in node.all_input_nodes for n in memory[arg]}:
            if changed is not None or _may_be_a_view(node, modules):
                memory[node].add(other)
                memory[other].add(node)


def _is_in_place(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    if node.op == "call_module":
        return bool(getattr(modules[str(node.target)], "inplace", False))
    in_place = node.target in _IN_PLACE or node.kwargs.get("inplace", False)
    return node.op == "call_function" and bool(in_place)


def _may_be_a_view(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    if node.op == "call_module":
        return isinstance(modules[str(node.target)], nn.Identity | nn.Flatten | nn.modules.dropout._DropoutNd)
    return node.target in (*_SHAPES, "contiguous", torch.flatten, F.dropout)


def _norm_behind(node: fx.Node, modules: dict[str, nn.Module]) -> fx.Node | None:
    """Return the batch normalisation that alone takes a convolution's outputs."""
    if node.op != "call_module" or type(modules[str(node.target)]) not in _CONVOLUTIONS or len(node.users) != 1:
        return None
    (user,) = node.users
    fits = user.op == "call_module" and type(modules[str(user.target)]) in _BATCH_NORMS and _is_fixed(modules[str(user.target)])
    return user if fits else None


def _is_fixed(norm: Any) -> bool:
    return norm.running_mean is not None and norm.running_var is not None and not norm.training


def _module_call(module: nn.Module, norm: Any, names: dict[int, str]) -> Callable[..., Tensor]:
    kind: Any = module
    if "forward" in vars(module) or (norm is not None and "forward" in vars(norm)):
        raise NotByLayers("a layer with a forward of its own")

    def known(tensor: Tensor) -> str:
        if id(tensor) not in names:
            raise NotByLayers("a layer whose weight is no parameter")
        return names[id(tensor)]

    def name(tensor: Tensor | None) -> str | None:
        return None if tensor is None else known(tensor)

    if type(module) in _LINEAR:
        weight, bias = known(kind.weight), name(kind.bias)
        return lambda tensors, shards, x: linear(x, tensors[weight], _get(tensors, bias))
    if type(module) in _CONVOLUTIONS:
        if kind.padding_mode != "zeros" or isinstance(kind.padding, str):
            raise NotByLayers("a convolution with a padding of its own")
        weight, bias = known(kind.weight), name(kind.bias)
        geometry = kind.stride, kind.padding, kind.dilation, kind.groups

        def images(x: Any) -> Tensor:
            if _tensor(x).ndim != kind.weight.ndim:
                raise NotByLayers("a convolution of one example")
            return x

        if norm is None:
            return lambda tensors, shards, x: convolution(images(x), tensors[weight], _get(tensors, bias), geometry)
        gain, shift, mean, var = name(norm.weight), name(norm.bias), known(norm.running_mean), known(norm.running_var)

        def normed(tensors: dict[str, Tensor], shards: int, x: Tensor) -> Tensor:
            fixed = tensors[mean], torch.rsqrt(tensors[var] + norm.eps)
            return convolution(images(x), tensors[weight], _get(tensors, bias), geometry, _get(tensors, gain), _get(tensors, shift), *fixed)

        return normed
    if type(module) in _BATCH_NORMS and _is_fixed(module):
        gain, shift, mean, var = name(kind.weight), name(kind.bias), known(kind.running_mean), known(kind.running_var)

        def batch_norm(tensors: dict[str, Tensor], shards: int, x: Tensor) -> Tensor:
            plain = (-1,) + (1,) * (x.ndim - 2)
            x = (x - tensors[mean].view(plain)) * torch.rsqrt(tensors[var] + kind.eps).view(plain)
            return affine(x, _get(tensors, gain), _get(tensors, shift), x.ndim - 2, shards)

        return batch_norm
    if type(module) is nn.LayerNorm:
        gain, shift = name(kind.weight), name(kind.bias)
        shape = kind.normalized_shape

        def layer_norm(tensors: dict[str, Tensor], shards: int, x: Tensor) -> Tensor:
            if x.ndim <= len(shape):
                raise NotByLayers("a layer norm over examples")
            return affine(F.layer_norm(x, shape, eps=kind.eps), _get(tensors, gain), _get(tensors, shift), 0, shards)

        return layer_norm
    if type(module) is nn.GroupNorm:
        gain, shift = name(kind.weight), name(kind.bias)
        return lambda tensors, shards, x: affine(
            F.group_norm(x, kind.num_groups, eps=kind.eps), _get(tensors, gain), _get(tensors, shift), x.ndim - 2, shards
        )
    if type(module) in (*_ELEMENTWISE, *_POOLS) and not getattr(module, "return_indices", False):
        if isinstance(module, nn.modules.dropout._DropoutNd):
            return _as_it_is
        plain = _not_in_place(module)
        return lambda tensors, shards, x: plain(_tensor(x))
    if type(module) is nn.Flatten and kind.start_dim >= 1:
        return lambda tensors, shards, x: x.flatten(kind.start_dim, kind.end_dim)
    raise NotByLayers(f"a layer of type {type(module).__name__}")


def _not_in_place(module: nn.Module) -> nn.Module:
    """Return a layer that leaves its inputs alone: they may be what a gradient needs, or be needed again."""
    if not getattr(module, "inplace", False):
        return module
    other = skeleton_of(module, "eval")
    other.inplace = False  # type: ignore[assignment]
    return other


def _function_call(function: Any) -> Callable[..., Any]:
    if function in _FUNCTIONS:
        pure = _FUNCTIONS[function]

        def call(tensors: dict[str, Tensor], shards: int, *args: Any, **kwargs: Any) -> Tensor:
            shapes = {a.shape for a in map(_tensor_or_literal, args) if isinstance(a, Tensor)}
            if len(shapes) != 1 or any(isinstance(a, bool) for a in args):  # one may say `inplace`
                raise NotByLayers(f"{function} of tensors of different shapes, or with a choice by position")
            return pure(*args, **{k: v for k, v in kwargs.items() if k != "inplace"})

        return call
    if function is torch.flatten:
        return _method_call("flatten")
    if function is torch.mean:
        return _method_call("mean")
    if function is F.dropout:
        return _dropout
    if function is getattr:
        return lambda tensors, shards, x, attribute: _size(x, attribute)
    if function is operator.getitem:
        return lambda tensors, shards, shape, i: _entry(shape, i)
    raise NotByLayers(f"function {function}")


def _dropout(tensors: dict[str, Tensor], shards: int, x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    if training is not False:
        raise NotByLayers("dropout that draws")
    return x


def _size(x: Any, attribute: str) -> _Shape:
    if attribute != "shape":
        raise NotByLayers(f"attribute {attribute}")
    return _Shape(tuple(_tensor(x).shape))


class _Shape:
    """A shape in the network's own code; numbers taken from it may go into shapes alone: the first one is that of our batch."""

    def __init__(self, sizes: tuple[int, ...]) -> None:
        self.sizes = sizes


class _Count:
    """One entry of a shape; `first` if it counts examples."""

    def __init__(self, value: int, first: bool) -> None:
        self.value, self.first = value, first


def _entry(shape: Any, i: Any) -> _Count:
    if not isinstance(shape, _Shape) or not isinstance(i, int):
        raise NotByLayers("an index into something else than a shape")
    return _Count(shape.sizes[i], i % len(shape.sizes) == 0)


def _method_call(method: str) -> Callable[..., Any]:
    if method in _METHODS:
        return _function_call(getattr(torch, method)) if method in ("relu", "tanh", "sigmoid", "square", "abs", "exp") else _methods(method)
    if method == "size":
        return lambda tensors, shards, x, *i: _entry(_size(x, "shape"), *i) if i else _size(x, "shape")
    if method == "mean":

        def mean(tensors: dict[str, Tensor], shards: int, x: Tensor, dim: Any = None, keepdim: bool = False) -> Tensor:
            dims = (dim,) if isinstance(dim, int) else dim
            if not isinstance(dims, tuple | list) or not dims or any(not isinstance(d, int) or d % x.ndim == 0 for d in dims):
                raise NotByLayers("a mean over examples")
            return x.mean(tuple(dims), keepdim)

        return mean
    if method in _SHAPES:

        def shaped(tensors: dict[str, Tensor], shards: int, x: Tensor, *sizes: Any, **kwargs: Any) -> Tensor:
            if method == "flatten" and not (sizes[0] if sizes else kwargs.get("start_dim", 0)):
                raise NotByLayers("examples in one vector")
            flat = sizes[0] if len(sizes) == 1 and isinstance(sizes[0], tuple | list) else sizes
            # Where the first dimension stays, so do the examples; that it does is looked at after every operation. It must do so for any
            # number of them: it is theirs, or what the others leave over.
            counts = [isinstance(s, _Count) and s.first for s in flat]
            if method != "flatten" and (not flat or any(counts[1:]) or not (counts[0] or flat[0] == -1)):
                raise NotByLayers("a shape that does not begin with the number of examples")
            return getattr(_tensor(x), method)(*(s.value if isinstance(s, _Count) else s for s in flat), **kwargs)

        return shaped
    raise NotByLayers(f"method {method}")


def _methods(method: str) -> Callable[..., Any]:
    if method == "contiguous":
        return _as_it_is
    return _function_call(getattr(operator, method))


def _tensor(x: Any) -> Tensor:
    if not isinstance(x, Tensor):
        raise NotByLayers("a number where a tensor was expected")
    return x


def _tensor_or_literal(x: Any) -> Any:
    if isinstance(x, _Shape | _Count):
        raise NotByLayers("a result that depends on the size of the batch")
    return x


def _get(tensors: dict[str, Tensor], name: str | None) -> Tensor | None:
    return None if name is None else tensors[name]


def _has_hooks(model: nn.Module) -> bool:
    return any(
        getattr(m, f"_{name}")
        for m in model.modules()
        for name in ("forward_hooks", "forward_pre_hooks", "backward_hooks", "backward_pre_hooks")
    )


def _as_it_is(tensors: dict[str, Tensor], shards: int, x: Tensor, **_: Any) -> Tensor:
    return x
