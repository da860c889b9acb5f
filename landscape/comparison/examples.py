"""The examples of any data that `Objective` takes, and fewer of them: the same ones for every model, spread evenly over the data."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_map
from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler, SequentialSampler, Subset, TensorDataset

from landscape.batches import Batches, count_examples


def number_of_examples(data: Any) -> int:
    """Return how many examples there are; what has no length is read through once."""
    if isinstance(data, DataLoader) and _map_style(data):
        return len(data.dataset)  # type: ignore[arg-type]
    if isinstance(data, Dataset) and not isinstance(data, TensorDataset) and hasattr(data, "__len__"):
        return len(data)
    return Batches(data, batch_size=None, device=torch.device("cpu"), dtype=None).examples


def take(data: Any, count: int | None, total: int | None = None) -> Any:
    """Return `count` examples, every (total / count)-th; of a loader that cannot be indexed its first ones.

    Data that were sorted by class keep all classes. What a loader would decode is read once and kept in memory.

    Args:
        data: as for `Objective`.
        count: how many; None, or as many as there are, for the data as they are.
        total: how many there are, if that is known.

    Returns:
        Tensors where tensors were given, else a list of batches.
    """
    total = number_of_examples(data) if total is None and count is not None else total
    if count is None or total is None or count >= total:
        return data
    chosen = np.arange(count, dtype=np.int64) * total // count
    if isinstance(data, TensorDataset):
        data = data.tensors
    if isinstance(data, tuple | dict):
        index = torch.from_numpy(chosen)
        return tree_map(lambda t: t[index.to(t.device)] if isinstance(t, Tensor) and t.ndim else t, data)
    if isinstance(data, list):
        return _of_batches(data, count, total)
    if isinstance(data, DataLoader) and _map_style(data):
        loader = DataLoader(
            Subset(data.dataset, chosen.tolist()),
            batch_size=data.batch_size,
            collate_fn=data.collate_fn,
            num_workers=data.num_workers,
            worker_init_fn=data.worker_init_fn,
        )
        return list(_read(loader))
    if isinstance(data, Dataset) and not isinstance(data, DataLoader):
        return list(_read(DataLoader(Subset(data, chosen.tolist()), batch_size=128)))
    return list(_first(_read(data), count))


def _map_style(loader: DataLoader[Any]) -> bool:
    """Tell whether a loader goes through a data set that can be indexed, once, by the samplers of PyTorch."""
    plain = type(loader.batch_sampler) is BatchSampler and type(loader.sampler) in (SequentialSampler, RandomSampler)
    once = not getattr(loader.sampler, "replacement", False) and getattr(loader.sampler, "_num_samples", None) is None
    return plain and once and not loader.drop_last and hasattr(loader.dataset, "__getitem__") and hasattr(loader.dataset, "__len__")


def _read(data: Any) -> Iterator[Any]:
    """Yield the batches of one pass; the random state of the process stays as it is."""
    yield from Batches(data, batch_size=None, device=torch.device("cpu"), dtype=None)


def _first(batches: Iterator[Any], count: int) -> Iterator[Any]:
    left = count
    for batch in batches:
        size = count_examples(batch)
        yield cut(batch, left) if size > left else batch
        left -= size
        if left <= 0:
            return


def _of_batches(batches: list[Any], count: int, total: int) -> list[Any]:
    """Return so many examples of a list of batches: of every batch its share, the first ones of it."""
    found, before, taken = [], 0, 0
    for batch in batches:
        before += count_examples(batch)
        wanted = count * before // total - taken
        if wanted:
            found.append(cut(batch, wanted))
            taken += wanted
    return found


def cut(batch: Any, stop: int, start: int = 0) -> Any:
    """Return some examples of a batch."""
    return tree_map(lambda t: t[start:stop] if isinstance(t, Tensor) and t.ndim else t, batch)
