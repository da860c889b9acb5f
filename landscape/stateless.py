"""A model's structure without its state: what `functional_call` needs to evaluate a model that must not be written to."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

from landscape.batches import is_pair, untouched_random_state

_NORMALISATIONS = (nn.modules.batchnorm._NormBase,)


class LossCall(nn.Module):
    """Model and loss as one module, so that `functional_call` can put parameters into both forms of loss."""

    def __init__(self, model: nn.Module, loss: Callable[..., Tensor], takes: str) -> None:
        super().__init__()
        self.model, self.takes = model, takes
        # In a tuple: a loss that is itself a module must not add its parameters to ours.
        self.loss = (loss,)

    def forward(self, batch: Any) -> tuple[Tensor, Any]:
        """Return the loss of a batch, and the outputs where the loss takes outputs."""
        if self.takes == "model":
            return scalar(self.loss[0](self.model, batch)), None
        inputs, target = batch
        if isinstance(inputs, Mapping):
            outputs = self.model(**inputs)
        elif isinstance(inputs, tuple | list):
            outputs = self.model(*inputs)
        else:
            outputs = self.model(inputs)
        return scalar(self.loss[0](outputs, target)), outputs


class Lowered(nn.Module):
    """A model that computes in a lower precision where that is safe (`torch.autocast`), and returns what it finds in a higher one."""

    def __init__(self, model: nn.Module, low: torch.dtype, high: torch.dtype) -> None:
        super().__init__()
        self.model, self.low, self.high = model, low, high

    def forward(self, *inputs: Any, **named: Any) -> Any:
        """Return the outputs of the model."""
        device = next(self.model.parameters()).device
        with torch.autocast(device.type, self.low):
            outputs = self.model(*inputs, **named)
        return tree_map(lambda t: t.to(self.high) if isinstance(t, Tensor) and t.dtype == self.low else t, outputs)


def scalar(loss: Any) -> Tensor:
    """Return a loss as a tensor without dimensions, or raise ValueError if it is not one number."""
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        got = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
        raise ValueError(f"loss must return one number per batch, got {got}; use reduction='mean' or call .mean()")
    return loss.reshape(())


@contextmanager
def undisturbed(device: torch.device) -> Iterator[None]:
    """Measure: no autograd graph unless asked for, no autocast or inference mode of the caller's, all random state as it was."""
    with (
        untouched_random_state(device),
        torch.inference_mode(False),
        torch.no_grad(),
        torch.autocast(device.type, enabled=False),
    ):
        yield


@contextmanager
def recurrent_gradients(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Keep recurrent layers on a GPU from cuDNN: in evaluation mode it has no derivative, in none a second one."""
    with ExitStack() as stack:
        if device.type == "cuda" and any(isinstance(m, nn.RNNBase) for m in model.modules()):
            stack.enter_context(torch.backends.cudnn.flags(enabled=False))
        yield


@contextmanager
def twice_differentiable() -> Iterator[None]:
    """Run fused operations by their plain formulas: attention has no second derivative, weight normalisation a wrong one."""
    with sdpa_kernel(SDPBackend.MATH), _PlainWeightNorm():
        yield


class _PlainWeightNorm(TorchFunctionMode):
    """w = g v / ||v||: what PyTorch's own operation says is its second derivative is not even symmetric (seen in 2.13, on a CPU)."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch._weight_norm:
            return _weight_norm(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    return v * (g / torch.norm_except_dim(v, 2, dim))


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the module inside DataParallel, DistributedDataParallel and torch.compile wrappers."""
    while True:
        if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            model = model.module
        elif isinstance(getattr(model, "_orig_mod", None), nn.Module):
            model = model._orig_mod  # type: ignore[assignment]
        else:
            return model


def skeleton_of(model: nn.Module, batch_norm: str, replace: Mapping[int, Tensor] | None = None) -> nn.Module:
    """Copy a module's structure; parameters and buffers stay shared, or are replaced by id. The copy is in evaluation mode."""
    memo: dict[int, Any] = {}
    for module in model.modules():
        own = [*module._parameters.values(), *module._buffers.values()]
        memo.update({id(t): t for t in own if t is not None})
        # A network that keeps activations of its last call, in lists too: part of a graph, they cannot be copied as they are.
        memo.update({id(v): v.detach() for v in tree_leaves(vars(module)) if isinstance(v, Tensor) and not v.is_leaf})
    memo.update(replace or {})
    try:
        skeleton = copy.deepcopy(model, memo)
    except Exception as error:
        raise TypeError(f"model cannot be copied ({type(error).__name__}: {error}); remove what cannot, or give it __deepcopy__") from error
    skeleton.eval()
    if batch_norm == "batch":
        for module in skeleton.modules():
            if isinstance(module, _NORMALISATIONS):
                module.track_running_stats = False
                module.running_mean = module.running_var = module.num_batches_tracked = None
    return skeleton


def written_buffers(model: nn.Module) -> set[str]:
    """Return the names of the buffers that a forward pass in evaluation mode may write: all but those of PyTorch's own modules."""
    own = [m for m in model.modules() if not type(m).__module__.startswith("torch.nn.")]
    theirs = {id(b) for m in own for b in m._buffers.values() if b is not None}
    return {name for name, b in model.named_buffers() if id(b) in theirs}


def form_of(loss: Callable[..., Tensor], batch: Any) -> Literal["outputs", "model"]:
    """Tell `loss(model, batch)` from `loss(outputs, target)`: by what it calls its arguments, else by the batch."""
    if not is_pair(batch):
        if isinstance(batch, Tensor) and (getattr(loss, "__module__", None) or "").startswith("torch.nn."):
            raise TypeError(
                "loss(outputs, target) needs batches that are pairs (inputs, target), and the first one is a single tensor; "
                "a list is a list of batches: give the tuple (X, Y) instead of [X, Y]"
            )
        return "model"
    function = loss.forward if isinstance(loss, nn.Module) else loss
    try:
        names = [p.name.lower() for p in inspect.signature(function).parameters.values()]
    except (TypeError, ValueError):
        names = []
    by_name = names[:1] and names[0] in {"model", "net", "network", "module"}
    return "model" if by_name or "batch" in names[1:2] else "outputs"
