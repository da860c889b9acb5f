"""Rows of a table that processes ("ranks") compute each for themselves and gather in one message."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
import torch.distributed as dist

from landscape.results.types import Array
from sam_core import ranks


class Rows:
    """What this rank has computed; after the gathering, what all have."""

    values: Array
    weights: Array

    def append(self, values: Array, weights: Array) -> None:
        """Keep values (rows, columns) and weights (rows,)."""
        self.values, self.weights = values, weights


class Share:
    """The rows that are this rank's: every world-th, from its own number on. Without ranks, all.

    Args:
        dealt: share the rows out; every rank must ask for the same ones, on the same data.

    Raises:
        ValueError: they are to be dealt out, and there are no ranks.
    """

    def __init__(self, dealt: bool) -> None:
        if dealt and not ranks.meeting():
            raise ValueError("ranks=True needs an initialised torch.distributed: start with torchrun and call init_process_group")
        self._dealt = dealt
        self.mine = slice(dist.get_rank(), None, dist.get_world_size()) if dealt else slice(0, None, 1)

    @contextmanager
    def gathering(self, count: int, device: torch.device) -> Iterator[Rows]:
        """Give rows to fill; on leaving they are those of all ranks. If a rank fails, all do.

        Args:
            count: rows of all ranks.
            device: that messages go through.

        Yields:
            This rank's rows.

        Raises:
            RuntimeError: another rank failed.
        """
        rows = Rows()
        if not self._dealt:
            yield rows
            return
        try:
            yield rows
        except BaseException:
            ranks.sum_(torch.tensor([1.0, 0.0], dtype=torch.float64, device=device))
            raise
        width = rows.values.shape[1] if len(rows.values) else 0
        failed, widths = ranks.sum_(torch.tensor([0.0, width], dtype=torch.float64, device=device)).tolist()
        if failed:
            raise RuntimeError("another rank failed; its own message says why")
        owners = min(count, dist.get_world_size())
        columns = round(widths / owners)
        table = np.zeros((count, columns + 1))
        if len(rows.values):
            table[self.mine] = np.column_stack([rows.values, rows.weights])
        # NaN times zero is NaN: only this rank's rows are its own, zeros elsewhere.
        whole = ranks.sum_(torch.from_numpy(table).to(device)).cpu().numpy()
        rows.append(whole[:, :columns], whole[:, columns])
