"""The loss along straight lines and curves between two points, and its barrier."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np

from landscape.batches import Batches
from landscape.objective import Objective, tensors_sha256
from landscape.results import store
from landscape.results.names import escape_name
from landscape.results.types import Array, Cost, LossPath, Provenance
from landscape.stateless import undisturbed
from landscape.surfaces.alignment import aligned
from landscape.surfaces.along import Losses, Statistics, losses_along
from landscape.surfaces.curves import CurveType, coefficients
from landscape.surfaces.over_ranks import Dealer
from landscape.surfaces.unfinished import Unfinished, differing, question
from landscape.surfaces.weights import Point, Weights, difference, dot, statistics_names, weights_of


@dataclass(frozen=True)
class Run:
    """What all kinds of paths share: options, the ranks that take part, and the file."""

    objective: Objective
    name: str
    statistics: Statistics
    statistics_data: Batches | None
    dealer: Dealer | None
    out: Path | None  # of the rank that writes
    resume: bool
    save_every: float
    show: bool | None

    def unfinished(self, places: Sequence[Weights], path: str, at: Sequence[float], seed: int | None, **options: Any) -> Unfinished | None:
        """Return what is kept until the path is complete; None without a file.

        Args:
            places: the ends of the path, or its steps.
            path: its type.
            at: the points on it.
            seed: of its random numbers.
            options: all else that its numbers depend on.

        Returns:
            The state to go on from.

        Raises:
            ValueError: the ranks were given different things, or the state is that of another path.
        """
        data = None if self.statistics_data is None else self.statistics_data.sha256
        named = {"seed": seed, "statistics": self.statistics, "statistics_data": data, "options": options}
        asked = question(self.objective, places, path, at, **named)
        if self.dealer is not None:
            differ = differing(asked, self.dealer.agreed(asked))
            if differ:
                raise ValueError(f"rank {self.dealer.rank} was given other {' and '.join(differ)} than rank 0: give all of them the same")
        return None if self.out is None else Unfinished(self.out, self.name, asked, every=self.save_every, resume=self.resume)

    def losses(self, corners: Sequence[Weights], shares: Array, title: str, stage: str, unfinished: Unfinished | None) -> Losses:
        """Return the losses at sums of corners; see `losses_along`."""
        return losses_along(
            self.objective,
            corners,
            shares,
            self.statistics,
            self.statistics_data,
            title,
            self.show,
            stage=stage,
            unfinished=unfinished,
            dealer=self.dealer,
        )

    def save(self, unfinished: Unfinished | None, *paths: LossPath) -> None:
        """Put complete paths into the file."""
        if self.out is not None:
            for path in paths:
                store.save(self.out, path)
        if unfinished is not None:
            unfinished.finish()


@contextlib.contextmanager
def started(
    objective: Objective,
    name: str,
    *,
    points: int = 2,
    statistics: Statistics,
    statistics_data: Any,
    out: str | Path | None,
    resume: bool,
    save_every: float,
    ranks: bool,
    progress: bool | None,
) -> Iterator[Run]:
    """Check the options that every path has, and let the other ranks know if this one fails.

    Yields:
        What the path needs of them.

    Raises:
        ValueError: an option is not allowed.
    """
    escape_name(name)
    if isinstance(points, bool) or not isinstance(points, int) or points < 2:
        raise ValueError(f"points must be an integer of at least 2, got {points!r}")
    if statistics not in ("interpolate", "recompute"):
        raise ValueError(f"statistics must be 'interpolate' or 'recompute', got {statistics!r}")
    if statistics_data is not None and statistics != "recompute":
        raise ValueError("statistics_data are read with statistics='recompute' only; leave them out, or ask for that")
    if not (isinstance(save_every, Real) and save_every >= 0):
        raise ValueError(f"save_every must be a number of seconds, got {save_every!r}")
    size = objective.batches.batch_size or None
    data = (
        Batches(statistics_data, batch_size=size, device=objective.device, dtype=objective.batches.dtype)
        if statistics_data is not None
        else None
    )
    dealer = Dealer() if ranks else None
    with undisturbed(objective.device):
        try:
            writes = out is not None and (dealer is None or dealer.leads)
            if writes:
                store.check_writable(out)
            yield Run(objective, name, statistics, data, dealer, Path(out) if writes else None, resume, float(save_every), progress)
        except BaseException as error:
            if dealer is not None:
                dealer.fail(error)
            raise


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
    resume: bool = True,
    save_every: float = 5.0,
    ranks: bool = False,
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
        resume: go on with this path where a process that was killed or interrupted left it, in a file beside `out`; False begins anew.
        save_every: seconds between savings of how far it has come, at least.
        ranks: share the points out among the processes that torchrun started; every one must call this with the same arguments, on all of
            the data. The first one reads and writes the file, all return the path.
        progress: show a bar; None shows it on a terminal.

    Returns:
        The path, with `.t`, `.loss`, `.accuracy`, `.stderr`, `.gap` and `.barrier` with `.barrier_stderr`. Points that do not fit the
        objective, options outside what is allowed, and models that cannot be aligned are a ValueError.
    """
    name = name or ("aligned" if align else "linear")
    options: dict[str, Any] = {"statistics": statistics, "statistics_data": statistics_data, "progress": progress}
    kept: dict[str, Any] = {"out": out, "resume": resume, "save_every": save_every, "ranks": ranks}
    with started(objective, name, points=points, **options, **kept) as run:
        ends = [weights_of(objective, a, "a"), weights_of(objective, b, "b")]
        meter = objective.meter()
        unfinished = run.unfinished(ends, "linear", np.linspace(0, 1, points).tolist(), seed, align=align)
        if align:
            ends[1] = aligned(objective, ends[0], ends[1], seed=seed)
        path, seconds = curve_path(run, ends, "linear", points, seed=seed, further={"aligned": align}, unfinished=unfinished)
        path = replace(path, cost=replace(path.cost, seconds=seconds + meter.cost().seconds))
        run.save(unfinished, path)
    return path


def curve_path(
    run: Run,
    corners: Sequence[Weights],
    curve: CurveType,
    points: int,
    *,
    seed: int | None,
    further: dict[str, Any],
    unfinished: Unfinished | None,
    name: str | None = None,
    stage: str = "path",
) -> tuple[LossPath, float]:
    """Return the losses along a curve through corners, with its forward passes but not its seconds; and those spent before an interrupt."""
    objective, name, t = run.objective, name or run.name, np.linspace(0, 1, points)
    losses = run.losses(corners, coefficients(curve, len(corners), t), f"path {name}", stage, unfinished)
    gap, gap_stderr = losses.gap(t)
    ends = (corners[0], corners[-1])
    length = difference(ends[1].parameters, ends[0].parameters)
    described = {
        "type": curve,
        "bends": len(corners) - 2,
        "ends_sha256": [tensors_sha256(end.parameters | end.statistics) for end in ends],
        "distance": float(dot(length, length)) ** 0.5,
        "statistics": run.statistics if statistics_names(objective) else None,
        "batch_size": objective.batches.batch_size,
    }
    path = LossPath(
        name,
        t,
        None,
        losses.loss,
        losses.accuracy,
        losses.stderr(),
        described | further,
        gap,
        gap_stderr,
        cost=Cost(forwards=losses.forwards),
        provenance=provenance_of(objective, run.statistics, seed),
    )
    return path, losses.seconds_before


def provenance_of(objective: Objective, statistics: Statistics, seed: int | None) -> Provenance:
    """Return the objective's provenance, which says so where running statistics are not the models' own."""
    found = objective.provenance(seed)
    if statistics == "interpolate" or not statistics_names(objective):
        return found
    return replace(found, batch_norm="recomputed", batch_size=objective.batches.batch_size)
