"""A surface on its way: rounds of points, each evaluated on all batches, with sums that are its checkpoint."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from contextlib import closing
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from landscape.batches import count_examples
from landscape.intervals import spread_to_stderr
from landscape.objective import Objective
from landscape.progress import progress as progress_bar
from landscape.results.types import Array
from landscape.surfaces.adaptive import Indices, Refinement
from landscape.surfaces.over_ranks import Dealer
from landscape.surfaces.points import Evaluator, Point
from landscape.surfaces.resume import SUMS, Keeper, State

# Evaluations are handed out in portions about this long, so that progress, checkpoints and ctrl-C are prompt.
_PORTION_SECONDS = 0.1
_PORTION_POINTS = 256

_SHARE = 6  # of the points of a grid one is evaluated where there is a tolerance: a first guess for the time left


class Growing:
    """Sums over the batches done so far, for every point, and the place up to which they are complete.

    Points are evaluated in rounds, one pass over the data each: all in the first one without a `refinement`, else `first`, or those with
    which the rule begins. Below the sums of the loss lie those of so many further `metrics`.
    """

    def __init__(
        self,
        objective: Objective,
        points: Sequence[Point],
        evaluate: Evaluator,
        refinement: Refinement | None,
        begun: State | None,
        dealer: Dealer | None = None,
        metrics: int = 0,
        first: Indices | None = None,
    ) -> None:
        self._dealer = dealer
        self._objective, self._points, self._evaluate, self._refinement = objective, points, evaluate, refinement
        self._sums = torch.zeros(len(SUMS) + metrics, len(points), dtype=torch.float64, device=objective.device)
        self._rounds = np.zeros(len(points), dtype=np.int64)  # in which round a point is evaluated, from 1; 0 for in none so far
        self._at, self._seconds_before = (1, 0, 0), 0.0  # round, batch, how many points of the round are done on it
        if begun is not None:
            self._sums.copy_(torch.from_numpy(begun.sums))
            self._at, self._seconds_before = (begun.round, begun.batch, begun.point), begun.seconds
            self._rounds[:] = np.where(begun.rounds <= begun.round, begun.rounds, 0)
        else:
            self._rounds[slice(None) if refinement is None else refinement.first() if first is None else first] = 1
        self._started = time.perf_counter()
        self._undo: tuple[tuple[int, int, int], torch.Tensor, torch.Tensor] | None = None
        self._weights: list[float] = []  # of the batches
        self._examples = 0

    @property
    def seconds(self) -> float:
        """Seconds so far, those before an interrupt too."""
        return self._seconds_before + time.perf_counter() - self._started

    @property
    def evaluated(self) -> NDArray[np.bool_]:
        """Which points have been, once a round is complete."""
        return (self._rounds > 0) & (self._rounds <= self._at[0])

    def state(self) -> State:
        """Return what `begun` takes. Also right after an interrupt that came in the middle of `_portion`."""
        if self._undo is not None and self._undo[0] == self._at:
            self._sums[:, self._undo[1]] = self._undo[2]
        return State(self._sums.cpu().numpy(), self._rounds, *self._at, self.seconds)

    def _dealt_state(self, missing: NDArray[np.intp]) -> State:
        """Return what `begun` takes, with the points of this round that are `missing` left to a round of their own."""
        rounds = self._rounds.copy()
        rounds[missing] = self._at[0] + 1
        return State(self._sums.cpu().numpy(), rounds, self._at[0] + bool(len(missing)), 0, 0, self.seconds)

    def run(self, keeper: Keeper | None, show: bool | None, name: str) -> None:
        """Evaluate round after round until nothing is missing, keeping the state on the way."""
        guess = len(self._points) if self._refinement is None else max(int(self.evaluated.sum()), len(self._points) // _SHARE)
        with progress_bar(guess, f"surface {name}", "point", show=show) as bar:
            try:
                while True:
                    if self._dealer is None:
                        self._pass(keeper, bar)
                    else:
                        self._dealt_pass(self._dealer, keeper, bar)
                    chosen, missing = self._next()
                    if not len(chosen):
                        break
                    self._rounds[chosen] = self._at[0] + 1
                    self._at = (self._at[0] + 1, 0, 0)
                    bar.total = int(self.evaluated.sum()) + max(0, missing // 3 - len(chosen))
            except BaseException as error:
                if self._dealer is not None:
                    self._dealer.fail(error)
                elif keeper is not None:
                    keeper.save(self.state, now=True)
                raise

    def _next(self) -> tuple[Indices, int]:
        """Return the points of the next round, and about how many are to be evaluated or interpolated better in all."""
        if self._refinement is None:
            return np.empty(0, dtype=np.intp), 0
        return self._refinement.next(self.evaluated, self.results()[0])

    def _pass(self, keeper: Keeper | None, bar: Any) -> None:
        """Evaluate the points of one round on all batches."""
        places = np.flatnonzero(self._rounds == self._at[0])
        before = int(self.evaluated.sum()) - len(places)
        on_device = torch.from_numpy(places).to(self._objective.device)
        points = [self._points[i] for i in places.tolist()]
        width = getattr(self._evaluate, "width", 1)  # points at the same time
        total, portion, examples = len(points), width, self._objective.examples
        self._weights, self._examples = [], 0
        with closing(self._objective.batches.seeded()) as batches:
            for index, batch in batches:
                n, size = self._objective.weight(batch), count_examples(batch)
                self._weights.append(n)
                self._examples += size
                while self._at[1] == index and self._at[2] < total:
                    started = time.perf_counter()
                    start = self._at[2]
                    stop = min(start + portion, total)
                    self._portion(batch, n, points[start:stop], on_device[start:stop])
                    self._objective.count("forwards", (stop - start) * size)
                    if time.perf_counter() - started < _PORTION_SECONDS / 2:
                        portion = min(2 * portion, _PORTION_POINTS)
                    elif time.perf_counter() - started > 2 * _PORTION_SECONDS:
                        portion = max(portion // 2 // width, 1) * width
                    done = before + ((self._examples - size) * total + stop * size) // examples
                    bar.update(done - bar.n)
                    if keeper is not None:
                        keeper.save(self.state)
                if self._at[1:] == (index, total):
                    self._at = (self._at[0], index + 1, 0)

    def _dealt_pass(self, dealer: Dealer, keeper: Keeper | None, bar: Any) -> None:
        """Evaluate the points of one round on all batches, together with the other ranks."""
        number, places = self._at[0], np.flatnonzero(self._rounds == self._at[0])
        before, pieces = int(self.evaluated.sum()) - len(places), dealer.pieces(places)
        self._weights, self._examples = [], 0
        with closing(iter(self._objective.batches)) as batches:
            for batch in batches:
                self._weights.append(self._objective.weight(batch))
                self._examples += count_examples(batch)
        self._sums[:, torch.from_numpy(places).to(self._objective.device)] = 0.0
        left = set(range(len(pieces)))

        def collect(i: int) -> None:
            values = torch.from_numpy(dealer.taken(f"{number}/{i}", (len(self._sums), len(pieces[i]))))
            self._sums[:, torch.from_numpy(pieces[i]).to(self._objective.device)] = values.to(self._objective.device)
            left.discard(i)
            bar.update(before + len(places) - sum(len(pieces[j]) for j in left) - bar.n)
            if keeper is not None:
                keeper.save(lambda: self._dealt_state(np.concatenate([pieces[j] for j in left]) if left else np.empty(0, dtype=np.intp)))

        try:
            for i in dealer.mine(number, len(pieces)):
                dealer.hand_in(f"{number}/{i}", self._on_all_batches(pieces[i]))
                for j in [j for j in left if dealer.there(f"{number}/{j}")] if dealer.leads else ():
                    collect(j)
            if dealer.leads:
                for j in sorted(left):
                    collect(j)
                dealer.hand_in(f"{number}/all", self._sums[:, torch.from_numpy(places).to(self._objective.device)].cpu().numpy())
        except BaseException:
            if keeper is not None:
                keeper.save(lambda: self._dealt_state(np.concatenate([pieces[j] for j in left] or [places[:0]])), now=True)
            raise
        found = torch.from_numpy(dealer.taken(f"{number}/all", (len(self._sums), len(places))))
        self._sums[:, torch.from_numpy(places).to(self._objective.device)] = found.to(self._objective.device)
        self._at = (number, len(self._weights), 0)

    def _on_all_batches(self, places: NDArray[np.intp]) -> Array:
        """Return the sums of some points over all batches."""
        on_device, points = torch.from_numpy(places).to(self._objective.device), [self._points[i] for i in places.tolist()]
        with closing(self._objective.batches.seeded()) as batches:
            for index, batch in batches:
                for start in range(0, len(points), _PORTION_POINTS):
                    self._at = (self._at[0], index, start)
                    part = slice(start, start + _PORTION_POINTS)
                    self._portion(batch, self._objective.weight(batch), points[part], on_device[part])
                self._objective.count("forwards", len(points) * count_examples(batch))
        return self._sums[:, on_device].cpu().numpy()

    def _portion(self, batch: Any, n: float, points: Sequence[Point], places: torch.Tensor) -> None:
        loss, right, metrics = self._evaluate(batch, self._at[1], points)
        sums = self._sums[:, places]
        self._undo = (self._at, places, sums.clone())
        if self._at[1] == 0:
            sums[0] = loss
        away = loss - sums[0]
        sums[1] += n * away
        sums[2] += n * n * away
        sums[3] += n * n * away**2
        sums[4] += math.nan if right is None else right
        if metrics is not None:
            sums[len(SUMS) :] += count_examples(batch) * metrics
        self._sums[:, places] = sums
        self._at = (*self._at[:2], self._at[2] + len(points))

    def results(self) -> tuple[Array, Array, Array, Array]:
        """Return loss, accuracy, standard error and metrics (m, points); NaN where the loss is not finite or was not evaluated."""
        first, linear, weighted, squared, right, *further = self._sums.cpu().numpy()
        with np.errstate(invalid="ignore", over="ignore"):
            weights = np.array(self._weights)
            mean = linear / weights.sum()
            loss = first + mean
            loss = np.where(np.isfinite(loss) & self.evaluated, loss, np.nan)
            accuracy = np.where(np.isfinite(loss), right / self._examples, np.nan)
            spread = np.maximum(squared - 2 * mean * weighted + mean**2 * (weights**2).sum(), 0)
            stderr = spread_to_stderr(weights) * np.sqrt(spread)
            metrics = np.array(further).reshape(len(further), len(loss)) / self._examples
            metrics = np.where(np.isfinite(loss) & np.isfinite(metrics), metrics, np.nan)
        return loss, accuracy, np.where(np.isfinite(loss), stderr, np.nan), metrics
