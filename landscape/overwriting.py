"""The same network with fewer temporary tensors: what nothing else reads is overwritten. For passes without derivatives only.

Much of the time of a small convolutional network on a CPU goes into memory. Where a ReLU, or a sum, alone reads what a layer has just
made, it is written there instead of into fresh memory, with the same bits.
"""

from __future__ import annotations

import operator
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from landscape.batches import random_state, untouched_random_state
from landscape.fastforms import REWRITTEN, passes_through

_MODULES: dict[type[nn.Module], Callable[..., Tensor]] = {
    nn.ReLU: F.relu, nn.ReLU6: F.relu6, nn.SiLU: F.silu, nn.Mish: F.mish, nn.Hardswish: F.hardswish, nn.SELU: F.selu
}  # fmt: skip
_FUNCTIONS: dict[Any, Callable[..., Tensor]] = {f: f for f in _MODULES.values()} | {torch.relu: F.relu}
_METHODS: dict[Any, Callable[..., Tensor]] = {"relu": F.relu}
_SUMS = (operator.add, torch.add)
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_MAKERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, *REWRITTEN)


def overwriting(skeleton: nn.Module) -> nn.Module | None:
    """Return a network of the same modules that overwrites what nothing else reads, or None where nothing is to be gained.

    Args:
        skeleton: a copy of a model in evaluation mode.

    Returns:
        The network; it computes the same, and must not be differentiated.
    """
    if any(getattr(m, name) for m in skeleton.modules() for name in _HOOKS):  # they run in every pass, and may read what we overwrite
        return None
    try:
        with warnings.catch_warnings(), untouched_random_state(torch.device("cpu")):
            warnings.simplefilter("ignore")
            before = random_state()
            graph = _Tracer().trace(skeleton)
            drawn = random_state() != before
    except Exception:  # whatever a model raises that meets no tensors
        return None
    # What is drawn while tracing, or made of no input, would be the same in every pass.
    if drawn or any(node.op == "get_attr" and str(node.target).startswith("_tensor_constant") for node in graph.nodes):
        return None
    modules = dict(skeleton.named_modules())
    changed = 0
    for node in list(graph.nodes):
        function = _function(node, modules)
        if function is not None and _is_free(node.args[0], modules):
            changed += 1
            with graph.inserting_before(node):
                new = graph.call_function(function, (node.args[0],), {"inplace": True})
            node.replace_all_uses_with(new)
            graph.erase_node(node)
        elif _is_sum(node):
            for a, b in (node.args, node.args[::-1]):
                if _is_free(a, modules):
                    changed += 1
                    with graph.inserting_before(node):
                        new = graph.call_function(operator.iadd, (a, b))
                    node.replace_all_uses_with(new)
                    graph.erase_node(node)
                    break
    if not changed:
        return None
    graph.lint()
    return fx.GraphModule(skeleton, graph)


class _Proxy(fx.Proxy):
    """A tensor while tracing: a += b writes into a, which plain tracing takes for a sum of its own."""

    def __iadd__(self, other: Any) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", operator.iadd, (self, other), {})

    def __isub__(self, other: Any) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", operator.isub, (self, other), {})

    def __imul__(self, other: Any) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", operator.imul, (self, other), {})

    def __itruediv__(self, other: Any) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", operator.itruediv, (self, other), {})


class _Tracer(fx.Tracer):
    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return type(m) in REWRITTEN or super().is_leaf_module(m, module_qualified_name)


def _function(node: fx.Node, modules: dict[str, nn.Module]) -> Callable[..., Tensor] | None:
    """Return the function of single numbers that a node is, if there is one that overwrites."""
    if len(node.args) != 1 or set(node.kwargs) - {"inplace"}:
        return None
    if node.op == "call_module":
        return _MODULES.get(type(modules[str(node.target)]))
    return (_FUNCTIONS if node.op == "call_function" else _METHODS if node.op == "call_method" else {}).get(node.target)


def _is_sum(node: fx.Node) -> bool:
    called = (node.op == "call_function" and node.target in _SUMS) or (node.op == "call_method" and node.target == "add")
    return called and len(node.args) == 2 and not node.kwargs and all(isinstance(a, fx.Node) for a in node.args)


def _is_free(node: Any, modules: dict[str, nn.Module]) -> bool:
    """Tell whether a tensor was made for one reader, and is not a view of another."""
    if not isinstance(node, fx.Node) or len(node.users) != 1:
        return False
    if node.op == "call_module":
        module = modules[str(node.target)]
        return _is_free(node.args[0], modules) if passes_through(module) else type(module) in _MAKERS
    if node.op != "call_function":
        return False
    # What was overwritten, by us or by the model itself, is the tensor that it was written into: that must have had no other reader.
    if node.target is operator.iadd or node.kwargs.get("inplace") is True:
        return _is_free(node.args[0], modules)
    return node.target in _SUMS
