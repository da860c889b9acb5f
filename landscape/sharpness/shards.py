"""A function of one shard's loss, evaluated for every shard: one after the other, or many at once.

A measure is written once, as a function of a `ShardLoss` that gives loss and gradient at any weights. It must decide with tensors
(`torch.where`, no `if` on values): then the same code runs in the loop and inside `torch.func.vmap`. Which of the two is faster depends on
model and shard; it is tried on the first shards.
"""

from __future__ import annotations

import time
import warnings
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, islice
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from landscape.batches import count_examples, seed_everything, seed_torch
from landscape.objective import Held, Objective, Parameters, differentiable, twice_differentiable
from landscape.progress import progress as progress_bar
from landscape.results.types import Array
from landscape.sharpness.over_ranks import Share
from landscape.stateless import recurrent_gradients, undisturbed

# Bytes that shards computed together may take beyond the model. Much larger chunks leave a CPU's caches and gain nothing.
_MEMORY_BUDGET = {"cpu": 2**28, "cuda": 2**32}
# So many shards pay for finding out whether computing them together is faster; with fewer the loop is over before.
_WORTH_A_TRIAL = 96
_found: weakref.WeakKeyDictionary[Objective, dict[Any, int]] = weakref.WeakKeyDictionary()  # chunks that trials ended with
_TRIAL = 4, 16  # shards tried, at least and at most

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


Measure = Callable[[ShardLoss], Tensor]  # (columns,): the same number of columns for every shard


@dataclass(frozen=True)
class Work:
    """How shards are evaluated; nothing here changes a number beyond rounding."""

    vectorize: bool | None = None  # many shards at once, or the loop; None tries both on the first shards
    memory_budget: int | None = None  # bytes for shards computed at once
    progress: bool | None = None
    ranks: bool = False  # deal the shards out over the processes of torch.distributed
    label: str = "sharpness"
    passes: int = 1  # gradients per shard, about
    copies: int = 4  # of the parameters that one shard holds at a time


def over_shards(
    objective: Objective,
    m: int,
    measure: Measure,
    work: Work,
    *,
    evaluate: Evaluate | None = None,
    decorate: Callable[[Any, int], Any] | None = None,
) -> tuple[Array, Array]:
    """Return what a measure gives for every shard (shards, columns), and the weights of the shards (shards,).

    Args:
        objective: whose loss.
        m: examples per shard.
        measure: of one shard.
        work: how.
        evaluate: the mean loss of a batch at some parameters; None for the objective's.
        decorate: (shard, its number) -> what `evaluate` gets for a batch.

    Returns:
        Values and weights, in data order.
    """
    with undisturbed(objective.device), recurrent_gradients(objective.model, objective.device):
        seed_everything(0, objective.device)
        return _Shards(objective, m, measure, work, evaluate or objective.batch_loss, decorate).run()


def check_batch_statistics(objective: Objective, m: int) -> None:
    """Refuse shards of one example where batch norm takes its statistics from the shard."""
    norms = [module for module in objective.model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    n = objective.examples
    if objective.batch_norm == "batch" and norms and (m == 1 or n % m == 1):
        raise ValueError(
            f"m = {m} on {n} examples makes a shard of one example, and one example has no batch statistics: "
            "choose another m, or batch_norm='eval' in the objective"
        )


def cut(batch: Any, size: int) -> list[Any]:
    """Cut a batch into pieces of at most so many examples."""
    count = count_examples(batch)
    if size < 1 or count <= size:
        return [batch]
    return [tree_map(lambda t, s=s: t[s : s + size] if isinstance(t, Tensor) and t.ndim else t, batch) for s in range(0, count, size)]


class _Plain:
    """The loss of a shard by autograd, in pieces of the objective's batch size: a shard may be all the data."""

    def __init__(self, shards: _Shards, shard: Any, index: int) -> None:
        self._shards, self._index, self.weights = shards, index, shards.origin
        # With batch statistics the shard is the batch.
        whole = shards.objective.batch_norm == "batch"
        self._pieces = [shard] if whole else cut(shard, shards.objective.batches.batch_size)

    def value(self, weights: Sequence[Tensor]) -> Tensor:
        params = dict(zip(self._shards.objective.names, weights, strict=True))
        with torch.no_grad():
            return self._mean([self._evaluated(params, i) for i in range(len(self._pieces))])

    def gradient(self, weights: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        leaves = [differentiable(w) for w in weights]
        params = dict(zip(self._shards.objective.names, leaves, strict=True))
        values, total = [], [torch.zeros_like(w) for w in weights]
        shares = self._shares()
        for i, share in enumerate(shares):
            with torch.enable_grad():
                value = self._evaluated(params, i)
                grads = torch.autograd.grad(value, leaves, allow_unused=True)
            values.append(value.detach())
            if len(shares) == 1:
                return values[0], [z if g is None else g for g, z in zip(grads, total, strict=True)]
            used = [(t, g) for t, g in zip(total, grads, strict=True) if g is not None]
            torch._foreach_add_([t for t, _ in used], [g for _, g in used], alpha=share)
        return self._mean(values), total

    def _evaluated(self, params: Parameters, piece: int) -> Tensor:
        # A model that draws draws the same wherever it is evaluated.
        seed_torch(self._index + 1_000_003 * piece, self._shards.objective.device)
        return self._shards.evaluate(params, self._pieces[piece], self._shards.held)

    def _shares(self) -> list[float]:
        if len(self._pieces) == 1:
            return [1.0]
        weights = [self._shards.objective.weight(piece) for piece in self._pieces]
        return [w / sum(weights) for w in weights]

    def _mean(self, values: list[Tensor]) -> Tensor:
        if len(values) == 1:
            return values[0]
        return (torch.stack(values).double() * torch.tensor(self._shares(), dtype=torch.float64, device=values[0].device)).sum()


class _Transformed:
    """The loss of a shard inside `torch.func` transforms."""

    def __init__(self, shards: _Shards, shard: Any) -> None:
        self._shards, self._shard, self.weights = shards, shard, shards.origin

    def value(self, weights: Sequence[Tensor]) -> Tensor:
        return self._loss(dict(zip(self._shards.objective.names, weights, strict=True)))

    def gradient(self, weights: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        grads, value = torch.func.grad_and_value(self._loss)(dict(zip(self._shards.objective.names, weights, strict=True)))
        return value, [grads[name] for name in self._shards.objective.names]

    def _loss(self, params: Parameters) -> Tensor:
        return self._shards.evaluate(params, self._shard, self._shards.held)


class _Shards:
    """Values of shards, one by one or many at once."""

    def __init__(self, objective: Objective, m: int, measure: Measure, work: Work, evaluate: Evaluate, decorate: Any) -> None:
        self.objective, self.evaluate, self.held = objective, evaluate, objective.held()
        params = objective.parameters
        self.origin = [params[name] for name in objective.names]
        self._m, self._measure, self._work, self._decorate = m, measure, work, decorate
        self._budget = work.memory_budget or _MEMORY_BUDGET["cuda" if objective.device.type == "cuda" else "cpu"]
        self._share = Share(work.ranks)

    def run(self) -> tuple[Array, Array]:
        count = -(-self.objective.examples // self._m)
        with (
            self._share.gathering(count, self.objective.device) as gathered,
            progress_bar(len(range(count)[self._share.mine]), self._work.label, "shard", show=self._work.progress) as bar,
            closing(self.objective.batches.shards(self._m)) as shards,
        ):
            mine = islice(enumerate(shards), self._share.mine.start, None, self._share.mine.step)
            full = self.objective.examples // self._m
            first = list(islice(mine, max(_TRIAL[0], min(_TRIAL[1], full // 24))))
            chunk, results = self._plan(first)
            bar.update(len(results))
            weights = [self.objective.weight(shard) for _, shard in first[: len(results)]]
            if chunk > 1 and self._can_be_viewed(first[0][1]):
                self._views(chunk, results, weights, bar)
            else:
                for group in _groups(chain(first[len(results) :], mine), chunk, self._m):
                    together = 1 < len(group) and (len(group) == chunk or len(group) >= _TRIAL[0])
                    results += [self._together(group)] if together else [self._one(shard, i) for i, shard in group]
                    weights += [self.objective.weight(shard) for _, shard in group]
                    bar.update(len(group))
            gathered.append(_rows(results).cpu().numpy(), np.array(weights))
        return gathered.values, gathered.weights

    def _can_be_viewed(self, shard: Any) -> bool:
        """Tell whether many shards are a reshaped batch: cutting and stacking hundreds takes as long as computing them."""
        plain = self._decorate is None and self._share.mine.step == 1 and self.objective.weighs_examples
        flat = tree_flatten(shard)[0]
        return plain and self.objective.batches.in_memory and all(isinstance(leaf, Tensor) and leaf.ndim > 0 for leaf in flat)

    def _views(self, chunk: int, results: list[Tensor], weights: list[float], bar: Any) -> None:
        """Compute all shards, many at once; what is left over at the end is shorter, or few."""
        with closing(self.objective.batches.shards(chunk * self._m)) as batches:
            for batch in batches:
                flat, spec = tree_flatten(batch)
                count = len(flat[0]) // self._m
                full = count * self._m
                if count:
                    stacked = [leaf[:full].reshape(count, self._m, *leaf.shape[1:]) for leaf in flat]
                    results.append(self._mapped(stacked, partial(tree_unflatten, treespec=spec)))
                    weights += [float(self._m)] * count
                if len(flat[0]) > full:
                    rest = tree_unflatten([leaf[full:] for leaf in flat], spec)
                    results.append(self._one(rest, len(weights)))
                    weights.append(self.objective.weight(rest))
                bar.update(count + (len(flat[0]) > full))

    def _mapped(self, stacked: list[Tensor], shard_of: Callable[[list[Tensor]], Any]) -> Tensor:
        with torch.no_grad(), _plain_attention():
            return torch.func.vmap(lambda parts: self._measure(_Transformed(self, shard_of(parts))).reshape(-1))(stacked)

    def _given(self, shard: Any, index: int) -> Any:
        return shard if self._decorate is None else self._decorate(shard, index)

    def _one(self, shard: Any, index: int) -> Tensor:
        with torch.no_grad():
            return self._measure(_Plain(self, self._given(shard, index), index)).reshape(1, -1)

    def _together(self, group: Sequence[tuple[int, Any]]) -> Tensor:
        shards = [self._given(shard, i) for i, shard in group]
        flat, spec = tree_flatten(shards[0])
        columns = list(zip(*(tree_flatten(shard)[0] for shard in shards), strict=True))
        varies = [isinstance(leaf, Tensor) and leaf.ndim > 0 for leaf in flat]
        if any(not v and any(not _same(leaf, column[0]) for leaf in column) for v, column in zip(varies, columns, strict=True)):
            raise _NotVectorizable("batches hold values that differ from shard to shard and are no tensors with examples")
        stacked = [torch.stack(column) for v, column in zip(varies, columns, strict=True) if v]

        def shard_of(parts: list[Tensor]) -> Any:
            given = iter(parts)
            return tree_unflatten([next(given) if v else leaf for v, leaf in zip(varies, flat, strict=True)], spec)

        return self._mapped(stacked, shard_of)

    # ---- how many at once -------------------------------------------------------------------------------------------

    def _plan(self, first: Sequence[tuple[int, Any]]) -> tuple[int, list[Tensor]]:
        """Return how many shards to compute at once, 1 for the loop, and what the loop has computed on the first shards already."""
        full = self.objective.examples // self._m // self._share.mine.step
        vectorize = self._work.vectorize
        if vectorize is False or full < 2 or not first or (vectorize is None and full < _WORTH_A_TRIAL):
            return 1, []
        # One trial for each kind of work on an objective.
        known = _found.setdefault(self.objective, {})
        work = replace(self._work, progress=None), self._m, full, torch.get_num_threads()
        if vectorize is None and work in known:
            return known[work], []
        chunk = max(1, min(self._budget // self._bytes(first[0]), full))
        results: list[Tensor] = []
        chunk = -(-full // -(-full // chunk))  # as many at a time as makes the groups alike
        if not vectorize and chunk > 1:
            chunk, results = self._trial(first[:chunk], chunk)
        known[work] = chunk
        return chunk, results

    def _bytes(self, shard: tuple[int, Any]) -> int:
        """Estimate the memory that a shard takes when computed with others: gradient, climb and activations."""
        saved: dict[int, int] = {}
        constant = {w.untyped_storage().data_ptr() for w in self.origin}

        def note(tensor: Tensor) -> Tensor:
            if tensor.untyped_storage().data_ptr() not in constant:
                saved[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            _Plain(self, self._given(shard[1], shard[0]), 0).gradient(self.origin)
        parameters = sum(w.numel() * w.element_size() for w in self.origin)
        return self._work.copies * parameters + 2 * sum(saved.values()) + 1

    def _trial(self, first: Sequence[tuple[int, Any]], chunk: int) -> tuple[int, list[Tensor]]:
        """Compute the first shards both ways: together only if the numbers are the same and it is faster."""
        alone, slow = self._timed(lambda: [self._one(shard, i) for i, shard in first])
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")  # an operation without a batching rule warns, and is slow
                self._together(first[:2])  # the first call of a transform is slow
                together, fast = min((self._timed(lambda: [self._together(first)]) for _ in range(2)), key=lambda found: found[1])
        except Exception:  # whatever it was: if it is the model's own, the loop meets it too and says so
            return 1, alone
        tolerance = 1e-4 if self.objective.dtype.itemsize < 8 else 1e-9
        alike = torch.allclose(_rows(together), _rows(alone), tolerance, tolerance, equal_nan=True)
        return (chunk, []) if alike and fast < slow else (1, alone)

    def _timed(self, work: Callable[[], list[Tensor]]) -> tuple[list[Tensor], float]:
        started = time.perf_counter()
        result = work()
        if self.objective.device.type == "cuda":
            torch.cuda.synchronize(self.objective.device)
        return result, time.perf_counter() - started


def _rows(results: list[Tensor]) -> Tensor:
    return torch.cat([rows.double() for rows in results]) if results else torch.zeros(0, 0, dtype=torch.float64)


@contextmanager
def _plain_attention() -> Iterator[None]:
    """Keep attention and transformer layers from their fused kernels, which have no batching rule."""
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with twice_differentiable():
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)


class _NotVectorizable(TypeError):
    """Shards that cannot be stacked."""


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return isinstance(a, Tensor) and isinstance(b, Tensor) and torch.equal(a, b)
    return bool(a == b)


def _groups(shards: Iterator[tuple[int, Any]], size: int, m: int) -> Iterator[list[tuple[int, Any]]]:
    """Yield lists of `size` shards of m examples each; a shorter shard comes in a list of its own."""
    held: list[tuple[int, Any]] = []
    for index, shard in shards:
        if count_examples(shard) != m and held:
            yield held
            held = []
        held.append((index, shard))
        if len(held) == size:
            yield held
            held = []
    if held:
        yield held
