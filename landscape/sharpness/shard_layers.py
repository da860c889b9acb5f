r"""Layers whose weights are stacks, one for each of S shards: y = x W_s' + b_s for the examples x (S m, ...) of shard s.

A stack with stride 0 along its first dimension holds one set of weights for all: then the layer is the usual one, and only the gradient by
the weights goes shard by shard.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return x W_s' + b_s.

    Args:
        x: (S m, ..., in).
        weight: (S, out, in).
        bias: (S, out) or None.

    Returns:
        (S m, ..., out).
    """
    return _Linear.apply(x, weight, bias)


def convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    geometry: tuple[Any, ...],
    gain: Tensor | None = None,
    shift: Tensor | None = None,
    mean: Tensor | None = None,
    inverse: Tensor | None = None,
) -> Tensor:
    """Return a convolution, and behind it (y - mean) inverse gain + shift where there is a mean.

    Args:
        x: (S m, in, ...).
        weight: (S, out, in / groups, ...).
        bias: (S, out) or None.
        geometry: stride, padding, dilation, groups.
        gain: (S, out) or None for 1.
        shift: (S, out) or None for 0.
        mean: (out,) of the outputs, held fixed.
        inverse: (out,) one over their standard deviation, held fixed.

    Returns:
        (S m, out, ...).
    """
    return _Convolution.apply(x, weight, bias, gain, shift, mean, inverse, geometry)


def affine(x: Tensor, gain: Tensor | None, shift: Tensor | None, trailing: int, shards: int) -> Tensor:
    """Return x c_s + t_s.

    Args:
        x: (S m, ..., C, trailing dimensions).
        gain: (S, C) or None for 1.
        shift: (S, C) or None for 0; both may have several dimensions.
        trailing: number of dimensions behind C.
        shards: S.

    Returns:
        A tensor like x.
    """
    if gain is None and shift is None:
        return x
    stacked = x.unflatten(0, (shards, -1))

    def placed(t: Tensor) -> Tensor:
        return t.reshape(shards, *[1] * (stacked.ndim - t.ndim - trailing), *t.shape[1:], *[1] * trailing)

    if gain is not None:
        stacked = stacked * placed(gain)
    return (stacked if shift is None else stacked + placed(shift)).flatten(0, 1)


def _shared(stack: Tensor | None) -> bool:
    return stack is None or stack.stride(0) == 0 or len(stack) == 1


def _usual(x: Tensor, shards: int) -> bool:
    """Tell whether a convolution with one set of weights is best run as usual: kernels for CPUs are faster with many groups."""
    return shards == 1 or x.device.type != "cpu"


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        if _shared(weight) and _shared(bias):
            return torch.nn.functional.linear(x, weight[0], None if bias is None else bias[0])
        rows = x.reshape(len(weight), -1, x.shape[-1])
        if bias is None:
            y = torch.bmm(rows, weight.transpose(1, 2))
        else:
            y = torch.baddbmm(bias.unsqueeze(1), rows, weight.transpose(1, 2))
        return y.reshape(*x.shape[:-1], weight.shape[1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        by_x, by_weight, by_bias = ctx.needs_input_grad
        shards = len(weight)
        rows, slopes = x.reshape(shards, -1, x.shape[-1]), g.reshape(shards, -1, g.shape[-1])
        gx = None
        if by_x:
            gx = g @ weight[0] if _shared(weight) else torch.bmm(slopes, weight).view_as(x)
        gw = None
        if by_weight:
            # Of one example it is an outer product, which needs no matrix kernel.
            gw = slopes.transpose(1, 2) * rows if rows.shape[1] == 1 else torch.bmm(slopes.transpose(1, 2), rows)
        return gx, gw, slopes.sum(1) if by_bias else None


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Any, gain: Any, shift: Any, mean: Any, inverse: Any, geometry: Any) -> Tensor:
        ctx.geometry = geometry
        ctx.save_for_backward(x, weight, bias, gain, mean, inverse)
        one = all(_shared(t) for t in (weight, bias, gain, shift)) and _usual(x, len(weight))
        first = slice(0, 1) if one else slice(None)
        kernel, offset = weight[first], None if bias is None else bias[first]
        if inverse is not None:
            scale = _scale(gain, inverse, first)
            kernel = kernel * _to(kernel, scale)
            offset = -mean * scale if offset is None else (offset - mean) * scale
            offset = offset if shift is None else offset + shift[first]
        if one or len(kernel) == 1:
            return _convolve(x, kernel[0], None if offset is None else offset[0], geometry, 1)
        shards = len(weight)
        y = _convolve(_side_by_side(x, shards), _flat(kernel, shards), None if offset is None else _flat(offset, shards), geometry, shards)
        return _one_by_one(y, shards)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, gain, mean, inverse = ctx.saved_tensors
        by_x, by_weight, by_bias, by_gain, by_shift = ctx.needs_input_grad[:5]
        shards = len(weight)
        scale = None if inverse is None else _scale(gain, inverse, slice(None))
        gx = gw = gb = gc = gt = None
        side_g = _side_by_side(g, shards)
        if by_x:
            one = _shared(weight) and _shared(gain) and _usual(x, shards)
            kernel = weight[:1] if one else weight
            kernel = kernel if scale is None else kernel * _to(kernel, scale[: len(kernel)])
            if one:
                gx = _backward(g, x, kernel[0], ctx.geometry, 1, True)
            else:
                gx = _one_by_one(_backward(side_g, _side_by_side(x, shards), _flat(kernel, shards), ctx.geometry, shards, True), shards)
        if by_weight or by_gain:
            like = weight.new_empty(weight.shape).flatten(0, 1)  # its shape alone matters
            by_kernel = _backward(side_g, _side_by_side(x, shards), like, ctx.geometry, shards, False).view(weight.shape)
            gw = by_kernel if scale is None else by_kernel * _to(weight, scale)
        if by_bias or by_gain or by_shift:
            total = g.reshape(shards, -1, *g.shape[1:]).sum((1, *range(3, g.ndim + 1)))
            gb, gt = total if scale is None else total * scale, total
        if by_gain:
            centred = -mean if bias is None else bias - mean
            gc = inverse * ((by_kernel * weight).flatten(2).sum(2) + total * centred)
        chosen = zip((gx, gw, gb, gc, gt), (by_x, by_weight, by_bias, by_gain, by_shift), strict=True)
        return *(value if wanted else None for value, wanted in chosen), None, None, None


def _scale(gain: Tensor | None, inverse: Tensor, part: slice) -> Tensor:
    return inverse.unsqueeze(0) if gain is None else gain[part] * inverse


def _to(kernel: Tensor, per_channel: Tensor) -> Tensor:
    """Return (S, out) such that it multiplies kernels (S, out, ...)."""
    return per_channel.view(*per_channel.shape, *[1] * (kernel.ndim - 2))


def _flat(stack: Tensor, shards: int) -> Tensor:
    """Return (S or 1, out, ...) as (S out, ...)."""
    return stack.expand(shards, *stack.shape[1:]).flatten(0, 1)


def _side_by_side(x: Tensor, shards: int) -> Tensor:
    """Return (S m, C, ...) as (m, S C, ...): the channels of all shards in one image."""
    return x.unflatten(0, (shards, -1)).transpose(0, 1).flatten(1, 2)


def _one_by_one(y: Tensor, shards: int) -> Tensor:
    """Return (m, S C, ...) as (S m, C, ...)."""
    return y.unflatten(1, (shards, -1)).transpose(0, 1).flatten(0, 1)


def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: tuple[Any, ...], times: int) -> Tensor:
    stride, padding, dilation, groups = geometry
    return torch.ops.aten.convolution(x, weight, bias, stride, padding, dilation, False, (0,) * len(stride), groups * times)


def _backward(g: Tensor, x: Tensor, weight: Tensor, geometry: tuple[Any, ...], times: int, by_x: bool) -> Tensor:
    stride, padding, dilation, groups = geometry
    return torch.ops.aten.convolution_backward(
        g, x, weight, None, stride, padding, dilation, False, (0,) * len(stride), groups * times, (by_x, not by_x, False)
    )[0 if by_x else 1]
