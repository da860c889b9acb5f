"""How two models differ, number by number, with error bars of the differences themselves.

Both were measured on the same examples, shards, draws and probes, whose luck cancels in the difference: its error is that of the
differences one by one, not the sum of two errors.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from landscape.comparison.evaluations import mean_over_pieces
from landscape.intervals import mean_stderr
from landscape.plots import RunReport
from landscape.plots.tables import Table
from landscape.results.numbers import NONE, with_error
from landscape.results.types import Eigenpairs, Provenance, Result, Sharpness, Subsampled, TraceEstimate
from landscape.sharpness import paired_difference

BOUND = "residuals"  # what is no standard error


@dataclass(frozen=True)
class Difference:
    """By how much one number of `one` is larger than that of `other`."""

    measure: str
    one: str
    other: str
    values: tuple[float, float]
    """Of the two."""
    value: float
    """Of `one` less that of `other`."""
    error: float
    """Standard error of the difference; for eigenvalues, which have none, a bound: the sum of the residuals."""
    over: str
    """What the error is over: examples, shards, draws, probes; or "residuals", for a bound."""
    paired: bool = True
    """Whether both saw the same examples, shards, draws or probes."""
    per_part: np.ndarray | None = None
    """The differences one by one."""
    weights: np.ndarray | None = None
    """Of these in the mean; None for equal ones."""

    @property
    def clear(self) -> bool:
        """Whether it is not zero: beyond 1.96 standard errors, or beyond the bound."""
        return abs(self.value) > self.error * (1.0 if self.over == BOUND else 1.96)


class Differences(Sequence[Difference]):
    """Differences in the order of the table; prints itself as one."""

    def __init__(self, found: Sequence[Difference], notes: Sequence[str] = ()) -> None:
        self._found, self._notes = list(found), list(notes)

    def __getitem__(self, index: int | str) -> Difference:  # type: ignore[override]
        """Return a difference by its place, or the first one of a measure by its name."""
        if isinstance(index, str):
            for difference in self._found:
                if difference.measure == index:
                    return difference
            known = ", ".join(dict.fromkeys(d.measure for d in self._found))
            raise KeyError(f"no difference of {index!r}; there are {known}")
        return self._found[index]

    def __len__(self) -> int:
        return len(self._found)

    def __iter__(self) -> Iterator[Difference]:
        return iter(self._found)

    def tables(self) -> dict[str, Table]:
        """Return one table for each pair of models, by its title."""
        pairs = dict.fromkeys((d.one, d.other) for d in self._found)
        tables = {f"{one} − {other}": _table([d for d in self._found if (d.one, d.other) == (one, other)]) for one, other in pairs}
        if tables and self._notes:
            last = list(tables)[-1]
            tables[last] = Table(tables[last].heads, tables[last].rows, [*tables[last].notes, *self._notes])
        return tables

    def __repr__(self) -> str:
        return "\n\n".join(table.text() for table in self.tables().values()) or "nothing to compare: give at least two models"


def _table(found: Sequence[Difference]) -> Table:
    one, other = found[0].one, found[0].other
    rows = []
    for d in found:
        shown = [with_error(v) for v in d.values]
        percent = f"{100 * d.value / abs(d.values[1]):+.1f} %" if d.values[1] and math.isfinite(d.value) else NONE
        known = math.isfinite(d.value) and math.isfinite(d.error)
        verdict = NONE if not known else (f"{one if d.value > 0 else other} is larger" if d.clear else "no difference seen")
        rows.append([d.measure, *shown, with_error(d.value, d.error), percent, d.over + ("" if d.paired else ", unpaired"), verdict])
    notes = [
        f"The difference is that of {one} less {other}, its error that of the differences on the same examples, shards, draws or probes. "
        "Larger means beyond 1.96 standard errors, or for eigenvalues beyond their residuals."
    ]
    return Table(["", one, other, "difference ± error", "relative", "error over", "so"], rows, notes)


def differences_of(
    one: RunReport,
    other: RunReport,
    evaluations: Mapping[str, tuple[Subsampled, Subsampled]],
    sharpness: tuple[Sequence[Sharpness], Sequence[Sharpness]],
    same_shapes: bool,
) -> tuple[list[Difference], list[str]]:
    """Return all differences of two models, and what could not be compared.

    Args:
        one: of which model.
        other: from which one it is taken.
        evaluations: of both, by part of the data.
        sharpness: of both.
        same_shapes: whether the parameters have the same names and shapes.

    Returns:
        The differences and notes.
    """
    names, found, notes = (one.name, other.name), [], []
    for part, (a, b) in evaluations.items():
        weights = a.part_sizes
        if not np.array_equal(weights, b.part_sizes):
            notes.append(f"{part} loss of {names[0]} and {names[1]}: not on the same pieces of the data, not compared.")
            continue
        each = a.per_part - b.per_part
        values, errors = mean_over_pieces(each, weights)
        for i, what in enumerate(("loss", "accuracy")):
            if not np.isnan(a.values[i]):
                pair = (float(a.values[i]), float(b.values[i]))
                found.append(
                    Difference(f"{part} {what}", *names, pair, pair[0] - pair[1], float(errors[i]), "examples", True, each[:, i], weights)
                )
    if one.eigen is not None and other.eigen is not None:
        found.append(_of_eigenvalues(names, one.eigen, other.eigen))
    if one.trace is not None and other.trace is not None:
        found.append(_of_traces(names, one.trace, other.trace, same_shapes))
    of_other = {_key(s): s for s in sharpness[1]}
    for a_sharp in sharpness[0]:
        b_sharp = of_other.get(_key(a_sharp))
        if b_sharp is None:
            continue
        label = label_of(a_sharp)
        try:
            d = paired_difference(a_sharp, b_sharp)
        except ValueError as error:
            notes.append(f"{label}: {names[0]} and {names[1]} cannot be compared: {error}.")
            continue
        over = _over(a_sharp)
        paired = over != "draws" or same_shapes
        found.append(Difference(label, *names, (a_sharp.value, b_sharp.value), d.value, d.stderr, over, paired, d.per_shard, d.shard_sizes))
    return found, notes


def _of_eigenvalues(names: tuple[str, str], a: Eigenpairs, b: Eigenpairs) -> Difference:
    # Of eigenvalues found by magnitude the largest one is the largest of all only if it is positive.
    known = all(r.which != "magnitude" or r.values.max() >= 0 for r in (a, b))
    i, j = (int(np.argmax(r.values if known else abs(r.values))) for r in (a, b))
    pair = (float(a.values[i]), float(b.values[j]))
    label = "λ_max" if known else "λ of largest magnitude"
    return Difference(label, *names, pair, pair[0] - pair[1], float(a.residuals[i] + b.residuals[j]), BOUND)


def _of_traces(names: tuple[str, str], a: TraceEstimate, b: TraceEstimate, same_shapes: bool) -> Difference:
    pair = (a.value, b.value)
    paired = same_shapes and "exact" not in (a.method, b.method) and min(len(a.samples), len(b.samples)) >= 3
    if not paired:
        return Difference("trace", *names, pair, a.value - b.value, math.hypot(a.stderr, b.stderr), "probes", False)
    each, error = paired_traces(a.samples, b.samples)
    return Difference("trace", *names, pair, a.value - b.value, error, "probes", True, each)


def paired_traces(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, float]:
    r"""Return what the difference of two means of estimates from the same probes is made of, and its standard error.

    One may have seen more probes than the other: with n <= m estimates b_i and a_i,

        mean(a) - mean(b) = 1/n sum_{i <= n} (n/m a_i - b_i) + 1/m sum_{i > n} a_i,

    whose terms are independent. Allowances are those of `mean_stderr`.

    Args:
        a: (m,) estimates, of probes in the order in which both saw them.
        b: (n,) estimates.

    Returns:
        The paired terms (min(m, n),), and the standard error.
    """
    sign = 1.0 if len(a) >= len(b) else -1.0
    more, fewer = (a, b) if len(a) >= len(b) else (b, a)
    n, m = len(fewer), len(more)
    each = n / m * more[:n] - fewer
    error = mean_stderr(each)
    if m > n:
        # Of the further ones alone a few would say too little of their spread: all have the same.
        error = math.hypot(error, mean_stderr(more) * math.sqrt((m - n) / m))
    return sign * each, error


_OVER = {"fisher_trace": "examples", "average_case": "draws", "low_pass": "draws", "relative_flatness": "draws"}


def _over(result: Sharpness) -> str:
    if result.measure in _OVER:
        return _OVER[result.measure]
    if result.m < result.settings.get("examples", result.m + 1):
        return "shards"
    return "one shard" if len(result.per_shard) == 1 else "examples"


def _key(result: Sharpness) -> tuple[object, ...]:
    return (result.measure, result.rho, result.m, result.p, bool(result.settings.get("adaptive")), result.settings.get("layer"))


def label_of(result: Sharpness) -> str:
    """Return a measure with the setting that tells it from the others, in a few words."""
    words = result.measure.replace("_", " ").replace("m sharpness", "m-sharpness").replace("sam gap", "SAM gap").replace("fisher", "Fisher")
    if result.measure.endswith("m_sharpness"):
        return f"{words}, m = {result.m}"
    if result.measure == "average_case" and result.settings.get("adaptive"):
        words = "average case, adaptive"
    if result.measure in ("sam_gap", "average_case", "low_pass", "worst_case"):
        return f"{words}, {'σ' if result.measure == 'low_pass' else 'ρ'} = {result.rho:g}"
    return words


def as_results(found: Sequence[Difference], provenance: Provenance) -> list[Result]:
    """Return differences as results that a file keeps."""
    kept: list[Result] = []
    for d in found:
        each = np.zeros((0, 1)) if d.per_part is None else d.per_part[:, None]
        kept.append(
            Subsampled(
                measure=f"difference of {d.measure}",
                values=np.array([d.value]),
                stderr=np.array([math.nan if d.over == BOUND else d.error]),
                bias=np.zeros(1),
                per_part=each,
                part_sizes=np.ones(len(each)) if d.weights is None else d.weights,
                leave_out=False,
                converged=True,
                provenance=provenance,
            )
        )
    return kept
