"""Whether loss and data are the same in every pass: eigenvalues of an operator that changes between products mean nothing.

`Objective` places every global random generator anew for each batch, so that dropout in a loss, augmentation and shuffling that draw from
them are the same in every pass. What it cannot place is found here: generators that data sets, models or losses carry with them, states
that they keep between calls, and sources that change.
"""

from __future__ import annotations

import random
import weakref
from contextlib import closing
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from landscape.batches import count_examples, leaves
from landscape.curvature.draws import mix
from landscape.objective import Objective
from landscape.progress import progress as progress_bar
from landscape.stateless import undisturbed


class NotDeterministicError(ValueError):
    """Loss or data differ between two passes at the same parameters."""


class Determinism(NamedTuple):
    """What two passes over the data have shown."""

    loss: float  # the same in both
    draws: bool  # whether model or loss draw from a global generator: then the loss is that of one draw for each batch


class _Pass(NamedTuple):
    losses: list[Tensor]  # of every batch
    batches: list[Tensor]  # a mark of every batch, in order
    examples: Tensor | None  # a mark of all examples, in any order
    loss: float  # the mean
    draws: bool


_known: weakref.WeakKeyDictionary[Objective, Determinism] = weakref.WeakKeyDictionary()


def check_deterministic(objective: Objective, *, progress: bool | None = None) -> Determinism:
    """Look at all data twice and compare; once for every objective.

    This takes two forward passes, of which the first is one that provenance needs anyway, and reads the data twice.

    Args:
        objective: what to look at.
        progress: whether to show a bar; None shows it in a terminal.

    Returns:
        The loss at the model's parameters, and whether it depends on draws.

    Raises:
        NotDeterministicError: the passes differ; the message says whether data, their order, or model and loss do.
    """
    if objective not in _known:
        with progress_bar(None, "the same twice?", "batch", show=progress) as bar:
            first, second = _look(objective, bar), _look(objective, bar)
        _compare_data(first, second)
        tolerance = 1e3 * torch.finfo(torch.promote_types(objective.dtype, torch.float32)).eps
        one, other = torch.stack(first.losses), torch.stack(second.losses)
        differ = ~torch.isclose(one, other, rtol=tolerance, atol=0.0, equal_nan=True)
        if bool(differ.any()):
            index = int(differ.int().argmax())
            raise NotDeterministicError(
                f"model or loss are not deterministic: batch {index} (counted from 0) has the loss {float(one[index]):.6g} in one pass and "
                f"{float(other[index]):.6g} in the next, with the same data, parameters and random states. Something draws from a "
                "generator of its own (such as dropout written by hand), or keeps a state between calls that is no buffer"
            )
        _known[objective] = Determinism(first.loss, first.draws)
        objective.remember_loss(first.loss)
    return _known[objective]


def _look(objective: Objective, bar: Any) -> _Pass:
    losses: list[Tensor] = []
    marks: list[Tensor] = []
    examples: Tensor | None = None
    draws = False
    weight, fixed = 0.0, objective.batches.in_memory
    with undisturbed(objective.device), closing(objective.batches.seeded()) as batches:
        total = torch.zeros((), dtype=torch.float64, device=objective.device)
        params, held = objective.parameters, objective.held()
        for _, batch in batches:
            if not fixed:
                ordered, unordered = _marks(batch)
                marks.append(ordered)
                examples = unordered if examples is None else examples + unordered
            before = _random_states(objective.device)
            losses.append(objective.batch_loss(params, batch, held).detach().double())
            draws = draws or _random_states(objective.device) != before
            n = objective.weight(batch)
            total += losses[-1] * n
            weight += n
            bar.update()
    return _Pass(losses, marks, examples, float(total / weight), draws)


def _random_states(device: torch.device) -> tuple[Any, ...]:
    numpy_state = np.random.get_state()
    states = (torch.get_rng_state().numpy().tobytes(), random.getstate(), numpy_state[1].tobytes(), numpy_state[2])  # type: ignore[index]
    return (*states, torch.cuda.get_rng_state(device).numpy().tobytes()) if device.type == "cuda" else states


def _compare_data(first: _Pass, second: _Pass) -> None:
    if len(first.losses) != len(second.losses):
        raise NotDeterministicError(
            f"the data differ between two passes: one gave {len(first.losses)} batches, the next {len(second.losses)}"
        )
    differ = [i for i, (one, other) in enumerate(zip(first.batches, second.batches, strict=True)) if not torch.equal(one, other)]
    if not differ:
        return
    assert first.examples is not None and second.examples is not None
    where = f"{len(differ)} of {len(first.batches)} batches, the first of them batch {differ[0]} (counted from 0)"
    if torch.equal(first.examples, second.examples):
        raise NotDeterministicError(
            f"the data come in another order in every pass ({where}): a sampler shuffles with a generator of its own. "
            "Use shuffle=False, or give the data as tensors"
        )
    raise NotDeterministicError(
        f"the data differ between two passes ({where}): augmentation or sampling draws from a generator of its own, or the source changes. "
        "Measure on data without augmentation, or give the batches as list(loader)"
    )


def _marks(batch: Any) -> tuple[Tensor, Tensor]:
    """Return two integers that depend on every bit of a batch, the second one not on the order of examples."""
    n = count_examples(batch)
    tensors = leaves(batch)
    of_examples = torch.zeros(n, dtype=torch.int64, device=tensors[0].device)
    rest = torch.zeros((), dtype=torch.int64, device=tensors[0].device)
    for tensor in tensors:
        per_example = tensor.ndim > 0 and len(tensor) == n
        rows = tensor.detach().contiguous().reshape(n if per_example else 1, -1)
        rows = rows.view(torch.uint8) if rows.element_size() < 8 else rows.view(torch.int64)
        if rows.shape[1] % 4 == 0 and rows.dtype is torch.uint8:
            rows = rows.view(torch.int32)
        weights = mix(torch.arange(rows.shape[1], device=rows.device)) | 1
        sums = (rows.to(torch.int64) * weights).sum(1)  # wraps around
        if per_example:
            of_examples = mix(of_examples + sums)
        else:
            rest = mix(rest + sums[0])
    places = mix(torch.arange(n, device=of_examples.device)) | 1
    return mix((of_examples * places).sum() + rest), of_examples.sum()
