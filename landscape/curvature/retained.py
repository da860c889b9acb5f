"""How much memory a graph of autograd holds on to, and how much it may."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_CPU_BUDGET = 2 * 2**30
_GPU_SHARE = 0.5


def default_budget(device: torch.device) -> float:
    """Return the bytes that kept graphs may take: 2 GiB, or half of what is free on a GPU."""
    return _GPU_SHARE * torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else _CPU_BUDGET


class Retained(TorchDispatchMode):
    """Counts the bytes of tensors made inside that are still alive afterwards."""

    def __init__(self) -> None:
        super().__init__()
        self._made: dict[int, tuple[StorageWeakRef, int]] = {}

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # or the first operation imports the compiler: seconds

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {t.untyped_storage()._cdata for t in tree_leaves(args) if isinstance(t, Tensor) and t.layout is torch.strided}
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and tensor.layout is torch.strided:
                storage = tensor.untyped_storage()
                if storage._cdata not in given:  # views and in-place results are nothing new
                    self._made[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        return result

    def nbytes(self) -> int:
        """Return the bytes that are still alive."""
        return sum(size for reference, size in self._made.values() if not reference.expired())
