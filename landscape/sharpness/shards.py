"""A function of one shard's loss, evaluated for every shard: one after the other, or many at once.

A measure is written once, as a function of a `ShardLoss` that gives loss and gradient at any weights. It must decide with tensors
(`torch.where`, no `if` on values): then the same code runs in the loop and inside `torch.func.vmap`. There, networks whose layers are known
run layer by layer on stacks of weights (`layerwise`), others through the transforms. Which way is fastest depends on model and shard; it is
tried on a few examples.
"""

from __future__ import annotations

import math
import time
import warnings
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, islice
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from landscape.batches import count_examples, seed_everything
from landscape.fastforms import Form, candidates
from landscape.objective import Objective, twice_differentiable
from landscape.progress import progress as progress_bar
from landscape.results.types import Array
from landscape.sharpness.layerwise import Layers, layers_of
from landscape.sharpness.over_ranks import Share
from landscape.sharpness.shard_losses import Called, Evaluate, JoinedStacks, Layered, Plain, ShardLoss, Stacks, Transformed, cut
from landscape.sharpness.stacking import groups, stack
from landscape.stateless import recurrent_gradients, undisturbed

# Bytes that shards computed together may take beyond the model. Much larger chunks leave a CPU's caches and gain nothing.
_MEMORY_BUDGET = {"cpu": 2**28, "cuda": 2**32}
# So many shards pay for finding out whether computing them together is faster, through transforms or layer by layer ...
_WORTH_A_TRIAL = {"vmap": 96, "layers": 24}
_AT_ONCE = 0.1  # ... or whatever takes less than so many seconds.
_TRIAL = 2, 16  # shards tried, at least and at most
_TRIED = {"vmap": 24, "layers": 8}  # one shard of so many: a few more where the first call of a way is not slow
_QUICK_TRIAL = 64  # where they are quick
_RUNS, _RUNS_WITHIN = 5, 0.02  # of what is timed: not more than so many, nor begun later than so many seconds
_OFTEN = 8  # shards that pay for a copy of the model that reads its weights in place
_layers: weakref.WeakKeyDictionary[Objective, Layers | None] = weakref.WeakKeyDictionary()

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
    joined: bool = False  # the measure does not mind all weights in one tensor: layer by layer that is fewer operations
    stacked: Callable[[JoinedStacks], Tensor] | None = None  # the measure for all shards in one go, (S, columns), without vmap

    def __post_init__(self) -> None:
        """Refuse what cannot be."""
        if self.vectorize not in (None, True, False):
            raise TypeError(f"vectorize must be True, False or None, got {self.vectorize!r}")
        if self.memory_budget is not None:
            if not isinstance(self.memory_budget, int) or isinstance(self.memory_budget, bool):
                raise TypeError(f"memory_budget must be a number of bytes or None, got {self.memory_budget!r}")
            if self.memory_budget < 1:
                raise ValueError(f"memory_budget must be at least 1 byte, got {self.memory_budget}")


@dataclass(frozen=True)
class _Way:
    """How shards are computed."""

    kind: Literal["loop", "vmap", "layers"] = "loop"
    chunk: int = 1  # shards at once
    form: Form = "plain"  # of the model, in the loop


_found: weakref.WeakKeyDictionary[Objective, dict[Any, _Way]] = weakref.WeakKeyDictionary()  # what trials ended with


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
        return _Shards(objective, m, measure, work, evaluate, decorate).run()


def check_batch_statistics(objective: Objective, m: int) -> None:
    """Refuse shards of one example where batch norm takes its statistics from the shard."""
    norms = [module for module in objective.model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    n = objective.examples
    if objective.batch_norm == "batch" and norms and (m == 1 or n % m == 1):
        raise ValueError(
            f"m = {m} on {n} examples makes a shard of one example, and one example has no batch statistics: "
            "choose another m, or batch_norm='eval' in the objective"
        )


class _Shards:
    """Values of shards, one by one or many at once."""

    def __init__(self, objective: Objective, m: int, measure: Measure, work: Work, evaluate: Evaluate | None, decorate: Any) -> None:
        self.objective, self._evaluate, self._held = objective, evaluate, objective.held()
        params = objective.parameters
        self._origin = [params[name] for name in objective.names]
        self._m, self._measure, self._work, self._decorate = m, measure, work, decorate
        self._budget = work.memory_budget or _MEMORY_BUDGET["cuda" if objective.device.type == "cuda" else "cpu"]
        self._share = Share(work.ranks)
        self._full = objective.examples // m // self._share.mine.step  # shards of m examples that are ours
        self._call = Called(objective, evaluate, self._held, self._full * work.passes >= _OFTEN)
        self._stacks: Stacks | None = None

    def run(self) -> tuple[Array, Array]:
        count = -(-self.objective.examples // self._m)
        with (
            self._share.gathering(count, self.objective.device) as gathered,
            progress_bar(len(range(count)[self._share.mine]), self._work.label, "shard", show=self._work.progress) as bar,
            closing(self.objective.batches.shards(self._m)) as shards,
        ):
            mine = islice(enumerate(shards), self._share.mine.start, None, self._share.mine.step)
            first: list[tuple[int, Any]] = []  # shards that were looked at

            def look(count: int) -> list[tuple[int, Any]]:
                first.extend(islice(mine, max(0, count - len(first))))
                return first[:count]

            way, results = self._plan(look)
            self._prepare(way)
            bar.update(len(results))
            weights = [self.objective.weight(shard) for _, shard in first[: len(results)]]
            if way.chunk > 1 and self._can_be_viewed(look(1)[0][1]):
                self._views(way.chunk, results, weights, bar)
            else:
                for group in groups(chain(first[len(results) :], mine), way.chunk, self._m):
                    together = 1 < len(group) and (len(group) == way.chunk or len(group) >= _TRIAL[0])
                    results += [self._together(group)] if together else [self._one(shard, i) for i, shard in group]
                    weights += [self.objective.weight(shard) for _, shard in group]
                    bar.update(len(group))
            gathered.append(_rows(results).cpu().numpy(), np.array(weights))
        return gathered.values, gathered.weights

    def _prepare(self, way: _Way) -> None:
        if way.form != "plain":
            self._call.take(way.form)
        self._stacks = None
        if way.kind == "layers" and (layers := self._layers()) is not None:
            self._stacks = Stacks(self.objective, layers, self._held)

    def _layers(self) -> Layers | None:
        """Return the model's layers, if the loss is the objective's and they are all of known kinds."""
        if self._evaluate is not None or self._decorate is not None:
            return None
        if self.objective not in _layers:
            _layers[self.objective] = layers_of(self.objective)
        return _layers[self.objective]

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
        stacks, work = self._stacks, self._work
        with torch.no_grad():
            if stacks is not None and work.stacked is not None:
                return work.stacked(JoinedStacks(stacks, shard_of(stacked), self._origin))
            if stacks is not None:
                at = partial(Layered, stacks, weights=self._origin, joined=work.joined)
                return torch.func.vmap(lambda parts: self._measure(at(shard_of(parts))).reshape(-1))(stacked)
            with _plain_attention():
                plain = partial(Transformed, self.objective, self._evaluate, self._held, weights=self._origin)
                return torch.func.vmap(lambda parts: self._measure(plain(shard_of(parts))).reshape(-1))(stacked)

    def _given(self, shard: Any, index: int) -> Any:
        return shard if self._decorate is None else self._decorate(shard, index)

    def _one(self, shard: Any, index: int) -> Tensor:
        with torch.no_grad():
            return self._measure(Plain(self.objective, self._call, self._given(shard, index), index, self._origin)).reshape(1, -1)

    def _together(self, group: Sequence[tuple[int, Any]]) -> Tensor:
        return self._mapped(*stack([self._given(shard, i) for i, shard in group]))

    # ---- which way --------------------------------------------------------------------------------------------------

    def _plan(self, look: Callable[[int], list[tuple[int, Any]]]) -> tuple[_Way, list[Tensor]]:
        """Return how to compute the shards, and what has been computed of the first ones in that way already."""
        vectorize = self._work.vectorize
        if vectorize is False or self._full < (2 if vectorize else 1):
            return _Way(), []
        # One trial for each kind of work on an objective.
        known = _found.setdefault(self.objective, {})
        work = replace(self._work, progress=None, stacked=None), self._m, self._full, torch.get_num_threads()
        if work in known:
            return known[work], []
        ((index, shard),) = look(1)
        piece = cut(self._given(shard, index), max(4, self.objective.examples // 64))[0] if self._decorate is None else None
        way, seconds = _Way(), math.inf
        if piece is not None and not vectorize:
            way, seconds = self._form_for(piece, index)
        kind: Literal["vmap", "layers"] = "vmap" if self._layers() is None else "layers"
        quick = kind == "layers" and seconds * self.objective.examples < _AT_ONCE
        results: list[Tensor] = []
        if vectorize or (self._full > 1 and (quick or self._full >= _WORTH_A_TRIAL[kind])):
            chunk = max(1, min(self._budget // self._bytes(shard if piece is None else piece, index), self._full))
            together = _Way(kind, -(-self._full // -(-self._full // chunk)))  # as many at a time as makes the groups alike
            if vectorize:
                way = self._possible(together, index, shard)
            elif chunk > 1:
                tried = _QUICK_TRIAL if quick else max(_TRIAL[0], min(_TRIAL[1], self._full // _TRIED[kind]))
                way, results = self._trial(look(min(chunk, tried)), together, way)
        known[work] = way
        return way, results

    def _bytes(self, piece: Any, index: int) -> int:
        """Estimate the memory that a shard takes when computed with others: gradient, climb and activations."""
        saved: dict[int, int] = {}
        constant = {w.untyped_storage().data_ptr() for w in self._origin}

        def note(tensor: Tensor) -> Tensor:
            if tensor.untyped_storage().data_ptr() not in constant:
                saved[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
            return tensor

        call = Called(self.objective, self._evaluate, self._held, often=False)
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            Plain(self.objective, call, self._given(piece, index) if self._decorate else piece, index, self._origin).gradient(self._origin)
        parameters = sum(w.numel() * w.element_size() for w in self._origin)
        larger = self._m / min(count_examples(piece), self._m)
        return int(self._work.copies * parameters + 2 * larger * sum(saved.values())) + 1

    def _form_for(self, piece: Any, index: int) -> tuple[_Way, float]:
        """Return the loop in the form of the model that computes a few examples fastest, and the seconds that one of them takes."""
        forms: list[Form] = ["plain"]
        if self._evaluate is None and self.objective.batch_norm == "eval":
            forms += [form for form in candidates(self.objective.caller().model, piece) if form != "plain"]
        best, plain = (math.inf, forms[0]), torch.zeros(0)
        for form in forms:
            call = Called(self.objective, self._evaluate, self._held, often=True)
            if form != "plain":
                call.take(form)
            loss = Plain(self.objective, call, piece, index, self._origin)
            try:
                self._measure(loss)  # the first call of anything is slow
            except Exception:
                if form == "plain":
                    raise
                continue  # `view` after a convolution refuses channels last
            found, seconds = self._timed(lambda loss=loss: [self._measure(loss).reshape(1, -1)])  # type: ignore[misc]
            plain = found[0] if form == "plain" else plain
            if seconds < best[0] and self._alike(found, [plain]):
                best = seconds, form
        return _Way(form=best[1]), best[0] / count_examples(piece)

    def _possible(self, way: _Way, index: int, shard: Any) -> _Way:
        """Return a way, or the transforms where batches are none that layers can take."""
        if way.kind == "layers":
            self._prepare(way)
            try:
                self._together([(index, shard)])
            except Exception:  # whatever it was: if it is the model's own, the transforms meet it too
                return replace(way, kind="vmap")
        return way

    def _trial(self, first: Sequence[tuple[int, Any]], together: _Way, loop: _Way) -> tuple[_Way, list[Tensor]]:
        """Compute the first shards both ways: together only if the numbers are the same and it is faster."""
        self._prepare(loop)
        self._one(first[0][1], first[0][0])
        alone, slow = self._timed(lambda: [self._one(shard, i) for i, shard in first])
        try:
            self._prepare(together)
            with warnings.catch_warnings():
                warnings.simplefilter("error")  # an operation without a batching rule warns, and is slow
                self._together(first[:2])  # the first call of a transform is slow
                stacked, fast = self._timed(lambda: [self._together(first)])
                if fast >= slow:  # a busy machine may have said so: the choice is kept, so look twice
                    fast = min(fast, self._timed(lambda: [self._together(first)])[1])
        except Exception:  # whatever it was: if it is the model's own, the loop meets it too and says so
            return loop, alone
        return (together, []) if fast < slow and self._alike(stacked, alone) else (loop, alone)

    def _alike(self, some: list[Tensor], others: list[Tensor]) -> bool:
        tolerance = {8: 1e-10, 4: 1e-5}.get(self.objective.dtype.itemsize, 1e-2)
        return torch.allclose(_rows(some), _rows(others), tolerance, tolerance, equal_nan=True)

    def _timed(self, work: Callable[[], list[Tensor]]) -> tuple[list[Tensor], float]:
        """Return what work gives, and the seconds it takes: of a few runs the shortest, where that tells more than one."""
        # On one thread other programs' turns do not count.
        clock = time.process_time if self.objective.device.type == "cpu" and torch.get_num_threads() == 1 else time.perf_counter
        spent: list[float] = []
        result: list[Tensor] = []
        while not spent or (len(spent) < _RUNS and sum(spent) < _RUNS_WITHIN):
            started = clock()
            result = work()
            if self.objective.device.type == "cuda":
                torch.cuda.synchronize(self.objective.device)
            spent.append(clock() - started)
        return result, min(spent)


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
