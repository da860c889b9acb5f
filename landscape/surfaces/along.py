"""Losses at points that are sums of a few others: data outside, points inside, as on surfaces.

The losses of every batch at every point are kept, so that errors of differences, such as barriers, come from the same examples at both
places. They are the checkpoint too, and what ranks send each other.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from landscape.batches import Batches, count_examples, seed_everything
from landscape.intervals import spread_to_stderr
from landscape.objective import Held, Objective, Parameters
from landscape.progress import progress as progress_bar
from landscape.results.types import Array
from landscape.stateless import undisturbed
from landscape.surfaces.curves import place
from landscape.surfaces.over_ranks import Dealer
from landscape.surfaces.statistics import Recomputed
from landscape.surfaces.unfinished import Stage, Unfinished
from landscape.surfaces.weights import Weights, statistics_names

Statistics = Literal["interpolate", "recompute"]


@dataclass(frozen=True)
class Losses:
    """Losses of every batch at n points, and what follows from them."""

    each: Array  # (batches, n)
    weights: NDArray[np.float64]  # (batches,)
    loss: Array  # (n,), NaN where it is not finite
    accuracy: Array  # (n,)
    forwards: float  # passes over the data that they took, those before an interrupt too
    seconds_before: float  # that were spent before an interrupt

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


def losses_along(
    objective: Objective,
    corners: Sequence[Weights],
    shares: NDArray[np.float64],
    statistics: Statistics,
    statistics_data: Batches | None,
    title: str,
    show: bool | None,
    *,
    stage: str = "path",
    unfinished: Unfinished | None = None,
    dealer: Dealer | None = None,
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
        stage: what these losses are called where they are kept, and among ranks.
        unfinished: where they are kept on the way; only on the first rank.
        dealer: deals the points out among ranks.

    Returns:
        The losses of each batch at each point; a loss that is not finite is NaN in the mean.
    """
    begun = None if unfinished is None else unfinished.stage(stage)
    if dealer is not None:  # running statistics are large, and computed again where they are needed
        begun = dealer.agreed(begun and begun | {"running": {}})
    along = _Along(objective, corners, shares, statistics, statistics_data, begun)
    examples = objective.examples
    with undisturbed(objective.device), progress_bar(examples * along.steps, title, "example", show=show) as bar:
        bar.update(along.done)

        def tick() -> None:
            bar.update(along.done - bar.n)
            if unfinished is not None:
                unfinished.keep(stage, along.state)

        try:
            if dealer is None:
                along.evaluate(range(len(shares)), tick)
            else:
                along.share(dealer, stage, tick)
        except BaseException:
            if unfinished is not None:
                unfinished.keep(stage, along.state, now=True)
            raise
    if unfinished is not None:
        unfinished.note(stage, along.state())
    return along.losses()


class _Along:
    """The losses as far as they are known; the caller keeps `undisturbed`."""

    def __init__(
        self,
        objective: Objective,
        corners: Sequence[Weights],
        shares: NDArray[np.float64],
        statistics: Statistics,
        statistics_data: Batches | None,
        begun: Stage | None,
    ) -> None:
        self._objective, self._corners, self._shares = objective, corners, shares
        self._names = statistics_names(objective)
        self._anew = statistics == "recompute" and bool(self._names)
        self._statistics_data = statistics_data
        self._found: list[dict[int, Tensor]] = []  # for every batch, by point: loss and right answers (2,), in float64
        self._running: dict[int, Parameters] = {}  # running statistics by point
        self._weights: list[float] = []  # of the batches
        self._sizes: list[int] = []
        self._forwards, self._before, self._started = 0, 0.0, time.perf_counter()  # examples; seconds
        self.done = 0  # examples, of `examples * steps`
        if begun is not None:
            self._fill(begun["values"].numpy(), begun["known"].numpy())
            self._running = {k: {n: t.to(objective.device) for n, t in of.items()} for k, of in begun["running"].items()}
            self._forwards, self._before, self.done = begun["forwards"], begun["seconds"], begun["done"]

    @property
    def steps(self) -> int:
        """How many passes over the data are to be made."""
        return len(self._shares) * (1 + self._anew)

    def state(self) -> Stage:
        """Return what `begun` takes; also right after an interrupt."""
        values, known = self._values(range(len(self._shares)), len(self._found))
        running = {k: {n: t.cpu() for n, t in of.items()} for k, of in self._running.items()} if self._anew else {}
        spent = {"forwards": self._forwards, "seconds": self._before + time.perf_counter() - self._started, "done": self.done}
        return {"values": torch.from_numpy(values), "known": torch.from_numpy(known), "running": running, **spent}

    def _values(self, points: Sequence[int], batches: int) -> tuple[Array, NDArray[np.bool_]]:
        """Return losses and right answers (2, batches, n) of some points, and which (batches, n) are known."""
        blank = torch.full((2,), math.nan, dtype=torch.float64, device=self._objective.device)
        rows = [[row.get(k, blank) for k in points] for row in self._found[:batches]]
        known = np.array([[k in row for k in points] for row in self._found[:batches]], dtype=bool).reshape(-1, len(points))
        if not rows or not len(points):
            return np.empty((2, len(rows), len(points))), known
        return torch.stack([torch.stack(row) for row in rows]).movedim(-1, 0).cpu().numpy(), known

    def _fill(self, values: Array, known: NDArray[np.bool_], points: Sequence[int] | None = None) -> None:
        """Take over what `_values` returned."""
        moved = torch.from_numpy(np.ascontiguousarray(np.moveaxis(values, 0, -1))).to(self._objective.device)
        points = range(len(self._shares)) if points is None else points
        for b, row in enumerate(known):
            if b == len(self._found):
                self._found.append({})
            self._found[b] |= {k: moved[b, i] for i, k in enumerate(points) if row[i]}

    def evaluate(self, chosen: Iterable[int], tick: Callable[[], None]) -> None:
        """Evaluate some points on all batches, apart from what is known."""
        objective, chosen = self._objective, list(chosen)
        points = [corner.parameters for corner in self._corners]
        here = {name: torch.empty_like(p) for name, p in points[0].items()}
        self._put_statistics(chosen, points, here, tick)
        held = objective.held()
        running = {name: (held.fixed | held.written)[name].clone() for name in self._names}
        fixed, written = ({n: running.get(n, t) for n, t in tensors.items()} for tensors in held)
        call = objective.bound(here, held=Held(fixed, written))
        no_answer = torch.full((), math.nan, dtype=torch.float64, device=objective.device)
        with closing(objective.batches.seeded()) as batches:
            for index, batch in batches:
                size = count_examples(batch)
                if index == len(self._weights):
                    self._weights.append(objective.weight(batch))
                    self._sizes.append(size)
                if index == len(self._found):
                    self._found.append({})
                row = self._found[index]
                for k in chosen:
                    if k in row:
                        continue
                    place(points, self._shares[k], here)
                    place([self._running[k]], [1.0], running)
                    seed_everything(index, objective.device)  # a model that draws draws the same at every point
                    loss, outputs = call(batch, index)
                    right = objective.batch_correct(outputs, batch)
                    row[k] = torch.stack([loss.double(), no_answer if right is None else right.double()])
                    objective.count("forwards", size)
                    self._forwards += size
                    self.done += size
                    tick()

    def _put_statistics(self, chosen: Sequence[int], points: Sequence[Parameters], here: Parameters, tick: Callable[[], None]) -> None:
        """Put down the running statistics of some points."""
        recomputed = Recomputed(self._objective, self._statistics_data) if self._anew else None
        mixing = [corner.statistics for corner in self._corners]
        for k in chosen:
            if k in self._running:
                continue
            if recomputed is None:
                mixed = {name: torch.empty_like(mixing[0][name]) for name in self._names}
                place(mixing, self._shares[k], mixed)
                self._running[k] = mixed
                continue
            meter = self._objective.meter()
            place(points, self._shares[k], here)
            self._running[k] = recomputed.at(here, self._names)
            self._forwards += round(meter.cost().forwards * self._objective.examples)
            self.done += self._objective.examples
            tick()

    def share(self, dealer: Dealer, stage: str, tick: Callable[[], None]) -> None:
        """Evaluate all points together with other ranks."""
        with closing(iter(self._objective.batches)) as batches:
            for batch in batches:
                self._weights.append(self._objective.weight(batch))
                self._sizes.append(count_examples(batch))
        count, every = len(self._weights), range(len(self._shares))
        _, known = self._values(every, count)
        complete = known.all(0) if len(known) == count else np.zeros(len(every), dtype=bool)
        missing = np.flatnonzero(~complete)
        pieces = dealer.pieces(missing) if len(missing) else []
        left, mine = set(range(len(pieces))), 0
        steps = self._objective.examples * (1 + self._anew)
        self.done = steps * int(complete.sum())

        def collect(i: int) -> None:
            spent, *values = dealer.taken(f"{stage}/{i}", (1 + 2 * count * len(pieces[i]),))
            if i not in own:
                self._fill(np.reshape(values, (2, count, -1)), np.ones((count, len(pieces[i])), dtype=bool), pieces[i].tolist())
                self._forwards += round(spent)
            left.discard(i)
            self.done = steps * (len(every) - sum(len(pieces[j]) for j in left))
            tick()

        own: set[int] = set()
        for i in dealer.mine(stage, len(pieces)):
            own.add(i)
            mine = self._forwards
            self.evaluate(pieces[i].tolist(), lambda: None)
            dealer.hand_in(f"{stage}/{i}", np.append(self._forwards - mine, self._values(pieces[i].tolist(), count)[0]))
            for j in [j for j in left if dealer.there(f"{stage}/{j}")] if dealer.leads else ():
                collect(j)
        if dealer.leads:
            for j in sorted(left):
                collect(j)
            dealer.hand_in(f"{stage}/all", np.append(self._forwards, self._values(every, count)[0]))
        total, *values = dealer.taken(f"{stage}/all", (1 + 2 * count * len(every),))
        self._forwards = round(total)
        self._fill(np.reshape(values, (2, count, -1)), np.ones((count, len(every)), dtype=bool))

    def losses(self) -> Losses:
        """Return the losses, all of them known."""
        (each, right), known = self._values(range(len(self._shares)), len(self._weights))
        assert known.all()
        total, answers = np.zeros(each.shape[1]), np.zeros(each.shape[1])
        with np.errstate(invalid="ignore", over="ignore"):
            for n, losses, answer in zip(self._weights, each, right, strict=True):
                total += losses * n  # in the order of `Objective.evaluate`: the ends are its losses to the bit
                answers += answer
            mean, fraction = total / sum(self._weights), answers / sum(self._sizes)
        finite = np.isfinite(mean)
        loss, accuracy = np.where(finite, mean, np.nan), np.where(finite, fraction, np.nan)
        return Losses(each, np.array(self._weights), loss, accuracy, self._forwards / self._objective.examples, self._before)
