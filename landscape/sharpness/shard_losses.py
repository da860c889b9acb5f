"""The loss of one shard as a function of the weights, in three ways: by autograd, inside `vmap`, and layer by layer for all shards."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from landscape.batches import count_examples, is_pair, seed_torch
from landscape.fastforms import Form
from landscape.objective import Held, Objective, Parameters, differentiable
from landscape.sharpness.layerwise import Layers
from landscape.sharpness.shard_calls import NotByLayers

Evaluate = Callable[[Parameters, Any, Held], Tensor]  # the mean loss of a batch


class ShardLoss(Protocol):
    """The loss of one shard as a function of the weights."""

    @property
    def weights(self) -> list[Tensor]:
        """The model's own weights, detached."""
        ...

    def value(self, weights: Sequence[Tensor]) -> Tensor:
        """Return the loss (0-d)."""
        ...

    def gradient(self, weights: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Return the loss (0-d) and its gradient."""
        ...


def cut(batch: Any, size: int) -> list[Any]:
    """Cut a batch into pieces of at most so many examples."""
    count = count_examples(batch)
    if size < 1 or count <= size:
        return [batch]
    return [tree_map(lambda t, s=s: t[s : s + size] if isinstance(t, Tensor) and t.ndim else t, batch) for s in range(0, count, size)]


class Called:
    """The mean loss of a batch at some weights, in plain calls: by the measure's own function, or by the objective's model.

    Args:
        objective: the loss.
        evaluate: the measure's own function; None for the objective's loss.
        held: what does not vary.
        often: whether many calls pay for a copy of the model's structure that reads weights in place.
    """

    def __init__(self, objective: Objective, evaluate: Evaluate | None, held: Held, often: bool) -> None:
        self._objective, self._evaluate, self._held, self._often = objective, evaluate, held, often
        self._form: Form = "plain"
        self._in_place: Callable[[Any, int], tuple[Tensor, Any]] | None = None
        self._leaves: list[Tensor] = []

    def take(self, form: Form) -> None:
        """Run the model in this form from now on; only without an own function."""
        assert self._evaluate is None
        self._form, self._in_place = form, None

    def __call__(self, weights: Sequence[Tensor], batch: Any, seed: int, leaves: bool = False) -> tuple[Tensor, list[Tensor]]:
        """Return the loss, and where asked for the leaves (copies of the weights) that it can be differentiated by."""
        if self._evaluate is None and self._often:
            if self._in_place is None:
                self._leaves = [differentiable(w.clone()) for w in weights]
                params = dict(zip(self._objective.names, self._leaves, strict=True))
                self._in_place = self._objective.bound(params, self._form, self._held)
            with torch.no_grad():
                torch._foreach_copy_(self._leaves, list(weights))
            return self._in_place(batch, seed)[0], self._leaves
        given = [differentiable(w) for w in weights] if leaves else list(weights)
        params = dict(zip(self._objective.names, given, strict=True))
        # A model that draws draws the same wherever it is evaluated.
        seed_torch(seed, self._objective.device)
        if self._evaluate is not None:
            return self._evaluate(params, batch, self._held), given
        return self._objective.batch_loss(params, batch, self._held, self._form), given


class Plain:
    """The loss of a shard by autograd, in pieces of the objective's batch size: a shard may be all the data.

    Args:
        objective: the loss.
        call: the loss of a batch.
        shard: the data, or what the measure's own function takes for them.
        index: the shard's number.
        weights: the model's own.
    """

    def __init__(self, objective: Objective, call: Called, shard: Any, index: int, weights: list[Tensor]) -> None:
        self._objective, self._call, self._index, self.weights = objective, call, index, weights
        # With batch statistics the shard is the batch.
        self._pieces = [shard] if objective.batch_norm == "batch" else cut(shard, objective.batches.batch_size)

    def value(self, weights: Sequence[Tensor]) -> Tensor:
        """Return the loss (0-d)."""
        with torch.no_grad():
            return self._mean([self._call(weights, piece, self._seed(i))[0] for i, piece in enumerate(self._pieces)])

    def gradient(self, weights: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Return the loss (0-d) and its gradient."""
        values, total = [], [torch.zeros_like(w) for w in weights] if len(self._pieces) > 1 else []
        for i, (piece, share) in enumerate(zip(self._pieces, self._shares(), strict=True)):
            with torch.enable_grad():
                value, leaves = self._call(weights, piece, self._seed(i), leaves=True)
                grads = torch.autograd.grad(value, leaves, allow_unused=True)
            values.append(value.detach())
            if not total:
                return values[0], [torch.zeros_like(w) if g is None else g for g, w in zip(grads, weights, strict=True)]
            used = [(t, g) for t, g in zip(total, grads, strict=True) if g is not None]
            torch._foreach_add_([t for t, _ in used], [g for _, g in used], alpha=share)
        return self._mean(values), total

    def _seed(self, piece: int) -> int:
        return self._index + 1_000_003 * piece

    def _shares(self) -> list[float]:
        if len(self._pieces) == 1:
            return [1.0]
        weights = [self._objective.weight(piece) for piece in self._pieces]
        return [w / sum(weights) for w in weights]

    def _mean(self, values: list[Tensor]) -> Tensor:
        if len(values) == 1:
            return values[0]
        return (torch.stack(values).double() * torch.tensor(self._shares(), dtype=torch.float64, device=values[0].device)).sum()


class Transformed:
    """The loss of a shard inside `torch.func` transforms.

    Args:
        objective: the loss.
        evaluate: the measure's own function; None for the objective's loss.
        held: what does not vary.
        shard: the data.
        weights: the model's own.
    """

    def __init__(self, objective: Objective, evaluate: Evaluate | None, held: Held, shard: Any, weights: list[Tensor]) -> None:
        self._names, self._shard, self.weights, self._held = objective.names, shard, weights, held
        self._evaluate = objective.batch_loss if evaluate is None else evaluate

    def value(self, weights: Sequence[Tensor]) -> Tensor:
        """Return the loss (0-d)."""
        return self._loss(dict(zip(self._names, weights, strict=True)))

    def gradient(self, weights: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Return the loss (0-d) and its gradient."""
        grads, value = torch.func.grad_and_value(self._loss)(dict(zip(self._names, weights, strict=True)))
        return value, [grads[name] for name in self._names]

    def _loss(self, params: Parameters) -> Tensor:
        return self._evaluate(params, self._shard, self._held)


class Stacks:
    """The losses of S shards and their gradients, layer by layer, from stacks of weights.

    Args:
        objective: the loss.
        layers: its network.
        held: what does not vary.
    """

    def __init__(self, objective: Objective, layers: Layers, held: Held) -> None:
        self._layers, self._names = layers, objective.names
        self._shapes = [t.shape for t in objective.parameters.values()]
        parameters = {name for name, _ in objective.caller().model.named_parameters()} if held.fixed else set()
        self._frozen = {name: t for name, t in held.fixed.items() if name in parameters}
        self._buffers = {name: t for name, t in held.fixed.items() if name not in parameters}

    def losses(self, weights: Sequence[Tensor], x: Tensor, y: Tensor) -> Tensor:
        """Return the losses (S,) of shards x (S, m, ...), y (S, m) at weights (S, ...)."""
        frozen = {name: t.expand(len(x), *t.shape) for name, t in self._frozen.items()}
        return self._layers.losses(self._buffers | frozen | dict(zip(self._names, weights, strict=True)), x, y)

    def gradients(self, weights: Sequence[Tensor], x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        """Return the losses (S,) and their gradients (S, ...)."""
        with torch.enable_grad():
            leaves = [differentiable(w) for w in weights]
            values = self.losses(leaves, x, y)
            grads = torch.autograd.grad(values.sum(), leaves, materialize_grads=True)
        return values.detach(), *grads

    def losses_joined(self, weights: Sequence[Tensor], x: Tensor, y: Tensor) -> Tensor:
        """Return `losses` at weights in one tensor (S, n)."""
        return self.losses(self._parts(weights[0]), x, y)

    def gradients_joined(self, weights: Sequence[Tensor], x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        """Return `gradients` in one tensor (S, n)."""
        values, *grads = self.gradients(self._parts(weights[0]), x, y)
        return values, torch.cat([g.flatten(1) for g in grads], 1)

    def _parts(self, joined: Tensor) -> list[Tensor]:
        parts = torch.split(joined, [shape.numel() for shape in self._shapes], 1)
        return [part.unflatten(1, shape) if len(shape) != 1 else part for part, shape in zip(parts, self._shapes, strict=True)]


class JoinedStacks:
    """The losses of S shards, with the weights of each in one vector.

    Args:
        stacks: computes.
        shards: (inputs, targets), (S, m, ...) each.
        weights: the model's own.
    """

    def __init__(self, stacks: Stacks, shards: Any, weights: list[Tensor]) -> None:
        self._x, self._y = _pair(shards)
        self._stacks = stacks
        self.weights = torch.cat([w.reshape(-1) for w in weights])  # (n,)

    def values(self, weights: Tensor) -> Tensor:
        """Return the losses (S,) at weights (S, n)."""
        return self._stacks.losses_joined([weights], self._x, self._y)

    def gradients(self) -> tuple[Tensor, Tensor]:
        """Return the losses (S,) and their gradients (S, n) at the model's own weights."""
        values, gradients = self._stacks.gradients_joined([self.weights.expand(len(self._x), -1)], self._x, self._y)
        return values, gradients


class Layered:
    """The loss of a shard inside `torch.func.vmap`, which `Stacks` computes for all shards.

    Args:
        stacks: computes.
        shard: (inputs, targets).
        weights: the model's own.
        joined: give weights and gradients as one vector.

    Raises:
        NotByLayers: the shard is something else than two tensors.
    """

    def __init__(self, stacks: Stacks, shard: Any, weights: list[Tensor], joined: bool) -> None:
        self._x, self._y = _pair(shard)
        self.weights = [torch.cat([w.reshape(-1) for w in weights])] if joined else weights
        self._losses = stacks.losses_joined if joined else stacks.losses
        self._gradients = stacks.gradients_joined if joined else stacks.gradients

    def value(self, weights: Sequence[Tensor]) -> Tensor:
        """Return the loss (0-d)."""
        return _Stacked.apply(self._losses, self._x, self._y, *weights)

    def gradient(self, weights: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Return the loss (0-d) and its gradient."""
        value, *grads = _Stacked.apply(self._gradients, self._x, self._y, *weights)
        return value, grads


def _pair(shard: Any) -> tuple[Tensor, Tensor]:
    if not is_pair(shard) or not isinstance(shard[0], Tensor):
        raise NotByLayers("batches that are no pairs of tensors")
    return shard[0], shard[1]


class _Stacked(torch.autograd.Function):
    """Hands what `vmap` runs over to a function of stacks."""

    @staticmethod
    def forward(function: Callable[..., Any], x: Tensor, y: Tensor, *weights: Tensor) -> Any:
        raise AssertionError("outside of vmap a shard is computed by itself")

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def vmap(info: Any, in_dims: Any, function: Callable[..., Any], x: Tensor, y: Tensor, *weights: Tensor) -> tuple[Any, Any]:
        x, y, *stacks = (
            t.expand(info.batch_size, *t.shape) if dim is None else t.movedim(dim, 0)
            for t, dim in zip((x, y, *weights), in_dims[1:], strict=True)
        )
        found = function(stacks, x, y)
        return found, (0,) * len(found) if isinstance(found, tuple) else 0
