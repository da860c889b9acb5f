"""A surface computed by several processes ("ranks"): pieces of a round are handed out as they are asked for, and the first rank collects.

What is handed out, and what comes back, goes through the key-value store at which the ranks met, so that nobody waits for anybody but for
the end of a round. A rank that fails says so there, and all of them fail.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any, TypeVar

import numpy as np
import torch.distributed as dist
from numpy.typing import NDArray

from landscape.results.types import Array
from sam_core import ranks

Given = TypeVar("Given")
Places = NDArray[np.intp]
_PIECES = 8  # of a round, for each rank: the last ones even out who is slow
_LOOK = 0.02  # seconds between looks at what has come back

_made = 0  # surfaces of this process: all ranks compute the same ones, in the same order


class RankFailedError(RuntimeError):
    """Another rank could not compute its part of a surface."""


class Dealer:
    """Deals pieces of points out among the ranks.

    Raises:
        ValueError: there are no ranks.
    """

    def __init__(self) -> None:
        global _made
        if not ranks.meeting():
            raise ValueError("ranks=True needs an initialised torch.distributed: start with torchrun and call init_process_group")
        _made += 1
        self.rank, self.world = dist.get_rank(), dist.get_world_size()
        self.leads = self.rank == 0
        self._store: Any = dist.distributed_c10d.PrefixStore(f"landscape/surface/{_made}", dist.distributed_c10d._get_default_store())

    def agreed(self, given: Given) -> Given:
        """Return what the first rank gives."""
        box = [given]
        dist.broadcast_object_list(box, 0)
        return box[0]

    def pieces(self, places: Places) -> list[Places]:
        """Return the pieces of a round, the same in every rank."""
        return np.array_split(places, max(1, min(len(places), _PIECES * self.world)))

    def mine(self, round_: int, count: int) -> Iterator[int]:
        """Yield the numbers of pieces that fall to this rank, one after the other."""
        while (i := self._store.add(f"{round_}/next", 1) - 1) < count:
            yield i

    def hand_in(self, name: str, values: Array) -> None:
        """Give numbers to whoever asks for them by this name."""
        self._store.set(name, np.ascontiguousarray(values, dtype=np.float64).tobytes())

    def there(self, name: str) -> bool:
        """Say whether somebody has handed that in."""
        return bool(self._store.check([name]))

    def taken(self, name: str, shape: tuple[int, ...]) -> Array:
        """Return the numbers of that name, when they are there.

        Raises:
            RankFailedError: a rank failed before.
        """
        while not self.there(name):
            if self.there("failed"):
                raise RankFailedError(self._store.get("failed").decode())
            time.sleep(_LOOK)
        return np.frombuffer(self._store.get(name), dtype=np.float64).reshape(shape).copy()

    def fail(self, error: BaseException) -> None:
        """Tell the others."""
        if not isinstance(error, RankFailedError):
            said = " ".join(str(error).split())
            self._store.set("failed", f"rank {self.rank} failed: {type(error).__name__}: {said}".encode())
