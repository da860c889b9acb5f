"""Progress bars: on the first rank only, and quiet when nobody looks at stderr."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from typing import Any

import torch.distributed
from tqdm import tqdm


def progress(over: Iterable[Any] | int | None, desc: str, unit: str = "it", *, show: bool | None = None) -> tqdm:
    """Return a tqdm bar with the time left.

    Args:
        over: what to iterate over; or the number of steps, for a bar that is moved by `update()`; None if that is not known.
        desc: what is being done, in a word or two.
        unit: what is counted.
        show: True or False to force; None shows it on rank 0 if stderr is a terminal.

    Returns:
        The bar: an iterable and a context manager.
    """
    if show is None:
        show = _rank() == 0 and sys.stderr.isatty()
    source = {"total": over} if over is None or isinstance(over, int) else {"iterable": over}
    return tqdm(**source, desc=desc, unit=unit, disable=not show, dynamic_ncols=True, leave=False, file=sys.stderr)


def _rank() -> int:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank()
    return int(os.environ.get("RANK", "0"))
