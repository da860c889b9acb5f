r"""m-sharpness (Foret et al. 2021, arXiv 2010.01412): how far the loss rises in the step that SAM climbs, shard by shard.

The data are cut into consecutive shards S_i of m examples, and each climbs along its own gradient:

    value = sum_i |S_i| v_i / sum_i |S_i|,    v_i = L_i(w + eps_i) - L_i(w),    eps_i = argmax of the linearised L_i in the rho-ball

with eps_i from `sam_core.optim.ascent`: what is measured is what is trained. m counts examples per shard; in mSAM (Behdin et al. 2023) m is
the number of shards. The value depends on m, rho, p, the data and the batch-norm mode; results carry them all. It costs one gradient and
one forward pass per example, whatever m.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from itertools import chain, islice
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from landscape.batches import count_examples, seed_everything, seed_torch
from landscape.intervals import spread_to_stderr
from landscape.objective import NonFiniteLossError, Objective, Parameters, differentiable, twice_differentiable
from landscape.progress import progress as progress_bar
from landscape.results.types import Sharpness
from landscape.stateless import recurrent_gradients, undisturbed
from sam_core.optim.ascent import PNorm

# Bytes that shards computed together may take beyond the model. Much larger chunks leave a CPU's caches and gain nothing.
_MEMORY_BUDGET = {"cpu": 2**27, "cuda": 2**32}
# So many shards pay for finding out whether computing them together is faster; with fewer the loop is over before.
_WORTH_A_TRIAL = 96
_TRIAL = 4, 16  # shards tried, at least and at most

Pairs = list[tuple[Tensor, Tensor]]  # losses before and after, 0-d or one entry per shard


def m_sharpness(
    objective: Objective,
    rho: float = 0.05,
    m: int = 128,
    *,
    p: float = 2.0,
    adaptive: bool = False,
    eta: float = 0.0,
    vectorize: bool | None = None,
    memory_budget: int | None = None,
    progress: bool | None = None,
) -> Sharpness:
    """Return the mean over shards of m examples of L_i(w + eps_i) - L_i(w).

    Args:
        objective: the loss; shards are consecutive in its data order, the last one may be shorter.
        rho: radius of the climb.
        m: examples per shard, 1 ... n. m = n gives the loss gap of one full-batch SAM step.
        p: the ball is one of the p-norm, 1 <= p <= inf.
        adaptive: measure steps relative to |w| + eta, weight by weight.
        eta: see `adaptive`.
        vectorize: compute many shards at once (`torch.func.vmap`), or loop; None tries both on the first shards and takes the faster.
        memory_budget: bytes for shards computed at once.
        progress: show a bar; None shows it on a terminal.

    Returns:
        The value, its standard error over shards, widened for few of them such that value ± 1.96 stderr covers in 95 % of all runs (NaN
        with one shard), and the values of the shards.

    Raises:
        ValueError: m is more than the number of examples, rho, p or eta is out of range, or a shard of one example would have to give
            batch statistics.
        TypeError: m is no integer.
        NonFiniteLossError: the loss of a shard is NaN or infinite, before or after the climb.
    """
    if not isinstance(m, int) or isinstance(m, bool):
        raise TypeError(f"m must be an integer, the number of examples per shard, got {m!r}")
    ascent = PNorm(rho, p, adaptive, eta)
    n = objective.examples
    if not 1 <= m <= n:
        raise ValueError(f"m, the number of examples per shard, must be 1 ... {n} (the number of examples), got {m}")
    _check_batch_statistics(objective, m, n)
    meter = objective.meter()
    with undisturbed(objective.device), recurrent_gradients(objective.model, objective.device):
        seed_everything(0, objective.device)
        climbs = _Climbs(objective, ascent, m, vectorize, memory_budget)
        before, after, weights = climbs.run(progress)
    finite = np.isfinite(before) & np.isfinite(after)
    if not finite.all():
        where = int(np.flatnonzero(~finite)[0])
        place = "at the model's own weights" if not np.isfinite(before[where]) else f"after the climb of rho = {rho:g} (try a smaller rho)"
        raise NonFiniteLossError(f"the loss of shard {where} (counted from 0, {m} examples each) is not finite {place}")
    values = after - before
    value, stderr = weighted_mean(values, weights)
    objective.count("gradients", n)
    objective.count("forwards", n)
    measure = "adaptive_m_sharpness" if adaptive else "m_sharpness"
    return Sharpness(measure, value, stderr, values, weights, float(rho), m, float(p), cost=meter.cost(), provenance=objective.provenance())


def weighted_mean(values: np.ndarray, weights: np.ndarray) -> tuple[float, float]:
    """Return sum(w v) / sum(w) and its standard error, widened for few values (`spread_to_stderr`); NaN for a single value."""
    mean = float((weights * values).sum() / weights.sum())
    return mean, float(spread_to_stderr(weights) * np.sqrt((weights**2 * (values - mean) ** 2).sum()))


def _check_batch_statistics(objective: Objective, m: int, n: int) -> None:
    norms = [module for module in objective.model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    if objective.batch_norm == "batch" and norms and (m == 1 or n % m == 1):
        raise ValueError(
            f"m = {m} on {n} examples makes a shard of one example, and one example has no batch statistics: "
            "choose another m, or batch_norm='eval' in the objective"
        )


class _Climbs:
    """Losses of shards before and after each one's own climb, one by one or many at once."""

    def __init__(self, objective: Objective, ascent: PNorm, m: int, vectorize: bool | None, budget: int | None) -> None:
        self._objective, self._ascent, self._m, self._vectorize = objective, ascent, m, vectorize
        self._params, self._held = objective.parameters, objective.held()
        self._budget = budget or _MEMORY_BUDGET["cuda" if objective.device.type == "cuda" else "cpu"]

    def run(self, show: bool | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the losses before and after, and the weights of the shards."""
        count = -(-self._objective.examples // self._m)
        with (
            progress_bar(count, f"m-sharpness, m = {self._m}", "shard", show=show) as bar,
            closing(self._objective.batches.shards(self._m)) as shards,
        ):
            first = list(islice(shards, max(_TRIAL[0], min(_TRIAL[1], self._objective.examples // self._m // 24))))
            chunk, results = self._plan(first)
            weights = [self._objective.weight(shard) for shard in first[: len(results)]]
            bar.update(len(results))
            for group in _groups(chain(first[len(results) :], shards), chunk, self._m):
                # A short group, at the end, is not worth a batch shape of its own.
                done = (
                    self._together(group)
                    if len(group) == chunk > 1
                    else [self._one(shard, len(weights) + i) for i, shard in enumerate(group)]
                )
                weights += [self._objective.weight(shard) for shard in group]
                results += done
                bar.update(len(group))
        return _column(results, 0).cpu().numpy(), _column(results, 1).cpu().numpy(), np.array(weights)

    def _one(self, shard: Any, index: int) -> tuple[Tensor, Tensor]:
        leaves = {name: differentiable(self._params[name]) for name in self._objective.names}
        seed_torch(index, self._objective.device)  # a model that draws draws the same before and after the climb
        with torch.enable_grad():
            before = self._objective.batch_loss(leaves, shard, self._held)
            grads = torch.autograd.grad(before, list(leaves.values()), allow_unused=True)
        with torch.no_grad():
            filled = [torch.zeros_like(p) if g is None else g for g, p in zip(grads, leaves.values(), strict=True)]
            seed_torch(index, self._objective.device)
            return before.detach(), self._climbed(filled, shard)

    def _climbed(self, gradients: Sequence[Tensor], shard: Any) -> Tensor:
        weights = [self._params[name] for name in self._objective.names]
        eps = self._ascent.perturbation(gradients, weights)
        moved = {name: w + e for name, w, e in zip(self._objective.names, weights, eps, strict=True)}
        return self._objective.batch_loss(moved, shard, self._held)

    def _together(self, shards: Sequence[Any]) -> Pairs:
        flat, spec = tree_flatten(shards[0])
        columns = list(zip(*(tree_flatten(shard)[0] for shard in shards), strict=True))
        varies = [isinstance(leaf, Tensor) and leaf.ndim > 0 for leaf in flat]
        if any(not v and any(not _same(leaf, column[0]) for leaf in column) for v, column in zip(varies, columns, strict=True)):
            raise _NotVectorizable("batches hold values that differ from shard to shard and are no tensors with examples")
        stacked = [torch.stack(column) for v, column in zip(varies, columns, strict=True) if v]

        def climb(parts: list[Tensor]) -> tuple[Tensor, Tensor]:
            given = iter(parts)
            shard = tree_unflatten([next(given) if v else leaf for v, leaf in zip(varies, flat, strict=True)], spec)

            def loss(params: Parameters) -> Tensor:
                return self._objective.batch_loss(params, shard, self._held)

            grads, before = torch.func.grad_and_value(loss)(self._params)
            return before, self._climbed([grads[name] for name in self._objective.names], shard)

        with torch.no_grad(), _plain_attention():
            return [torch.func.vmap(climb)(stacked)]

    # ---- how many at once -------------------------------------------------------------------------------------------

    def _plan(self, first: Sequence[Any]) -> tuple[int, Pairs]:
        """Return how many shards to compute at once, 1 for the loop, and what the loop has computed on the first shards already."""
        full = self._objective.examples // self._m
        if self._vectorize is False or (self._vectorize is None and full < _WORTH_A_TRIAL) or full < 2:
            return 1, []
        chunk = max(1, min(self._budget // self._bytes(first[0]), full))
        if self._vectorize or chunk == 1:
            return chunk, []
        return self._trial(first[:chunk], chunk)

    def _bytes(self, shard: Any) -> int:
        """Estimate the memory that a shard takes when computed with others: gradient, climb and activations."""
        saved: dict[int, int] = {}
        constant = {p.untyped_storage().data_ptr() for p in self._params.values()}

        def note(tensor: Tensor) -> Tensor:
            if tensor.untyped_storage().data_ptr() not in constant:
                saved[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            self._one(shard, 0)
        parameters = sum(p.numel() * p.element_size() for p in self._params.values())
        return 4 * parameters + 2 * sum(saved.values()) + 1

    def _trial(self, first: Sequence[Any], chunk: int) -> tuple[int, Pairs]:
        """Compute the first shards both ways: together only if the numbers are the same and it is faster."""
        alone, slow = self._timed(lambda: [self._one(shard, i) for i, shard in enumerate(first)])
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")  # an operation without a batching rule warns, and is slow
                self._together(first[:2])  # the first call of a transform is slow
                together, fast = self._timed(lambda: self._together(first))
        except Exception:  # whatever it was: if it is the model's own, the loop meets it too and says so
            return 1, alone
        tolerance = 1e-4 if self._objective.dtype.itemsize < 8 else 1e-9
        alike = all(torch.allclose(_column(together, i), _column(alone, i), tolerance, tolerance, equal_nan=True) for i in (0, 1))
        return (chunk, []) if alike and fast < slow else (1, alone)

    def _timed(self, work: Callable[[], Pairs]) -> tuple[Pairs, float]:
        started = time.perf_counter()
        result = work()
        if self._objective.device.type == "cuda":
            torch.cuda.synchronize(self._objective.device)
        return result, time.perf_counter() - started


def _column(pairs: Pairs, i: int) -> Tensor:
    return torch.cat([pair[i].reshape(-1) for pair in pairs]).double()


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


def _groups(shards: Iterator[Any], size: int, m: int) -> Iterator[list[Any]]:
    """Yield lists of `size` shards of m examples each; a shorter shard comes in a list of its own."""
    held: list[Any] = []
    for shard in shards:
        if count_examples(shard) != m and held:
            yield held
            held = []
        held.append(shard)
        if len(held) == size:
            yield held
            held = []
    if held:
        yield held
