"""How far losses in a lower precision are from those in full precision: measured at a handful of points, on all of the data."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from landscape.batches import count_examples
from landscape.objective import Objective
from landscape.results.types import Array
from landscape.surfaces.adaptive import Scale
from landscape.surfaces.points import Evaluator, Point

PRECISIONS = {"bf16": torch.bfloat16}
LIMIT = 0.05  # of the bound: what is worse is no loss surface any more

# Rounding errors are much alike at all points, but the largest of thousands is larger than that of ten.
SAFETY = 2.5
_LOWEST, _SPREAD = 8, 16  # of the points looked at after the work


class Difference(NamedTuple):
    """Between losses in a lower precision and in full precision, relative."""

    largest: float
    at: Point


def probes(xs: Array, ys: Array | None) -> list[Point]:
    """Return corners and middle of a grid, or ends and middle of a line: looked at before the work."""
    ends = [(float(x), float(y)) for y in ((0.0,) if ys is None else (ys[0], ys[-1])) for x in (xs[0], xs[-1])]
    return [*ends, (float(xs[(len(xs) - 1) // 2]), 0.0 if ys is None else float(ys[(len(ys) - 1) // 2]))]


def lowest_and_spread(loss: Array) -> NDArray[np.intp]:
    """Return the places of the lowest losses, where relative errors are largest, and of some from each part of their range."""
    places = np.argsort(np.where(np.isfinite(loss), loss, np.inf), kind="stable")[: int(np.isfinite(loss).sum())]
    ranks = np.concatenate([np.arange(min(_LOWEST, len(places))), np.round(np.linspace(0, len(places) - 1, _SPREAD)).astype(int)])
    return places[np.unique(ranks)] if len(places) else places


def mean_losses(objective: Objective, evaluate: Evaluator, points: Sequence[Point]) -> Array:
    """Return the losses (g,) of points over all of the data; the caller keeps `undisturbed`."""
    total, weight = torch.zeros(len(points), dtype=torch.float64, device=objective.device), 0.0
    with closing(objective.batches.seeded()) as batches:
        for index, batch in batches:
            n = objective.weight(batch)
            total += n * evaluate(batch, index, points).loss
            weight += n
            objective.count("forwards", len(points) * count_examples(batch))
    return (total / weight).cpu().numpy()


def difference(points: Sequence[Point], low: Array, exact: Array) -> Difference:
    """Return the largest relative difference and where it is: infinite where only the exact loss is finite.

    Relative to |L|; where there are losses that are not positive, to sqrt(L^2 + s^2), s a tenth of the median |L|.
    """
    finite = np.isfinite(exact)
    if not finite.any():
        return Difference(0.0, points[0])
    size = np.hypot(exact[finite], Scale.of(exact[finite]).small)
    off = np.zeros(len(exact))
    off[finite] = np.nan_to_num(np.abs(low[finite] - exact[finite]) / size, nan=np.inf)
    worst = int(np.argmax(off))
    return Difference(float(off[worst]), points[worst])


def check(found: Difference, name: str) -> None:
    """Refuse a lower precision that changes losses by too much.

    Raises:
        ValueError: the bound is above the limit.
    """
    bound = SAFETY * found.largest
    if not bound <= LIMIT:
        where = ", ".join(f"{v:.4g}" for v in found.at)
        raise ValueError(
            f"precision={name!r} changes the loss at ({where}) by {100 * found.largest:.2g} %, so that {100 * bound:.2g} % must be "
            f"expected elsewhere, and at most {100 * LIMIT:g} % are allowed: leave precision out"
        )
