"""A network as a graph of operations on its inputs, whatever these are, with what it changes in place written down."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F

from landscape.sharpness.shard_calls import IN_PLACE, SHAPES, NotByLayers


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


class Tracer(fx.Tracer):
    """Writes down what a network does, `x += y` as what it is."""

    def proxy(self, node: fx.Node) -> fx.Proxy:
        """Return what stands for the result of an operation."""
        return _Value(node, self)


def refuse_overwritten(nodes: list[fx.Node], modules: dict[str, nn.Module]) -> None:
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
    in_place = node.target in IN_PLACE or node.kwargs.get("inplace", False)
    return node.op == "call_function" and bool(in_place)


def _may_be_a_view(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    if node.op == "call_module":
        return isinstance(modules[str(node.target)], nn.Identity | nn.Flatten | nn.modules.dropout._DropoutNd)
    return node.target in (*SHAPES, "contiguous", torch.flatten, F.dropout)
