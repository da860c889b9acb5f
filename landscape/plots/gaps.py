"""Which runs can stand in a figure of sharpness against generalisation gap: what `landscape plot` and the report both draw."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from landscape.plots.report import RunReport

FEWEST = 3
"""Fewer points have no rank correlation."""


def measures_and_gaps(groups: Mapping[str, Sequence[RunReport]]) -> dict[str, tuple[dict[str, list[Any]], dict[str, list[Any]]]]:
    """Return what `generalization` takes, by what is measured.

    Args:
        groups: the runs of each method.

    Returns:
        For "sharpness", "eigenvalue" and "trace" the measures and the gaps, by method; those that fewer than three runs have are left out.
    """
    kinds: dict[str, Callable[[RunReport], Any]] = {
        "sharpness": lambda run: run.sharpness[min(run.sharpness)] if run.sharpness else None,
        "eigenvalue": lambda run: run.eigen,
        "trace": lambda run: run.trace,
    }
    found = {}
    for kind, measure in kinds.items():
        both = {name: [(measure(run), _gap(run)) for run in of] for name, of in groups.items()}
        both = {name: [pair for pair in of if None not in pair] for name, of in both.items()}
        measured = {name: [pair[0] for pair in of] for name, of in both.items() if of}
        gaps = {name: [pair[1] for pair in of] for name, of in both.items() if of}
        if sum(map(len, gaps.values())) >= FEWEST:
            found[kind] = measured, gaps
    return found


def _gap(run: RunReport) -> Any:
    """Return the training history, or the difference of the losses that were measured at the end; None without either."""
    test, train = (run.attributes.get(f"{part}_loss") for part in ("test", "train"))
    if isinstance(test, int | float) and isinstance(train, int | float):
        return float(test) - float(train)
    return run.training if run.training is not None and len(run.training.epoch) else None
