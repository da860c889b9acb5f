r"""Which points of a grid to evaluate next, so that the others can be interpolated within a tolerance.

A coarse grid comes first. Then, round by round, log loss is interpolated from what has been evaluated (`landscape.surfaces.interpolate`),
the error at every other point is estimated, and the points where it is too large for the tolerance are evaluated, the worst first and none
close to another one of the round. The error of an interpolated point x is taken for

    e(x) = safety P(x) rms(|f(q) - s_q(q)| / P_q(q)),

P the power function of the interpolant, s_q the interpolant without the known point q, and the mean over the known points q next to x. It
is meant to cover the true error at 95 % of the points at least, on surfaces of any kind; so most errors are far below, and points are left
to interpolation while 0.7 e(x) is within the tolerance. What a coarse grid cannot see, such as a pit between its points, no estimate can
know of.

The rule is a function of the grid, the tolerance, and the losses so far: an interrupted surface goes on to the same points.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from landscape.results.types import Array
from landscape.surfaces.interpolate import leave_one_out, predict

Indices = NDArray[np.intp]
Mask = NDArray[np.bool_]

_START = 13  # points of the first grid along each axis
_GROWTH = 0.25  # points of a round, relative to those before
_LEAST = 16  # points of a round; so many left are taken at once
_APART = 1.5  # points of a round keep this many times their distance to the nearest known point between them

# Found on planes of two small networks and on formulas (bowls, a saddle, kinks, a cliff): there 2.5 covers 96 % of the errors or more, and
# 0.7 leaves 99 % of the points within 0.6 of the tolerance. benchmarks/surfaces_adaptive.py tests both on other planes.
_SAFETY = 2.5
_CONTENT = 0.7
_RESIDUALS = 12  # known points next to x whose residuals count
_FLOOR = 1e-6  # of the estimate: losses are float32

_FAILURES = 8  # known points next to x that tell whether the loss there is finite
_FEWEST = {1: 6, 2: 12}  # finite losses to interpolate from, by dimension
_CANDIDATES = 10_000  # grids with more points are looked at in steps first, and in blocks, for time
_BLOCK = 4  # points along each side


class Scale(NamedTuple):
    """In which scale losses are interpolated: asinh(loss / small), or the logarithm where `small` is zero."""

    small: float

    @classmethod
    def of(cls, losses: Array) -> Scale:
        """Choose by finite losses: the logarithm if all are positive, else a tenth of their median size is small."""
        if losses.min() > 0:
            return cls(0.0)
        size = np.abs(losses)
        return cls(0.1 * float(np.median(size) or size.mean()) or 1.0)

    def forth(self, losses: Array) -> Array:
        """Return losses in this scale."""
        return np.arcsinh(losses / self.small) if self.small else np.log(losses)

    def back(self, values: Array) -> Array:
        """Return the losses of values in this scale."""
        with np.errstate(over="ignore"):
            return self.small * np.sinh(values) if self.small else np.exp(values)

    def error(self, losses: Array, errors: Array) -> Array:
        """Return errors in this scale as errors of the loss."""
        with np.errstate(over="ignore", invalid="ignore"):
            return np.hypot(losses, self.small) * np.expm1(errors)


class Filled(NamedTuple):
    """A whole grid, flattened."""

    loss: Array
    accuracy: Array
    stderr: Array
    error_estimate: Array  # of the loss: 0 where it was evaluated
    metrics: Array  # (m, points)


class _Guess(NamedTuple):
    """The places to interpolate at, each with the estimated error in the scale of the interpolation."""

    places: Indices
    errors: Array  # infinite where a loss may be not finite; NaN where surely none is
    nearest: Array  # distance to the nearest known point


@dataclass(frozen=True)
class Refinement:
    """The rule for one grid.

    Args:
        x: (nx,) ascending.
        y: (ny,) ascending, None on a line.
        tolerance: of the error of interpolated losses, relative to the loss.
    """

    x: Array
    y: Array | None
    tolerance: float

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the grid."""
        return (len(self.x),) if self.y is None else (len(self.y), len(self.x))

    def first(self) -> Indices:
        """Return the points of the coarse grid, with both ends of each axis and what is nearest to its zero, as indices into the grid."""
        axes = [_coarse(axis) for axis in ((self.x,) if self.y is None else (self.y, self.x))]
        chosen = np.zeros(self.shape, dtype=bool)
        chosen[np.ix_(*axes)] = True
        return np.flatnonzero(chosen)

    def next(self, evaluated: Mask, loss: Array) -> tuple[Indices, int]:
        """Return the points to evaluate next.

        Args:
            evaluated: (points,) which points have been.
            loss: (points,) their losses, NaN where they are not finite.

        Returns:
            Their indices, ascending, none when all is known well enough; and how many points still are not, about a third of which will be
            evaluated.
        """
        if not np.isfinite(loss[evaluated]).sum() >= _FEWEST[len(self.shape)]:
            rest = np.flatnonzero(~evaluated)
            return rest, len(rest)
        for step in self._steps():
            guess = self._guess(evaluated, loss, self._lattice(step), step)
            bad = _CONTENT * guess.errors > self.tolerance
            if bad.any():
                return self._chosen(guess, evaluated), int(bad.sum()) * step ** len(self.shape)
        return np.empty(0, dtype=np.intp), 0

    def fill(self, evaluated: Mask, loss: Array, accuracy: Array, stderr: Array, metrics: Array | None = None) -> Filled:
        """Interpolate what has not been evaluated.

        Accuracies and other metrics take the weights of the losses and are cut to [0, 1] and to the range that was found; they are steps,
        not smooth, so less exact. Standard errors are interpolated in their logarithm.

        Args:
            evaluated: (points,) which points have been.
            loss: (points,) their losses, NaN where they are not finite and where they have not been evaluated.
            accuracy: (points,) their accuracies.
            stderr: (points,) their standard errors.
            metrics: (m, points) further numbers.

        Returns:
            The whole grid; NaN also where all evaluated points nearby are.
        """
        estimate = np.zeros(len(loss))
        metrics = np.empty((0, len(loss))) if metrics is None else metrics
        filled = Filled(loss.copy(), accuracy.copy(), stderr.copy(), estimate, metrics.copy())
        known = np.flatnonzero(evaluated & np.isfinite(loss))
        guess = self._guess(evaluated, loss, ~evaluated) if not evaluated.all() else None
        estimate[np.isnan(loss)] = np.nan
        if guess is None:
            return filled
        scale, of_stderr = Scale.of(loss[known]), Scale.of(np.nan_to_num(stderr[known], nan=1.0))
        columns = np.stack([scale.forth(loss[known]), accuracy[known], of_stderr.forth(stderr[known]), *metrics[:, known]], axis=1)
        sure = ~np.isnan(guess.errors)
        places = guess.places[sure]
        coordinates = self._coordinates()
        values = predict(coordinates[known], np.nan_to_num(columns), coordinates[places], self._blocks(places, 1)).values
        values[:, np.isnan(columns).any(0)] = np.nan
        filled.loss[places] = scale.back(values[:, 0])
        filled.accuracy[places] = np.clip(values[:, 1], 0, 1)
        filled.stderr[places] = np.maximum(of_stderr.back(values[:, 2]), 0)
        for row, column, found in zip(filled.metrics, columns.T[3:], values.T[3:], strict=True):
            row[places] = np.clip(found, column.min(), column.max())
        estimate[places] = scale.error(filled.loss[places], guess.errors[sure])
        return filled

    def _coordinates(self) -> Array:
        """Return the points (points, d) in a square of side one: ranges say how fast a loss changes, not numbers of points."""
        units = [(axis - axis[0]) / (axis[-1] - axis[0]) for axis in ((self.x,) if self.y is None else (self.x, self.y))]
        return np.stack([u.ravel() for u in np.meshgrid(*units)], axis=1)

    @property
    def _large(self) -> bool:
        return int(np.prod(self.shape)) > _CANDIDATES

    def _blocks(self, places: Indices, step: int) -> Indices | None:
        """Return numbers of the blocks of a large grid, each of a few points along its sides."""
        if not self._large:
            return None
        block = np.zeros(len(places), dtype=np.intp)
        for index, length in zip(np.unravel_index(places, self.shape), self.shape, strict=True):
            block = block * (length // (_BLOCK * step) + 1) + index // (_BLOCK * step)
        return block

    def _steps(self) -> list[int]:
        step, steps = 1, [1]
        while int(np.prod(self.shape)) > _CANDIDATES * step ** len(self.shape):
            step *= 2
            steps.insert(0, step)
        return steps

    def _lattice(self, step: int) -> Mask:
        inside = np.zeros(self.shape, dtype=bool)
        inside[tuple(slice(None, None, step) for _ in self.shape)] = True
        return inside.ravel()

    def _guess(self, evaluated: Mask, loss: Array, among: Mask, step: int = 1) -> _Guess:
        """Estimate the errors at those points `among` a lattice of that step that have not been evaluated."""
        coordinates = self._coordinates()
        places = np.flatnonzero(among & ~evaluated)
        known = np.flatnonzero(evaluated & np.isfinite(loss))
        f = Scale.of(loss[known]).forth(loss[known])[:, None]
        left_out = leave_one_out(coordinates[known], f)
        with np.errstate(divide="ignore", invalid="ignore"):
            residuals = np.nan_to_num(np.abs(left_out.values - f)[:, 0] / left_out.power)
        there = predict(coordinates[known], f, coordinates[places], self._blocks(places, step))
        nearby = residuals[there.neighbours[:, :_RESIDUALS]]
        errors = np.hypot(_SAFETY * there.power * np.sqrt(np.mean(nearby**2, axis=1)), _FLOOR)
        next_to = there.neighbours[:, 0] if not self._large else cKDTree(coordinates[known]).query(coordinates[places])[1]
        nearest = np.linalg.norm(coordinates[known][next_to] - coordinates[places], axis=1)
        if len(known) < evaluated.sum():
            errors, nearest = self._with_failures(evaluated, loss, places, errors, nearest)
        return _Guess(places, errors, nearest)

    def _with_failures(self, evaluated: Mask, loss: Array, places: Indices, errors: Array, nearest: Array) -> tuple[Array, Array]:
        """Mark as unknown what lies between finite losses and others, and as NaN what lies among others only."""
        coordinates, tried = self._coordinates(), np.flatnonzero(evaluated)
        distance, neighbours = cKDTree(coordinates[tried]).query(coordinates[places], min(_FAILURES, len(tried)))
        failed = np.isnan(loss[tried])[neighbours]
        errors = np.where(failed.all(1), np.nan, np.where(failed.any(1), np.inf, errors))
        return errors, distance[:, 0]

    def _chosen(self, guess: _Guess, evaluated: Mask) -> Indices:
        """Return the worst points, none too close to another one."""
        most = max(int(_GROWTH * evaluated.sum()), _LEAST)
        bad = np.flatnonzero(_CONTENT * guess.errors > self.tolerance)
        bad = bad[np.lexsort((guess.places[bad], -guess.nearest[bad], -guess.errors[bad]))]
        coordinates = self._coordinates()[guess.places[bad]]
        room = _APART * guess.nearest[bad]
        if len(bad) <= _LEAST:
            return np.sort(guess.places[bad])
        free = np.ones(len(bad), dtype=bool)
        chosen: list[int] = []
        while len(chosen) < most and free.any():
            best = int(np.argmax(free))
            chosen.append(best)
            free &= np.linalg.norm(coordinates - coordinates[best], axis=1) >= room
            free[best] = False
        return np.sort(guess.places[bad[chosen]])


def _coarse(axis: Array) -> Indices:
    spread = np.round(np.linspace(0, len(axis) - 1, min(_START, len(axis)))).astype(np.intp)
    return np.union1d(spread, np.argmin(np.abs(axis)))
