"""Shards put on top of each other, so that they are computed at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from landscape.batches import count_examples


class NotStackable(TypeError):
    """Shards that cannot be stacked."""


def stack(shards: Sequence[Any]) -> tuple[list[Tensor], Callable[[list[Tensor]], Any]]:
    """Return the tensors of some shards, each with a first dimension that counts shards, and what makes a shard of its share of them.

    Args:
        shards: batches alike.

    Returns:
        Both.

    Raises:
        NotStackable: shards differ in something that is no tensor with examples.
    """
    flat, spec = tree_flatten(shards[0])
    columns = list(zip(*(tree_flatten(shard)[0] for shard in shards), strict=True))
    varies = [isinstance(leaf, Tensor) and leaf.ndim > 0 for leaf in flat]
    if any(not v and any(not _same(leaf, column[0]) for leaf in column) for v, column in zip(varies, columns, strict=True)):
        raise NotStackable("batches hold values that differ from shard to shard and are no tensors with examples")
    stacked = [torch.stack(column) for v, column in zip(varies, columns, strict=True) if v]

    def shard_of(parts: list[Tensor]) -> Any:
        given = iter(parts)
        return tree_unflatten([next(given) if v else leaf for v, leaf in zip(varies, flat, strict=True)], spec)

    return stacked, shard_of


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return isinstance(a, Tensor) and isinstance(b, Tensor) and torch.equal(a, b)
    return bool(a == b)


def groups(shards: Iterator[tuple[int, Any]], size: int, m: int) -> Iterator[list[tuple[int, Any]]]:
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
