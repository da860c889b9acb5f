"""Faster forms of the same model: the same function of the same parameters, in arithmetic that costs less.

`rewrite` changes a copy of a model that nobody else sees (`stateless.skeleton_of`), names and parameters stay:

* a convolution whose second derivative is computed by the kernels of its first one. PyTorch's own writes the derivative by the weight as a
  convolution with a kernel as large as the image, for which there is no fast kernel;
* batch normalisation with running statistics, y = s x + t with s = weight / sqrt(var + eps), t = bias - mean s, as this affine map; right
  behind a convolution it disappears into it: s goes into the weight, t into the bias. Derivatives go through both to their parameters.

The form "rewritten" is a model with both; in "channels_last", its images and kernels are laid out with channels last, too, as kernels for
CPUs and tensor cores prefer. "plain" is the model as it is. All are equal up to rounding. Modules of classes derived from these stay as
they are, and in a model with hooks nothing is absorbed.
"""

from __future__ import annotations

import warnings
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_map

from landscape.batches import leaves, untouched_random_state
from landscape.stateless import skeleton_of

Form = Literal["plain", "rewritten", "channels_last"]
_CONVOLUTIONS: dict[type[nn.Module], int] = {nn.Conv1d: 1, nn.Conv2d: 2, nn.Conv3d: 3}
_NORMS: dict[type[nn.Module], int] = {nn.BatchNorm1d: 1, nn.BatchNorm2d: 2, nn.BatchNorm3d: 3}


def rewrite(skeleton: nn.Module) -> int:
    """Rewrite the convolutions and the normalisations of a copied model in evaluation mode, in place.

    Args:
        skeleton: the copy; its parameters and buffers keep their names.

    Returns:
        How many modules were rewritten.
    """
    convolutions = {name: m for name, m in skeleton.named_modules() if _is_plain_convolution(m)}
    norms = {name: m for name, m in skeleton.named_modules() if _is_fixed_norm(m)}
    for conv, norm in _pairs(skeleton) if convolutions and norms else ():
        if conv in convolutions and norm in norms and _fit(convolutions[conv], norms[norm]):
            convolutions[conv].norm = (norms[norm],)  # in a tuple: it must not become a submodule
            norms[norm].__class__ = _ABSORBED[type(norms[norm])]
            del norms[norm]
    for module in [*convolutions.values(), *norms.values()]:
        module.__class__ = _CLASSES[type(module)]
    return len(convolutions) + len(norms)


def channels_last(tensor: Any) -> Any:
    """Return images (n, c, h, w), or a kernel, laid out in memory as n, h, w, c; anything else as it is."""
    images = isinstance(tensor, Tensor) and tensor.ndim == 4
    return tensor.contiguous(memory_format=torch.channels_last) if images else tensor


def images_last(batch: Any) -> Any:
    """Return a batch with its images laid out with channels last."""
    return tree_map(channels_last, batch)


def candidates(model: nn.Module, batch: Any) -> list[Form]:
    """Return the forms that may pay for a copied model and batches like this one, the one to expect the most of first."""
    if not any(_is_plain_convolution(m) or _is_fixed_norm(m) for m in model.modules()):
        return ["plain"]
    images = any(t.ndim == 4 for t in leaves(batch)) and any(isinstance(m, nn.Conv2d) for m in model.modules())
    return ["channels_last", "rewritten"] if images else ["rewritten"]


def _is_plain_convolution(module: nn.Module) -> bool:
    return type(module) in _CONVOLUTIONS and module.padding_mode == "zeros" and not isinstance(module.padding, str)


def _is_fixed_norm(module: nn.Module) -> bool:
    return type(module) in _NORMS and module.running_mean is not None and module.running_var is not None and not module.training


def _fit(conv: nn.Module, norm: nn.Module) -> bool:
    same = conv.weight.dtype == norm.running_var.dtype and conv.weight.device == norm.running_var.device
    return _CONVOLUTIONS[type(conv)] == _NORMS[type(norm)] and conv.out_channels == norm.num_features and same


def _pairs(skeleton: nn.Module) -> list[tuple[str, str]]:
    """Return (convolution, normalisation) where the normalisation takes the convolution's output, which nothing else takes.

    Symbolic tracing proves it for every input: a model whose way depends on its inputs cannot be traced, and has no pairs.
    """
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    if any(getattr(m, name) for m in skeleton.modules() for name in hooks):
        return []
    try:
        with warnings.catch_warnings(), untouched_random_state(torch.device("cpu")):
            warnings.simplefilter("ignore")
            # Of a copy, with buffers of its own: the model's code runs, and may keep what it sees or count in them.
            traced = fx.Tracer().trace(skeleton_of(skeleton, "eval", {id(b): b.detach().clone() for b in skeleton.buffers()}))
    except Exception:  # whatever a model raises that meets no tensors
        return []
    calls = [node for node in traced.nodes if node.op == "call_module"]
    times: dict[str, int] = {}
    for node in calls:
        times[str(node.target)] = times.get(str(node.target), 0) + 1
    found = []
    for node in calls:
        source = node.args[0] if len(node.args) == 1 and not node.kwargs else None
        if isinstance(source, fx.Node) and source.op == "call_module" and len(source.users) == 1:
            pair = str(source.target), str(node.target)
            if times[pair[0]] == times[pair[1]] == 1:
                found.append(pair)
    return found


def _scale_and_shift(norm: Any) -> tuple[Tensor, Tensor]:
    scale = torch.rsqrt(norm.running_var + norm.eps)
    scale = scale if norm.weight is None else norm.weight * scale
    shift = -norm.running_mean * scale
    return scale, shift if norm.bias is None else norm.bias + shift


class _Affine(nn.Module):
    """Batch normalisation with running statistics; a loss of the user's own may put its model into training mode."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            return super().forward(x)
        shape = (-1,) + (1,) * (x.ndim - 2)
        scale, shift = _scale_and_shift(self)
        return torch.addcmul(shift.view(shape), x, scale.view(shape))


class _Absorbed(nn.Module):
    """Batch normalisation that its convolution has computed already."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if self.training else x


class _Convolution(nn.Module):
    """A convolution, and the normalisation behind it if `norm` holds one."""

    norm: tuple[Any, ...] = ()
    stride: Any
    padding: Any
    dilation: Any
    groups: int

    def forward(self, x: Tensor) -> Tensor:
        weight: Any = self.weight
        bias: Any = self.bias
        if x.ndim != weight.ndim:
            raise ValueError(f"a convolution of {weight.ndim - 2} dimensions takes batches of {weight.ndim}, got shape {tuple(x.shape)}")
        if self.norm and not self.norm[0].training:
            scale, shift = _scale_and_shift(self.norm[0])
            weight = weight * scale.view((-1,) + (1,) * (weight.ndim - 1))
            bias = shift if bias is None else torch.addcmul(shift, bias, scale)
        if torch.is_autocast_enabled(x.device.type):  # folded in full precision, unknown to autocast
            low = torch.get_autocast_dtype(x.device.type)
            x, weight, bias = x.to(low), weight.to(low), None if bias is None else bias.to(low)
        return _Conv.apply(x, weight, bias, (self.stride, self.padding, self.dilation, self.groups))


def _derived(form: type[nn.Module], kinds: Any) -> dict[type[nn.Module], type[nn.Module]]:
    return {kind: type(kind.__name__, (form, kind), {"__module__": __name__}) for kind in kinds}  # whoever asks finds a Conv2d


_CLASSES = _derived(_Convolution, _CONVOLUTIONS) | _derived(_Affine, _NORMS)
_ABSORBED = _derived(_Absorbed, _NORMS)


REWRITTEN = frozenset((*_CLASSES.values(), *_ABSORBED.values()))


def passes_through(module: nn.Module) -> bool:
    """Tell whether a module in evaluation mode returns the very tensor that it is given."""
    return type(module) in (nn.Identity, nn.Dropout, *_ABSORBED.values())


def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: tuple) -> Tensor:
    stride, padding, dilation, groups = geometry
    return torch.ops.aten.convolution(x, weight, bias, stride, padding, dilation, False, (0,) * len(stride), groups)


def _gradients(g: Tensor, x: Tensor, weight: Tensor, geometry: tuple, by_x: bool, by_weight: bool) -> tuple[Tensor | None, Tensor | None]:
    stride, padding, dilation, groups = geometry
    return torch.ops.aten.convolution_backward(
        g, x, weight, None, stride, padding, dilation, False, (0,) * len(stride), groups, (by_x, by_weight, False)
    )[:2]


def _wanted(ctx: Any, i: int) -> bool:
    """Tell whether this pass asks for the derivative by argument i: of one layer, or of the way to the outputs alone, it does not."""
    if not ctx.needs_input_grad[i]:
        return False
    node = ctx.next_functions[i][0]
    try:
        return node is None or torch._C._will_engine_execute_node(node)
    except (AttributeError, RuntimeError):  # a leaf that is asked for; or a PyTorch that cannot tell
        return True


class _Conv(torch.autograd.Function):
    """y = conv(x, W) + b."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, geometry: tuple) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.geometry = geometry
        return _convolve(x, weight, bias, geometry)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        by_x, by_weight, by_bias = (_wanted(ctx, i) for i in range(3))
        gx = gw = None
        if by_x or by_weight:
            gx, gw = _ConvBackward.apply(g, x, weight, ctx.geometry, by_x, by_weight)
        return gx, gw, g.sum((0, *range(2, g.ndim))) if by_bias else None, None


class _ConvBackward(torch.autograd.Function):
    """(g, x, W) -> (g_x, g_W), both bilinear, so that the derivatives are three convolutions of the same kind."""

    @staticmethod
    def forward(ctx: Any, g: Tensor, x: Tensor, weight: Tensor, geometry: tuple, by_x: bool, by_weight: bool) -> tuple[Tensor | None, ...]:
        ctx.save_for_backward(g, x, weight)
        ctx.set_materialize_grads(False)
        ctx.geometry = geometry
        return _gradients(g, x, weight, geometry, by_x, by_weight)

    @staticmethod
    def backward(ctx: Any, v_x: Tensor | None, v_weight: Tensor | None) -> tuple[Tensor | None, ...]:
        g, x, weight = ctx.saved_tensors
        by_g, by_x, by_weight = (_wanted(ctx, i) for i in range(3))
        d_g = d_x = d_weight = None
        if by_g:
            parts = [(v_x, weight)] if v_x is not None else []
            parts += [(x, v_weight)] if v_weight is not None else []
            for a, b in parts:
                y = _convolve(a, b, None, ctx.geometry)
                d_g = y if d_g is None else d_g + y
        if by_x and v_weight is not None:
            d_x = _gradients(g, x, v_weight, ctx.geometry, True, False)[0]
        if by_weight and v_x is not None:
            d_weight = _gradients(g, v_x, weight, ctx.geometry, False, True)[1]
        return d_g, d_x, d_weight, None, None, None
