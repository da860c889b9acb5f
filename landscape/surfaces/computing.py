"""One surface from the question to the result: what a file holds, the way to evaluate, rounds of points, and the rest filled in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from landscape.batches import Batches
from landscape.objective import Objective
from landscape.results import store
from landscape.results.types import Array, Cost, Surface
from landscape.stateless import undisturbed
from landscape.surfaces import precision
from landscape.surfaces.adaptive import Indices, Refinement
from landscape.surfaces.directions import Plane
from landscape.surfaces.growing import Growing
from landscape.surfaces.metrics import Metric, fingerprint
from landscape.surfaces.over_ranks import Dealer
from landscape.surfaces.points import WORTH_COMPARING, Evaluator, Options, Point, evaluator, fastest_evaluator
from landscape.surfaces.resume import Keeper


@dataclass(frozen=True)
class Asked:
    """What is to be computed, on whatever data."""

    plane: Plane
    xs: Array
    ys: Array | None
    tolerance: float | None
    statistics: str
    metrics: Mapping[str, Metric]
    precision: str | None

    @property
    def dimensions(self) -> int:
        """One on a line."""
        return 1 if self.ys is None else 2

    @property
    def points(self) -> list[Point]:
        """All of the grid, row by row."""
        return [(float(a), float(b)) for b in ((0.0,) if self.ys is None else self.ys) for a in self.xs]


class Computation:
    """One surface; all that can be refused is refused when this is made.

    Args:
        objective: the loss.
        asked: what is to be computed.
        name: of the surface.
        out: file to keep it in, or None.
        resume: go on with what the file holds.
        save_every: seconds between savings.
        ranks: share the points out among processes.
        statistics_data: on which statistics are computed again, where they are; None for the objective's.

    Raises:
        ValueError: the file holds another surface of that name, or a metric cannot be measured.
    """

    def __init__(
        self,
        objective: Objective,
        asked: Asked,
        name: str,
        out: str | Path | None,
        *,
        resume: bool,
        save_every: float,
        ranks: bool,
        statistics_data: Batches | None = None,
    ) -> None:
        self._objective, self._asked, self._name = objective, asked, name
        self._dealer = Dealer() if ranks else None
        if self._dealer is not None and not self._dealer.leads:
            out = None
        if out is not None:
            store.check_writable(out)
        low = None if asked.precision is None else precision.PRECISIONS[asked.precision]
        self._options = Options(tuple(asked.metrics.values()), low, statistics_data)
        self._provenance = objective.provenance(asked.plane.seed)
        loss_function = objective.loss_function
        self._description = asked.plane.describe() | {
            "batch_size": objective.batches.batch_size,
            "loss_function": getattr(loss_function, "__qualname__", type(loss_function).__qualname__),
        }
        if asked.statistics != "keep":
            self._description["statistics"] = asked.statistics
            if statistics_data is not None:
                self._description["statistics_data"] = statistics_data.sha256
        if asked.tolerance is not None:
            self._description["tolerance"] = float(asked.tolerance)
        if asked.metrics:
            self._description["metrics"] = fingerprint(objective, asked.metrics)
        if asked.precision is not None:
            self._description["precision"] = asked.precision
        self._keeper = None if out is None else Keeper(out, name, asked.xs, asked.ys, self._description, self._provenance, save_every)
        self.finished, self._begun = self._keeper.found() if self._keeper is not None and resume else (None, None)
        if self._dealer is not None:
            self.finished, self._begun = self._dealer.agreed((self.finished, self._begun))

    def run(self, progress: bool | None, first: Indices | None = None) -> Surface:
        """Return the surface.

        Args:
            progress: show a bar; None shows it on a terminal.
            first: points of the first round where there is a tolerance, as indices into the grid; None for those of the rule.

        Returns:
            The surface, which is in the file too.
        """
        if self.finished is not None:
            return self.finished
        asked, dealer, description = self._asked, self._dealer, self._description
        points = asked.points
        refinement = None if asked.tolerance is None else Refinement(asked.xs, asked.ys, float(asked.tolerance))
        with undisturbed(self._objective.device):
            way, evaluate = self._way(points, len(points) if refinement is None else len(points) // 5)
            looked = 0 if asked.precision is None else self._check_precision(evaluate, way)
            growing = Growing(self._objective, points, evaluate, refinement, self._begun, dealer, len(asked.metrics), first)
            growing.run(self._keeper, progress, self._name)
            loss, accuracy, stderr, metrics = growing.results()
            evaluated = growing.evaluated
            if asked.precision is not None:
                looked += self._check_found(points, loss, way)
        status, estimate = np.where(np.isnan(loss), Surface.FAILED, Surface.EVALUATED), None
        if refinement is not None:
            status[~evaluated] = Surface.INTERPOLATED
            loss, accuracy, stderr, estimate, metrics = refinement.fill(evaluated, loss, accuracy, stderr, metrics)
        shape = (len(asked.xs),) if asked.ys is None else (len(asked.ys), len(asked.xs))
        passes = 2 if asked.statistics == "recompute" else 1
        surface = Surface(
            self._name,
            asked.xs,
            asked.ys,
            loss.reshape(shape),
            accuracy.reshape(shape),
            stderr.reshape(shape),
            status.astype(np.uint8).reshape(shape),
            description,
            None if estimate is None else estimate.reshape(shape),
            tuple(asked.metrics) or None,
            metrics.reshape(-1, *shape) if asked.metrics else None,
            cost=Cost(forwards=float(passes * evaluated.sum() + looked), seconds=growing.seconds),
            provenance=self._provenance,
        )
        if self._keeper is not None:
            self._keeper.finish(surface)
        return surface

    def _way(self, points: Sequence[Point], evaluated: int) -> tuple[str, Evaluator]:
        """Return the way in which about `evaluated` points are evaluated, and what goes it."""
        asked, begun, evaluate = self._asked, self._begun, None
        way = begun.way if begun is not None else asked.statistics
        if begun is None and asked.statistics == "keep":
            way, evaluate = self._chosen(points, evaluated)
        agreed = way if self._dealer is None else self._dealer.agreed(way)
        self._description["way"] = agreed
        return agreed, evaluate if evaluate is not None and agreed == way else self._evaluator(agreed, self._options)

    def _chosen(self, points: Sequence[Point], evaluated: int) -> tuple[str, Evaluator]:
        """Measure on the first batch what is fastest, where there are many points."""
        objective, asked = self._objective, self._asked
        evaluations = evaluated * objective.examples / max(1, objective.batches.batch_size)
        if evaluations < WORTH_COMPARING:
            return "plain", self._evaluator("plain", self._options)
        with closing(objective.batches.seeded()) as batches:
            first = next(batches)[1]
            return fastest_evaluator(objective, asked.plane, asked.dimensions, first, points, evaluations, self._options)[:2]

    def _evaluator(self, way: str, options: Options) -> Evaluator:
        return evaluator(self._objective, self._asked.plane, self._asked.dimensions, way, options)

    def _exact(self, points: Sequence[Point], way: str) -> Any:
        return precision.mean_losses(self._objective, self._evaluator(way, Options()), points)

    def _check_precision(self, evaluate: Evaluator, way: str) -> int:
        """Compare both precisions at a handful of points, and return how many were evaluated for it."""
        points = precision.probes(self._asked.xs, self._asked.ys)
        low, exact = precision.mean_losses(self._objective, evaluate, points), self._exact(points, way)
        self._note(precision.difference(points, low, exact))
        return 2 * len(points)

    def _check_found(self, points: Sequence[Point], loss: Array, way: str) -> int:
        """Compare what was found with full precision, where it is lowest and at losses of any size."""
        places = precision.lowest_and_spread(loss)
        if not len(places):
            return 0
        shown = [points[i] for i in places]
        found = precision.difference(shown, loss[places], self._exact(shown, way))
        self._note(max(found, precision.Difference(self._description["precision_error"], shown[0])))
        return len(shown)

    def _note(self, found: precision.Difference) -> None:
        if self._dealer is not None:
            found = self._dealer.agreed(found)
        try:
            precision.check(found, str(self._asked.precision))
        except ValueError:
            if self._keeper is not None:
                self._keeper.discard()
            raise
        self._description["precision_error"] = found.largest
        self._description["precision_bound"] = precision.SAFETY * found.largest
