r"""The losses of many shards at weights of their own, and their gradients, layer by layer: the same numbers as a loop, without its calls.

A network whose parameters sit in linear layers, convolutions and normalisations, and whose other operations take every example for itself,
is run once for S shards of m examples. Its weights are stacks W (S, out, in), one for each shard, or one for all (stride 0 along S):

    y = x W_s' + b_s        d/dW_s = sum over the examples of the shard of g x'        (one product of matrices per shard)

Convolutions are the same with S times as many groups. Batch normalisation with running statistics, y -> c y + t, disappears into the
convolution before it: with G the gradient by the kernel that is then convolved with, c W, those by W, c and t are c G, <G, W> and sum g.

Which networks these are is read from the traced graph (`torch.fx`, for every input), not guessed; in any other one `layers_of` finds none.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from landscape.batches import untouched_random_state
from landscape.objective import Objective
from landscape.sharpness.shard_calls import BATCH_NORMS, CONVOLUTIONS, NotByLayers, function_call, is_fixed, method_call, module_call
from landscape.sharpness.traced_graph import Tracer, refuse_overwritten
from landscape.stateless import skeleton_of


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
            graph = Tracer().trace(skeleton_of(model, "eval", {id(b): b.detach().clone() for b in model.buffers()}))
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
    refuse_overwritten(nodes, modules)
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
            call = module_call(modules[str(node.target)], None if after is None else modules[str(after.target)], names)
        elif node.op == "call_function":
            call = function_call(node.target)
        elif node.op == "call_method":
            call = method_call(str(node.target))
        else:
            raise NotByLayers(f"{node.op} {node.target}")
        steps.append(_Step(node.name, call, args, kwargs))
    return Layers(steps, inputs[0].name, outputs[0].args[0].name, loss)


def _norm_behind(node: fx.Node, modules: dict[str, nn.Module]) -> fx.Node | None:
    """Return the batch normalisation that alone takes a convolution's outputs."""
    if node.op != "call_module" or type(modules[str(node.target)]) not in CONVOLUTIONS or len(node.users) != 1:
        return None
    (user,) = node.users
    fits = user.op == "call_module" and type(modules[str(user.target)]) in BATCH_NORMS and is_fixed(modules[str(user.target)])
    return user if fits else None


def _has_hooks(model: nn.Module) -> bool:
    return any(
        getattr(m, f"_{name}")
        for m in model.modules()
        for name in ("forward_hooks", "forward_pre_hooks", "backward_hooks", "backward_pre_hooks")
    )
