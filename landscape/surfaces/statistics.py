"""Running statistics of batch norm that belong to a point: computed again on the data, as after averaging or mixing weights.

The mean of two networks' running means is not the mean of the activations of the mean network: between networks it lacks variance, and
losses on paths are too high (Jordan et al. 2023, "REPAIR"). Izmailov et al. 2018 and Garipov et al. 2018 compute them again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import closing
from typing import Any

from torch import Tensor, nn
from torch.func import functional_call

from landscape.batches import Batches, count_examples
from landscape.objective import Objective, Parameters
from landscape.stateless import LossCall, skeleton_of

_NORM = nn.modules.batchnorm._NormBase


class Recomputed:
    """Computes running means and variances at points, each layer normalising with the statistics of the batch, as in training.

    A layer's statistic is the mean over batches, and over its uses in a pass, of the batch means, and of the unbiased batch variances,
    weighted by examples. What a layer sees was normalised by batches, so the result depends a little on the batch size.

    Args:
        objective: whose model; it is not written to.
        batches: the data; those of the objective by default.
    """

    def __init__(self, objective: Objective, batches: Batches | None = None) -> None:
        plain = objective.caller()
        skeleton = skeleton_of(plain.model, "eval")
        self._norms = [m for m in skeleton.modules() if isinstance(m, _NORM) and m.running_mean is not None]
        for norm in self._norms:
            norm.train()
            norm.register_forward_pre_hook(self._weigh)
        self._size, self._seen = 0, dict.fromkeys(self._norms, 0)
        self._caller = LossCall(skeleton, plain.loss[0], objective.takes)
        self._objective, self._batches = objective, batches or objective.batches

    def at(self, params: Mapping[str, Tensor], names: Iterable[str]) -> Parameters:
        """Return the statistics at a point, by buffer name; the caller keeps `undisturbed`."""
        held = self._objective.held()
        fixed = {name: t.clone() for name, t in held.fixed.items()}  # the pass writes into the statistics
        written = {name: t.clone() for name, t in held.written.items()}
        replaced = {f"model.{name}": t for group in (fixed, written, params) for name, t in group.items()}
        seen, self._seen = 0, dict.fromkeys(self._norms, 0)
        with closing(self._batches.seeded()) as batches:
            for _, batch in batches:
                size = count_examples(batch)
                if size < 2 and seen:  # one example has no variance
                    continue
                seen, self._size = seen + size, size
                functional_call(self._caller, replaced, (batch,))
        self._objective.count("forwards", seen)
        return {name: (fixed | written)[name] for name in names}  # a norm layer of the model's own kind counts as one that may be written

    def _weigh(self, norm: Any, _: Any) -> None:
        """Before every use of a layer: let the next statistics count as much as each of those before. One may be used twice in a pass."""
        self._seen[norm] += self._size
        norm.momentum = self._size / self._seen[norm]
