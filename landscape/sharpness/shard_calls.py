"""What one operation of a network does with the examples of all shards at once: (tensors, shards, *arguments) -> outputs.

Layers with weights take stacks of them from `tensors`; operations that leave every example to itself stay what they are. For any other
one there is no call: `NotByLayers`.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from landscape.sharpness.shard_layers import affine, convolution, linear
from landscape.stateless import skeleton_of

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
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
IN_PLACE = {operator.iadd: operator.add, operator.imul: operator.mul, operator.isub: operator.sub, operator.itruediv: operator.truediv}
_FUNCTIONS |= IN_PLACE
_METHODS = ("relu", "tanh", "sigmoid", "square", "abs", "exp", "add", "mul", "sub", "contiguous")
SHAPES = ("flatten", "view", "reshape")


class NotByLayers(TypeError):
    """A network, or a batch, that has to be run in another way."""


def is_fixed(norm: Any) -> bool:
    """Tell a batch normalisation that uses running statistics."""
    return norm.running_mean is not None and norm.running_var is not None and not norm.training


def module_call(module: nn.Module, norm: Any, names: dict[int, str]) -> Callable[..., Tensor]:
    """Return the call of a layer.

    Args:
        module: the layer.
        norm: the batch normalisation right behind a convolution, which disappears into it; None where there is none.
        names: of parameters and buffers, by `id`.

    Returns:
        (tensors, shards, x) -> outputs.

    Raises:
        NotByLayers: there is none.
    """
    kind: Any = module
    if "forward" in vars(module) or (norm is not None and "forward" in vars(norm)):
        raise NotByLayers("a layer with a forward of its own")

    def known(tensor: Tensor) -> str:
        if id(tensor) not in names:
            raise NotByLayers("a layer whose weight is no parameter")
        return names[id(tensor)]

    def name(tensor: Tensor | None) -> str | None:
        return None if tensor is None else known(tensor)

    if type(module) is nn.Linear:
        weight, bias = known(kind.weight), name(kind.bias)
        return lambda tensors, shards, x: linear(x, tensors[weight], _get(tensors, bias))
    if type(module) in CONVOLUTIONS:
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
    if type(module) in BATCH_NORMS and is_fixed(module):
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


def function_call(function: Any) -> Callable[..., Any]:
    """Return the call of a function of PyTorch or Python, or raise `NotByLayers`."""
    if function in _FUNCTIONS:
        pure = _FUNCTIONS[function]

        def call(tensors: dict[str, Tensor], shards: int, *args: Any, **kwargs: Any) -> Tensor:
            shapes = {a.shape for a in map(_tensor_or_literal, args) if isinstance(a, Tensor)}
            if len(shapes) != 1 or any(isinstance(a, bool) for a in args):  # one may say `inplace`
                raise NotByLayers(f"{function} of tensors of different shapes, or with a choice by position")
            return pure(*args, **{k: v for k, v in kwargs.items() if k != "inplace"})

        return call
    if function is torch.flatten:
        return method_call("flatten")
    if function is torch.mean:
        return method_call("mean")
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


def method_call(method: str) -> Callable[..., Any]:
    """Return the call of a method of tensors, or raise `NotByLayers`."""
    if method in _METHODS:
        return function_call(getattr(torch, method)) if method in ("relu", "tanh", "sigmoid", "square", "abs", "exp") else _methods(method)
    if method == "size":
        return lambda tensors, shards, x, *i: _entry(_size(x, "shape"), *i) if i else _size(x, "shape")
    if method == "mean":

        def mean(tensors: dict[str, Tensor], shards: int, x: Tensor, dim: Any = None, keepdim: bool = False) -> Tensor:
            dims = (dim,) if isinstance(dim, int) else dim
            if not isinstance(dims, tuple | list) or not dims or any(not isinstance(d, int) or d % x.ndim == 0 for d in dims):
                raise NotByLayers("a mean over examples")
            return x.mean(tuple(dims), keepdim)

        return mean
    if method in SHAPES:

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
    return function_call(getattr(operator, method))


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


def _as_it_is(tensors: dict[str, Tensor], shards: int, x: Tensor, **_: Any) -> Tensor:
    return x
