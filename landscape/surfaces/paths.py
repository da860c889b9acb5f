"""The loss along paths: straight lines between checkpoints, curves with bends, training trajectories; and loss barriers.

As on surfaces the data loop is outside and the loop over points inside. The losses of every batch at every point are kept, so that errors
of differences, such as barriers, come from the same examples at both places.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from landscape.batches import Batches, count_examples
from landscape.intervals import spread_to_stderr
from landscape.objective import Held, Objective, Parameters, tensors_sha256
from landscape.progress import progress as progress_bar
from landscape.results import store
from landscape.results.types import Array, LossPath, Provenance
from landscape.stateless import undisturbed
from landscape.surfaces.alignment import aligned
from landscape.surfaces.curves import CurveType, coefficients, place
from landscape.surfaces.statistics import Recomputed
from landscape.surfaces.weights import Point, Weights, difference, dot, statistics_names, weights_of

Statistics = Literal["interpolate", "recompute"]


@dataclass(frozen=True)
class Losses:
    """Losses of every batch at n points, and what follows from them."""

    each: Array  # (batches, n)
    weights: NDArray[np.float64]  # (batches,)
    loss: Array  # (n,), NaN where it is not finite
    accuracy: Array  # (n,)

    def stderr(self, of: Array | None = None) -> Array:
        """Return standard errors (n,) of the mean over batches of the losses, or of other values (batches, n); see `spread_to_stderr`."""
        values = self.each if of is None else of
        with np.errstate(invalid="ignore", over="ignore"):
            mean = self.weights @ values / self.weights.sum()
            spread = np.sqrt((self.weights**2) @ (values - mean) ** 2)
            return np.where(np.isfinite(self.loss), spread_to_stderr(self.weights) * spread, np.nan)

    def gap(self, t: Array) -> tuple[Array, Array]:
        """Return L(t) - ((1 - t) L(0) + t L(1)) and its standard error, paired: the gap of each batch by itself."""

        def above(values: Array) -> Array:
            gap = values - ((1 - t) * values[..., :1] + t * values[..., -1:])
            gap[..., [0, -1]] = 0 * values[..., [0, -1]]  # the chord meets the curve there
            return gap

        with np.errstate(invalid="ignore", over="ignore"):
            return above(self.loss), self.stderr(above(self.each))


def linear_path(
    objective: Objective,
    a: Point,
    b: Point,
    points: int = 25,
    *,
    align: bool = False,
    statistics: Statistics = "interpolate",
    statistics_data: Any = None,
    seed: int = 0,
    out: str | Path | None = None,
    name: str | None = None,
    progress: bool | None = None,
) -> LossPath:
    r"""Evaluate the loss on the straight line between two points, w(t) = (1 - t) a + t b, and its barrier.

    The barrier is max_t L(w(t)) - ((1 - t) L(a) + t L(b)) (Entezari et al. 2022), 0 where the loss never rises above the chord.

    Args:
        objective: the loss; its model is not written to.
        a: where the path begins: a model, a state_dict or a dictionary of parameters.
        b: where it ends.
        points: how many, evenly spaced and with both ends.
        align: permute the units of b first, such that its weights come as near as they can to those of a; see `aligned`.
        statistics: of batch norm in evaluation mode. "interpolate" mixes the running statistics of the ends like the weights; "recompute"
            computes them anew at every point, the ends too, which costs a second pass and gives lower curves. Nothing without batch norm.
        statistics_data: what to compute them on, as `Objective` takes data; by default the objective's own. Training data is usual.
        seed: of the order in which layers are aligned.
        out: result file to keep the path in.
        name: of the path in that file; "linear" or "aligned" by default.
        progress: show a bar; None shows it on a terminal.

    Returns:
        The path, with `.t`, `.loss`, `.accuracy`, `.stderr`, `.gap` and `.barrier` with `.barrier_stderr`. Points that do not fit the
        objective, options outside what is allowed, and models that cannot be aligned are a ValueError.
    """
    check_options(points, statistics)
    if out is not None:
        store.check_writable(out)
    ends = [weights_of(objective, a, "a"), weights_of(objective, b, "b")]
    meter = objective.meter()
    if align:
        ends[1] = aligned(objective, ends[0], ends[1], seed=seed)
    path = curve_path(
        objective,
        ends,
        "linear",
        points,
        name=name or ("aligned" if align else "linear"),
        statistics=statistics,
        statistics_data=statistics_data,
        seed=seed,
        further={"aligned": align},
        progress=progress,
    )
    path = replace(path, cost=meter.cost())
    if out is not None:
        store.save(out, path)
    return path


def curve_path(
    objective: Objective,
    corners: Sequence[Weights],
    curve: CurveType,
    points: int,
    *,
    name: str,
    statistics: Statistics,
    statistics_data: Any,
    seed: int | None,
    further: dict[str, Any],
    progress: bool | None,
) -> LossPath:
    """Return the losses along a curve through corners, without its cost; see `linear_path`."""
    t = np.linspace(0, 1, points)
    shares = coefficients(curve, len(corners), t)
    losses = losses_along(objective, corners, shares, statistics, statistics_data, f"path {name}", progress)
    gap, gap_stderr = losses.gap(t)
    ends = (corners[0], corners[-1])
    length = difference(ends[1].parameters, ends[0].parameters)
    described = {
        "type": curve,
        "bends": len(corners) - 2,
        "ends_sha256": [tensors_sha256(end.parameters | end.statistics) for end in ends],
        "distance": float(dot(length, length)) ** 0.5,
        "statistics": statistics if statistics_names(objective) else None,
        "batch_size": objective.batches.batch_size,
    }
    return LossPath(
        name,
        t,
        None,
        losses.loss,
        losses.accuracy,
        losses.stderr(),
        described | further,
        gap,
        gap_stderr,
        provenance=provenance_of(objective, statistics, seed),
    )


def provenance_of(objective: Objective, statistics: Statistics, seed: int | None) -> Provenance:
    """Return the objective's provenance, which says so where running statistics are not the models' own."""
    found = objective.provenance(seed)
    if statistics == "interpolate" or not statistics_names(objective):
        return found
    return replace(found, batch_norm="recomputed", batch_size=objective.batches.batch_size)


def losses_along(
    objective: Objective,
    corners: Sequence[Weights],
    shares: NDArray[np.float64],
    statistics: Statistics,
    statistics_data: Any,
    title: str,
    show: bool | None,
) -> Losses:
    """Evaluate the objective at sums of corners.

    Args:
        objective: the loss.
        corners: points with their running statistics.
        shares: (n, corners) coefficients; each row is a point.
        statistics: mix the running statistics like the weights, or compute them anew at each point.
        statistics_data: to compute them on; None for the objective's.
        title: of the progress bar.
        show: the bar; None on a terminal.

    Returns:
        The losses of each batch at each point; a loss that is not finite is NaN in the mean.
    """
    names = statistics_names(objective)
    anew = statistics == "recompute" and bool(names)
    points = [corner.parameters for corner in corners]
    here = {name: torch.empty_like(p) for name, p in points[0].items()}
    device = objective.device
    rows: list[Tensor] = []
    weights: list[float] = []
    right = torch.zeros(len(shares), dtype=torch.float64, device=device)
    total = torch.zeros(len(shares), dtype=torch.float64, device=device)
    classified, examples = True, 0
    with undisturbed(device), progress_bar(objective.examples * len(shares) * (1 + anew), title, "example", show=show) as bar:
        held = objective.held()
        statistics_here = {name: (held.fixed | held.written)[name].clone() for name in names}
        fixed, written = ({n: statistics_here.get(n, t) for n, t in tensors.items()} for tensors in held)
        call = objective.bound(here, held=Held(fixed, written))
        of_point: list[Parameters] = []
        if anew:
            data = None if statistics_data is None else _batches(objective, statistics_data)
            recomputed = Recomputed(objective, data)
            for c in shares:
                place(points, c, here)
                of_point.append(recomputed.at(here, names))
                bar.update(objective.examples)
        else:
            for c in shares:
                mixed = {name: torch.empty_like(corners[0].statistics[name]) for name in names}
                place([corner.statistics for corner in corners], c, mixed)
                of_point.append(mixed)
        with closing(objective.batches.seeded()) as batches:
            for index, batch in batches:
                n, size = objective.weight(batch), count_examples(batch)
                row, rights = [], []
                for c, of in zip(shares, of_point, strict=True):
                    place(points, c, here)
                    place([of], [1.0], statistics_here)
                    loss, outputs = call(batch, index)
                    row.append(loss.double())
                    rights.append(objective.batch_correct(outputs, batch))
                    bar.update(size)
                rows.append(torch.stack(row))
                total += rows[-1] * n  # in the order of `Objective.evaluate`: the ends are its losses to the bit
                found = [r for r in rights if r is not None]
                classified = classified and len(found) == len(rights)
                if classified:
                    right += torch.stack(found)
                weights.append(n)
                examples += size
    objective.count("forwards", examples * len(shares))
    mean = (total / sum(weights)).cpu().numpy()
    fraction = (right / examples).cpu().numpy() if classified else np.full(len(shares), np.nan)
    finite = np.isfinite(mean)
    each = torch.stack(rows).cpu().numpy()
    return Losses(each, np.array(weights), np.where(finite, mean, np.nan), np.where(finite, fraction, np.nan))


def _batches(objective: Objective, data: Any) -> Batches:
    size = objective.batches.batch_size or None
    return Batches(data, batch_size=size, device=objective.device, dtype=objective.batches.dtype)


def check_options(points: int, statistics: str) -> None:
    """Check the options that every path has.

    Raises:
        ValueError: one is not allowed.
    """
    if isinstance(points, bool) or not isinstance(points, int) or points < 2:
        raise ValueError(f"points must be an integer of at least 2, got {points!r}")
    if statistics not in ("interpolate", "recompute"):
        raise ValueError(f"statistics must be 'interpolate' or 'recompute', got {statistics!r}")
