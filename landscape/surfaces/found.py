"""What is found at points on one batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Found(NamedTuple):
    """Of g points on one batch; or of one point, without the last dimension."""

    loss: Tensor  # (g,) float64, the mean over the batch
    right: Tensor | None  # (g,) float64, how many examples are classified correctly; None without classes
    metrics: Tensor | None  # (m, g) float64, means over the batch; None if there are none


def collected(found: Sequence[Found]) -> Found:
    """Return what was found at single points as one."""
    rights = [one.right for one in found if one.right is not None]
    metrics = [one.metrics for one in found if one.metrics is not None]
    return Found(
        torch.stack([one.loss for one in found]).double(),
        torch.stack(rights).double() if len(rights) == len(found) else None,
        torch.stack(metrics, 1) if metrics else None,
    )


def joined(found: Sequence[Found]) -> Found:
    """Return what was found at several lots of points as one."""
    rights = [lot.right for lot in found if lot.right is not None]
    metrics = [lot.metrics for lot in found if lot.metrics is not None]
    return Found(
        torch.cat([lot.loss for lot in found]),
        torch.cat(rights) if len(rights) == len(found) else None,
        torch.cat(metrics, 1) if metrics else None,
    )
