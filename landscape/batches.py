"""Data that can be read again and again, in the same order, without touching anybody's random numbers."""

from __future__ import annotations

import copy
import hashlib
import random
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map
from torch.utils.data import DataLoader, Dataset, TensorDataset

# Elements of one input batch that keep a small network's activations in a CPU's cache, and a GPU busy.
_CPU_BATCH_ELEMENTS = 2**18
_GPU_BATCH_ELEMENTS = 2**23


def leaves(batch: Any) -> list[Tensor]:
    """Return the tensors in a batch of any nesting, in order."""
    return [leaf for leaf in tree_flatten(batch)[0] if isinstance(leaf, Tensor)]


def count_examples(batch: Any) -> int:
    """Return the number of examples in a batch: the length of its last tensor with dimensions (the targets of a pair)."""
    sized = [leaf for leaf in leaves(batch) if leaf.ndim]
    if not sized:
        raise TypeError(f"a batch must hold at least one tensor with a batch dimension, got {type(batch).__name__}")
    return len(sized[-1])


def is_pair(batch: Any) -> bool:
    """Tell whether a batch is (inputs, target)."""
    return isinstance(batch, tuple | list) and len(batch) == 2 and isinstance(batch[1], Tensor)


@contextmanager
def untouched_random_state(device: torch.device, generator: torch.Generator | None = None) -> Iterator[None]:
    """Give every global random generator (and `generator`) its state back on leaving."""
    devices = [device] if device.type == "cuda" else []
    python, numpy_state = random.getstate(), np.random.get_state()
    own = None if generator is None else generator.get_state()
    with torch.random.fork_rng(devices=devices):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy_state)
            if generator is not None and own is not None:
                generator.set_state(own)


def random_state() -> tuple[Any, ...]:
    """Return the state of the global random generators of PyTorch's CPU, Python and NumPy, to be compared with another one."""
    return torch.get_rng_state().numpy().tobytes(), random.getstate(), repr(np.random.get_state())


def seed_torch(seed: int, device: torch.device) -> None:
    """Put PyTorch's global generators at a place of their own; a microsecond on a CPU."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        index = torch.cuda.current_device() if device.index is None else device.index
        torch.cuda.default_generators[index].manual_seed(seed)


def seed_everything(seed: int, device: torch.device) -> None:
    """Put every global random generator at a place of its own, for those who keep `untouched_random_state`."""
    seed_torch(seed, device)
    random.seed(seed)
    np.random.seed(seed)


class Batches:
    """Batches on one device and in one floating dtype, read anew for every pass.

    Args:
        data: a tuple or dictionary of tensors that share their first dimension, a DataLoader, a Dataset, or a list of batches.
        batch_size: examples per batch where we cut them (tensors, Dataset); None chooses by the size of an example.
        device: where batches are put.
        dtype: dtype of floating-point tensors in a batch; None leaves them.
    """

    def __init__(self, data: Any, *, batch_size: int | None, device: torch.device, dtype: torch.dtype | None) -> None:
        if batch_size is not None and (not isinstance(batch_size, int) or batch_size < 1):
            raise ValueError(f"batch_size must be a positive integer, got {batch_size!r}")
        self.device, self.dtype = device, dtype
        self._whole: Any = None
        self._given: Any = None  # what `_whole` was made of
        self._source: Sequence[Any] | DataLoader | None = None
        self._begun: list[Tensor] | None = None  # states of a loader's generators where the pass began that is under way
        self._sha256: str | None = None
        self._examples: int | None = None
        if isinstance(data, TensorDataset):
            data = data.tensors
        if isinstance(data, tuple | dict):
            self._given = _one_length(data)
            self._whole = tree_map(self._place, self._given)
            self._examples = count_examples(self._whole)
            self.batch_size = batch_size or _default_batch_size(self._whole, device)
        elif isinstance(data, DataLoader):
            self._source, self.batch_size = data, batch_size or data.batch_size or 0
        elif isinstance(data, list):
            if data and all(isinstance(item, Tensor) and item.ndim == 0 for item in data):
                raise TypeError("data is a list of numbers; give a tuple (inputs, targets) or a list of batches")
            if len(data) == 2 and all(isinstance(item, Tensor) and item.ndim for item in data) and _inputs_and_targets(*data):
                raise TypeError("data is a list of two tensors, and a list is a list of batches; give the tuple (inputs, targets)")
            self._source, self.batch_size = data, batch_size or 0
        elif isinstance(data, Dataset) and hasattr(data, "__len__"):
            size = batch_size or 128
            self._source, self.batch_size = DataLoader(data, batch_size=size), size
        else:
            raise TypeError(
                f"data must be a tuple (inputs, targets), a DataLoader, a Dataset or a list of batches, got {type(data).__name__}"
                + ("; an iterator can be read only once: pass list(...)" if isinstance(data, Iterator) else "")
            )
        if self._examples == 0 or (isinstance(self._source, list) and not self._source):
            raise ValueError("data is empty: at least one example is needed")

    def __iter__(self) -> Generator[Any, None, None]:
        """Yield the batches of one pass; random numbers that a loader draws are the same in every pass."""
        if self._whole is not None:
            for start in range(0, self.examples, self.batch_size):
                yield tree_map(lambda t, s=start: t[s : s + self.batch_size], self._whole)
        else:
            with closing(self._as_given()) as batches:
                for batch in batches:
                    yield tree_map(self._place, batch)

    def seeded(self) -> Generator[tuple[int, Any], None, None]:
        """Yield the batches of one pass, numbered, with the global generators at a place that belongs to the batch.

        A model that draws random numbers where it is evaluated then has one loss, not another one in every pass. The caller keeps
        `untouched_random_state`.
        """
        with closing(iter(self)) as batches:
            for index, batch in enumerate(batches):
                seed_everything(index, self.device)
                yield index, batch

    def _as_given(self) -> Generator[Any, None, None]:
        """Yield what one pass reads, before it is put on our device and in our dtype."""
        if self._whole is not None:
            yield self._given
        elif isinstance(self._source, DataLoader):
            yield from self._from_loader(self._source)
        else:
            assert self._source is not None
            yield from self._source

    def _from_loader(self, loader: DataLoader) -> Generator[Any, None, None]:
        # Between two batches the caller's code runs, so the loader's random stream is kept apart and put back on each turn.
        generators = [g for g in (loader.generator, getattr(loader.sampler, "generator", None)) if g is not None]
        saved = [g.get_state() for g in generators]
        outermost = self._begun is None
        if self._begun is None:
            self._begun = saved
        else:  # a pass within a pass reads the same batches, with workers of its own
            for g, state in zip(generators, self._begun, strict=True):
                g.set_state(state)
            loader = copy.copy(loader)
            loader._iterator = None
        stream: tuple[Any, ...] | None = None
        iterator: Iterator[Any] | None = None
        count = 0
        try:
            while True:
                with untouched_random_state(self.device):
                    if stream is None:
                        seed_everything(0, self.device)
                    else:
                        torch.set_rng_state(stream[0])
                        random.setstate(stream[1])
                        np.random.set_state(stream[2])
                    iterator = iter(loader) if iterator is None else iterator
                    batch = next(iterator, _END)
                    stream = (torch.get_rng_state(), random.getstate(), np.random.get_state())
                if batch is _END:
                    break
                count += 1
                yield batch
        finally:
            for g, state in zip(generators, saved, strict=True):
                g.set_state(state)
            if outermost:
                self._begun = None
        if not count:
            raise ValueError("data is empty: the loader gave no batch")

    def _place(self, leaf: Any) -> Any:
        if isinstance(leaf, Mapping):
            return tree_map(self._place, _plain(leaf))
        if not isinstance(leaf, Tensor):
            return leaf
        dtype = self.dtype if leaf.is_floating_point() else None
        with torch.inference_mode(False):  # autograd cannot save what is made in inference mode
            leaf = leaf.clone() if leaf.is_inference() else leaf.detach()
            return leaf.to(device=self.device, dtype=dtype or leaf.dtype, non_blocking=True)

    @property
    def in_memory(self) -> bool:
        """Whether the data are tensors: every pass reads the same memory."""
        return self._whole is not None

    @property
    def divisible(self) -> bool:
        """Whether batches of any examples can be made: the data are tensors."""
        return self._whole is not None

    @property
    def examples(self) -> int:
        """Number of examples in one pass."""
        if self._examples is None:
            self._examples = sum(count_examples(batch) for batch in self)
        return self._examples

    @property
    def sha256(self) -> str:
        """Hash over every tensor of one pass as it was given, independent of how the pass is cut into batches and of our dtype."""
        if self._sha256 is None:
            digests: list[Any] = []
            names: list[str] = []
            for batch in self._as_given():
                for position, leaf in enumerate(leaves(tree_map(_plain, batch))):
                    if position == len(digests):
                        digests.append(hashlib.sha256())
                        names.append(f"{leaf.dtype}{tuple(leaf.shape[1:])}")
                    digests[position].update(leaf.detach().contiguous().cpu().reshape(-1).view(torch.uint8).numpy().data)
            total = hashlib.sha256("|".join(names).encode())
            for digest in digests:
                total.update(digest.digest())
            self._sha256 = total.hexdigest()
        return self._sha256

    def shards(self, size: int) -> Generator[Any, None, None]:
        """Yield consecutive shards of `size` examples in data order, across batch borders; the last may be shorter."""
        held: Any = None
        # Closed with this generator: a loader's own generator gets its state back then, not when the last reference dies.
        with closing(iter(self)) as batches:
            for batch in batches:
                held = batch if held is None else _join(held, batch)
                count = count_examples(held)
                start = 0
                while count - start >= size:
                    yield _slice(held, start, start + size)
                    start += size
                held = _slice(held, start, count) if start < count else None
        if held is not None:
            yield held


class Part(Batches):
    """Some of the examples of a data set, in its order; a loader is read whole for every pass over a part of it.

    Args:
        whole: the data set.
        chosen: positions of the examples, in data order.
    """

    def __init__(self, whole: Batches, chosen: np.ndarray) -> None:
        self.device, self.dtype, self.batch_size = whole.device, whole.dtype, whole.batch_size
        self._whole = self._given = self._source = self._sha256 = None
        self._from, self._examples = whole, len(chosen)
        self._mask = np.zeros(whole.examples, dtype=bool)
        self._mask[chosen] = True
        if whole._whole is not None:
            self._given = self._taken(whole._given, 0)
            self._whole = tree_map(self._place, self._given)

    def __iter__(self) -> Generator[Any, None, None]:
        """Yield the batches of one pass."""
        return super().__iter__() if self._whole is not None else self._cut(iter(self._from))

    def _as_given(self) -> Generator[Any, None, None]:
        return super()._as_given() if self._whole is not None else self._cut(self._from._as_given())

    def _cut(self, batches: Generator[Any, None, None]) -> Generator[Any, None, None]:
        start = 0
        with closing(batches):
            for batch in batches:
                count = count_examples(batch)
                if self._mask[start : start + count].any():
                    yield self._taken(batch, start)
                start += count

    def _taken(self, batch: Any, start: int) -> Any:
        index = torch.from_numpy(np.flatnonzero(self._mask[start : start + count_examples(batch)]))
        return tree_map(lambda t: t[index.to(t.device)] if isinstance(t, Tensor) and t.ndim else t, batch)


_END = object()


def _plain(leaf: Any) -> Any:
    """Open the tokenizers' own dictionaries, unknown to pytree."""
    return tree_map(_plain, dict(leaf)) if isinstance(leaf, Mapping) else leaf


def _inputs_and_targets(first: Tensor, second: Tensor) -> bool:
    """Tell two tensors that belong side by side from two batches of one tensor each."""
    return len(first) == len(second) and (first.shape[1:] != second.shape[1:] or first.dtype != second.dtype)


def _slice(batch: Any, start: int, stop: int) -> Any:
    return tree_map(lambda t: t[start:stop] if isinstance(t, Tensor) and t.ndim else t, batch)


def _join(first: Any, second: Any) -> Any:
    return tree_map(lambda a, b: torch.cat([a, b]) if isinstance(a, Tensor) and a.ndim else a, first, second)


def _one_length(data: Any) -> Any:
    tensors = leaves(data)
    if not tensors:
        raise TypeError("data must hold tensors; for arrays use torch.as_tensor(array) first")
    lengths = sorted({len(t) if t.ndim else 0 for t in tensors})
    if len(lengths) != 1:
        raise ValueError(f"the tensors in data must have the same number of examples (first dimension), got {lengths}")
    return data


def _default_batch_size(data: Any, device: torch.device) -> int:
    elements = max(leaves(data)[0][:1].numel(), 1)
    budget = _GPU_BATCH_ELEMENTS if device.type == "cuda" else _CPU_BATCH_ELEMENTS
    return max(
        32,
        min(
            1024 if device.type != "cuda" else 8192,
            2 ** ((budget // elements).bit_length() - 1 if budget >= elements else 0),
        ),
    )
