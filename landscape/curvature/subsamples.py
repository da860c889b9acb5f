"""How much a measurement would differ on other examples: its spread over parts of the data."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from landscape.batches import Part
from landscape.intervals import spread_to_stderr, student_factor
from landscape.objective import Objective
from landscape.progress import progress as progress_bar
from landscape.results.types import Array, Eigenpairs, Result, Sharpness, Subsampled, TraceEstimate


def subsampled(
    measure: Callable[[Objective], Result | float | Array],
    objective: Objective,
    *,
    parts: int = 8,
    leave_out: bool = False,
    name: str | None = None,
    seed: int = 0,
    progress: bool | None = None,
) -> Subsampled:
    r"""Measure on all examples and on disjoint parts of them, and say how well the value holds for data of the same kind.

    The examples are dealt at random into G parts. With v the value on all n examples and v_g that on part g, the mean of the v_g over
    examples, m, has the standard error s of means of independent values, and so has v, as far as a measure is smooth in the distribution
    of the examples. An eigenvalue such as lambda_max is larger on fewer examples (it is convex in the Hessian): a bias b / n to first
    order, of which the parts show b G / n; so v has the bias (m - v) / (G - 1). With `leave_out`, v_g is the value on all examples but
    those of part g (the jackknife: Quenouille, Tukey): s^2 = (G - 1) / G sum_g (v_g - m)^2 and the bias is (G - 1) (m - v). It stays
    closer to the whole data and costs G - 1 measurements in place of one.

    The standard error returned is the root of s^2 + bias^2 + e^2, with e the error bar of the measurement itself, so that the printed
    value ± 1.96 stderr covers the value on infinitely many examples in 95 % of all data sets. That of lambda_max is too short where
    the parts are so small that each has another top eigenvector.

    Args:
        measure: gives a result with an error bar (`top_eigenpairs`, `hessian_trace`, `m_sharpness`), a number or an array (q,) for an
            objective. It must do the same every time, seed and all: then its own randomness is the same on every part.
        objective: the loss on the data.
        parts: G; at least 3, and at most the number of examples.
        leave_out: measure on all parts but one rather than on one.
        name: of the result in files; None for that of the function.
        seed: of the deal; no global random state is used.
        progress: show a progress bar; None if stderr is a terminal.

    Returns:
        The values on all examples with standard errors, their bias, and the values on every part.

    Raises:
        ValueError: an argument is outside what is allowed, or the parts differ in the number of values.
    """
    if not isinstance(parts, int) or not 3 <= parts <= objective.examples:
        raise ValueError(f"parts must be an integer from 3 to {objective.examples}, the number of examples, got {parts!r}")
    if objective.batch_norm == "batch" and not objective.batches.divisible:
        raise ValueError("batch_norm is 'batch' and data come in batches of their own: give a tuple of tensors, of which parts can be made")
    dealt = np.array_split(np.random.default_rng(seed).permutation(objective.examples), parts)
    meter = objective.meter()
    found: list[tuple[Array, Array, bool]] = []
    sizes: list[float] = []
    with progress_bar(parts + 1, "parts", "measurement", show=progress) as bar:
        whole, own, good = _numbers(measure(objective))
        bar.update()
        for i, positions in enumerate(dealt):
            chosen = np.concatenate([d for j, d in enumerate(dealt) if j != i]) if leave_out else positions
            part = objective.on(Part(objective.batches, chosen))
            found.append(_numbers(measure(part)))
            sizes.append(objective.total_weight - part.total_weight if leave_out else part.total_weight)
            if found[-1][0].shape != whole.shape:
                raise ValueError(f"measure gives {len(whole)} values on all examples and {len(found[-1][0])} on part {i} (counted from 0)")
            bar.update()
    each, weights = np.stack([values for values, _, _ in found]), np.array(sizes)
    error, bias = _jackknife(whole, each) if leave_out else _over_parts(whole, each, weights)
    return Subsampled(
        measure=name or _name(measure),
        values=whole,
        stderr=np.sqrt(error**2 + bias**2 + own**2),
        bias=bias,
        per_part=each,
        part_sizes=weights,
        leave_out=leave_out,
        converged=good and all(converged for _, _, converged in found),
        cost=meter.cost(),
        provenance=objective.provenance(seed),
    )


def _over_parts(whole: Array, each: Array, weights: Array) -> tuple[Array, Array]:
    """Return the standard error of the whole from its parts, and its bias."""
    mean = weights @ each / weights.sum()
    spread = np.sqrt(np.square(weights) @ np.square(each - mean))
    return spread_to_stderr(weights) * spread, (mean - whole) / (len(each) - 1)


def _jackknife(whole: Array, each: Array) -> tuple[Array, Array]:
    """Return the standard error of the whole from what it is without each part, and its bias."""
    count, mean = len(each), each.mean(0)
    spread = math.sqrt((count - 1) / count) * np.sqrt(np.square(each - mean).sum(0))
    return student_factor(count - 1) * spread, (count - 1) * (mean - whole)


def _numbers(found: Any) -> tuple[Array, Array, bool]:
    """Return what was measured as values (q,), their own error bars (q,), and whether the measurement converged."""
    if isinstance(found, Eigenpairs):
        return found.values, found.residuals, found.converged
    if isinstance(found, TraceEstimate):
        return np.array([found.value]), np.array([found.stderr]), found.converged
    if isinstance(found, Sharpness):
        return np.array([found.value]), np.zeros(1), True  # its standard error is over shards of the examples: the spread has it already
    try:
        values = np.atleast_1d(np.asarray(found, dtype=np.float64))
    except (TypeError, ValueError):
        values = np.zeros((0, 0))
    if values.ndim != 1:
        raise TypeError(
            f"measure must give Eigenpairs, a TraceEstimate, a Sharpness, a number or an array (q,), got {type(found).__name__}"
        )
    return values, np.zeros(len(values)), True


def _name(measure: Any) -> str:
    return getattr(getattr(measure, "func", measure), "__name__", type(measure).__name__).strip("<>")
