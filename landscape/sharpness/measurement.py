"""What all sharpness measures share: arguments checked, every setting written down, earlier results found again, error bars."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from landscape.intervals import mean_stderr, spread_to_stderr
from landscape.objective import Meter, NonFiniteLossError, Objective
from landscape.provenance import same_loss
from landscape.results.types import Array, Sharpness
from sam_core.optim.ascent import PNorm

Known = Iterable[Sharpness]


def weighted_mean(values: Array, weights: Array) -> tuple[float, float]:
    """Return sum(w v) / sum(w) and its standard error, widened for few values (`spread_to_stderr`); NaN for a single value."""
    mean = float((weights * values).sum() / weights.sum())
    return mean, float(spread_to_stderr(weights) * np.sqrt((weights**2 * (values - mean) ** 2).sum()))


def mean_of_draws(values: Array) -> tuple[float, float]:
    """Return the mean of independent draws, or of single examples, and a standard error that allows for skewness (`mean_stderr`)."""
    stderr = mean_stderr(values, looks=0.0)
    return float(values.mean()), stderr if math.isfinite(stderr) else math.nan


def whole_number(name: str, value: Any, low: int, high: int | None, what: str) -> int:
    """Return an integer argument.

    Args:
        name: of the argument.
        value: what was given.
        low: the smallest that is allowed.
        high: the largest, None for any.
        what: the argument is, in words.

    Returns:
        The value.

    Raises:
        TypeError: it is no integer.
        ValueError: it is out of range.
    """
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} must be an integer, {what}, got {value!r}")
    if value < low or (high is not None and value > high):
        allowed = f"at least {low}" if high is None else f"{low} ... {high}"
        raise ValueError(f"{name}, {what}, must be {allowed}, got {value}")
    return value


def check_seed(seed: Any) -> None:
    """Refuse a seed that is no whole number from 0 on: None would draw other numbers each time."""
    whole_number("seed", seed, 0, None, "the seed of the draws")


def ascent_of(rho: Any, p: float, adaptive: bool, eta: float, steps: Any = 1, restarts: Any = 0, seed: Any = 0) -> PNorm:
    """Return the climb of a measure, with all that is asked of it checked.

    Args:
        rho: radius.
        p: order of the norm.
        adaptive: whether steps are relative to |w| + eta.
        eta: see `adaptive`.
        steps: of every ascent.
        restarts: ascents from random points.
        seed: of the points.

    Returns:
        The climb.

    Raises:
        TypeError: rho is no number.
    """
    if rho is None:
        raise TypeError("rho must be a number, not None")
    ascent = PNorm(rho, p, adaptive, eta)
    whole_number("steps", steps, 1, None, "the number of steps of the ascent")
    whole_number("restarts", restarts, 0, None, "the number of ascents from random points")
    check_seed(seed)
    return ascent


def shard_size(objective: Objective, m: Any) -> int:
    """Return m checked against the data; None means all examples.

    Args:
        objective: whose data.
        m: examples per shard.

    Returns:
        The number.

    Raises:
        TypeError: m is no integer.
        ValueError: m is out of range.
    """
    n = objective.examples
    if m is None:
        return n
    if not isinstance(m, int) or isinstance(m, bool):
        raise TypeError(f"m must be an integer, the number of examples per shard, got {m!r}")
    if not 1 <= m <= n:
        raise ValueError(f"m, the number of examples per shard, must be 1 ... {n} (the number of examples), got {m}")
    return m


class Measurement:
    """One measurement: its settings, and the result that carries them.

    Args:
        objective: what is measured.
        measure: name of the measure.
        rho: radius, or width of the noise.
        m: examples per shard.
        p: order of the norm.
        settings: whatever else decides the number.
        seed: of the draws, where there are any.
    """

    def __init__(
        self,
        objective: Objective,
        measure: str,
        *,
        rho: float = 0.0,
        m: int,
        p: float = 2.0,
        settings: Mapping[str, Any] | None = None,
        seed: int | None = None,
    ) -> None:
        self.objective, self.measure, self.seed = objective, measure, seed
        self.rho, self.m, self.p = float(rho), m, float(p)
        self.settings: dict[str, Any] = {
            "rho": self.rho,
            "m": m,
            "p": self.p,
            **(settings or {}),
            "data": objective.batches.sha256,
            "examples": objective.examples,
            "batch_norm": objective.batch_norm,
            "dtype": str(objective.dtype).removeprefix("torch."),
        }
        if seed is not None:
            self.settings["seed"] = seed
        if objective.batch_norm == "batch":
            self.settings["batch_size"] = objective.batches.batch_size
        self._meter = objective.meter()

    def earlier(self, known: Known) -> Sharpness | None:
        """Return a result of the same settings, weights and loss, if there is one among those known."""
        now = None
        for result in known:
            if result.measure != self.measure or dict(result.settings) != self.settings:
                continue
            now = self.objective.provenance(self.seed) if now is None else now
            then = result.provenance
            same = (then.parameter_sha256, then.varied_sha256) == (now.parameter_sha256, now.varied_sha256)
            if same and same_loss(then, now):
                return result
        return None

    def restart(self, meter: Meter | None = None) -> None:
        """Count work from now on, or from where a meter began."""
        self._meter = self.objective.meter() if meter is None else meter

    def result(
        self, values: Array, weights: Array, *, steps: Array | None = None, of_draws: bool = False, value: float | None = None
    ) -> Sharpness:
        """Return the mean of values, with its standard error.

        Args:
            values: (shards,) one per shard or draw.
            weights: (shards,) of the mean.
            steps: what an ascent of several steps had reached.
            of_draws: the values are independent and of one distribution that may be skewed.
            value: where rounding shall not decide, the mean itself.

        Returns:
            The result.
        """
        mean, stderr = mean_of_draws(values) if of_draws else weighted_mean(values, weights)
        return Sharpness(
            self.measure,
            mean if value is None else value,
            stderr,
            values,
            weights,
            self.rho,
            self.m,
            self.p,
            settings=self.settings,
            steps=steps,
            cost=self._meter.cost(),
            provenance=self.objective.provenance(self.seed),
        )

    def check_finite(self, before: Array, after: Array, what: str = "shard") -> None:
        """Say where a loss is no number.

        Args:
            before: (shards,) losses at the model's own weights.
            after: (shards,) or (shards, steps) losses elsewhere.
            what: a row is.

        Raises:
            NonFiniteLossError: a loss is NaN or infinite.
        """
        finite = np.isfinite(before) & np.isfinite(after.reshape(len(before), -1)).all(1)
        if finite.all():
            return
        where = int(np.flatnonzero(~finite)[0])
        inside = f"after the climb of rho = {self.rho:g} (try a smaller rho)"
        place = "at the model's own weights" if not np.isfinite(before[where]) else inside
        counted = f"(counted from 0, {self.m} examples each)" if what == "shard" else "(counted from 0)"
        raise NonFiniteLossError(f"the loss of {what} {where} {counted} is not finite {place}")
