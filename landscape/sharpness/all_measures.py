"""All measures in one go: which there are, with settings to compare models by, and one row of a table for each result."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from landscape.batches import leaves
from landscape.objective import Objective
from landscape.progress import progress as progress_bar
from landscape.results.numbers import with_error
from landscape.results.types import Sharpness
from landscape.sharpness.average_case import average_case
from landscape.sharpness.fisher_trace import fisher_trace
from landscape.sharpness.gradient_norm import gradient_norm
from landscape.sharpness.keskar import keskar
from landscape.sharpness.low_pass import low_pass
from landscape.sharpness.m_sharpness import m_sharpness
from landscape.sharpness.measurement import Known
from landscape.sharpness.relative_flatness import relative_flatness
from landscape.sharpness.sam_gap import sam_gap
from landscape.sharpness.worst_case import worst_case

Results = Sequence[Sharpness]
MEASURES = (
    "m_sharpness",
    "sam_gap",
    "gradient_norm",
    "fisher_trace",
    "worst_case",
    "keskar",
    "average_case",
    "adaptive_average_case",
    "low_pass",
    "relative_flatness",
)


@dataclass(frozen=True)
class Choices:
    """What is the same for every model that is to be compared; what is not here has each measure's own default."""

    rho: float = 0.05  # of m-sharpness
    m: tuple[int, ...] | None = None  # of m-sharpness; None for 1, 16 and 128
    p: float = 2.0  # of m-sharpness and the SAM gap
    steps: int = 1  # of m-sharpness
    adaptive: bool = False  # m-sharpness and the SAM gap
    restarts: int = 0  # of every ascent of several steps
    draws: int | None = None  # of the measures that average over draws; None for each one's default
    seed: int = 0
    ranks: bool = False


def chosen(names: Sequence[str]) -> tuple[str, ...]:
    """Return the measures that some names stand for.

    Args:
        names: of `MEASURES`, or "all".

    Returns:
        The names, in the order of the table.

    Raises:
        ValueError: a name is none of a measure.
    """
    unknown = [name for name in names if name not in (*MEASURES, "all")]
    if unknown or not names:
        raise ValueError(f"measures must be 'all' or some of {', '.join(MEASURES)}; got {', '.join(map(repr, unknown)) or 'none'}")
    return tuple(name for name in MEASURES if name in names or "all" in names)


def measure_all(
    objective: Objective,
    names: Sequence[str] = ("all",),
    choices: Choices | None = None,
    *,
    known: Known = (),
    progress: bool | None = None,
) -> Iterator[Sharpness | tuple[str, str]]:
    """Yield the results of several measures, each as soon as it is there.

    Args:
        objective: the loss.
        names: of `MEASURES`, or "all".
        choices: settings.
        known: earlier results; those of the same settings and weights are yielded as they are.
        progress: show bars; None shows them on a terminal.

    Yields:
        Results; and (name, reason) for a measure that "all" asks for and this loss or model does not have.

    Raises:
        ValueError: a name is none of a measure, or a setting is out of range.
    """
    wanted = chosen(names)
    known = list(known)
    calls = [(name, call) for name in wanted for call in _calls(name, objective, choices or Choices(), known, progress)]
    with progress_bar(len(calls), "sharpness", "measure", show=progress) as bar:
        for name, call in calls:
            try:
                yield from call()
            except ValueError as error:
                if "all" not in names or not _is_lacking(error):
                    raise
                yield name, str(error)
            bar.update(1)


def _is_lacking(error: ValueError) -> bool:
    """Tell a measure that this model, loss or mode does not have from a measurement that went wrong."""
    return any(words in str(error) for words in ("labels='model'", "no batch statistics", "relative flatness is that of a layer"))


def _calls(name: str, objective: Objective, c: Choices, known: Known, progress: bool | None) -> list[Callable[[], Results]]:
    shards = {"ranks": c.ranks, "known": known, "progress": progress}
    drawn = shards | {"seed": c.seed} | ({} if c.draws is None else {"draws": c.draws})
    climbing = shards | {"seed": c.seed, "restarts": c.restarts}

    def one(measure: Callable[..., Sharpness], *arguments: object, **options: object) -> Callable[[], Results]:
        return lambda: [measure(objective, *arguments, **options)]

    n = objective.examples
    match name:
        case "m_sharpness":
            first = 1 if objective.batch_norm == "eval" else 2  # a batch of one example has no statistics
            sizes = c.m or tuple(dict.fromkeys(min(m, n) for m in (1, 16, 128) if m >= first))
            options = {"p": c.p, "adaptive": c.adaptive, "steps": c.steps}
            return [one(m_sharpness, c.rho, m, **climbing, **options) for m in sizes]
        case "sam_gap":
            return [partial(sam_gap, objective, p=c.p, adaptive=c.adaptive, known=known)]
        case "gradient_norm":
            return [one(gradient_norm, **shards)]
        case "fisher_trace":
            return [one(fisher_trace, seed=c.seed, **shards)]
        case "worst_case":
            # Several shards, for the sake of an error bar; logits can be normalised where there are some.
            return [one(worst_case, m=min(128, -(-n // 4)), normalize_logits=_has_classes(objective), **climbing)]
        case "keskar":
            return [one(keskar, **climbing)]
        case "average_case":
            return [one(average_case, **drawn)]
        case "adaptive_average_case":
            return [one(average_case, 0.1, adaptive=True, **drawn)]
        case "low_pass":
            return [one(low_pass, **drawn)]
    assert name == "relative_flatness"
    return [one(relative_flatness, **{k: v for k, v in drawn.items() if k != "ranks"})]


def _has_classes(objective: Objective) -> bool:
    first = next(iter(objective.batches))
    return objective.takes == "outputs" and len(leaves(first)) == 2 and not leaves(first)[1].is_floating_point()


def row(result: Sharpness) -> tuple[str, str, str, str]:
    """Return one row of the table: measure, value ± stderr, settings, cost."""
    error = "" if math.isfinite(result.stderr) else " (one shard)"
    return result.measure, with_error(result.value, result.stderr) + error, settings_in_short(result), str(result.cost)


def settings_in_short(result: Sharpness) -> str:
    """Return the settings that decide the number in one line; those of the data once more are in `settings`."""
    unsaid = {"data", "dtype", "examples"}
    shown = dict(result.settings) if result.settings else {"rho": result.rho, "m": result.m, "p": result.p}
    if not shown.get("rho"):
        shown.pop("rho", None)
    texts = []
    for key, value in shown.items():
        if key in unsaid or (value in (False, 0, None) and key not in {"adaptive", "seed"}):
            continue
        if key == "p" and value == 2 and "rho" not in shown:
            continue
        text = f"{value:g}" if isinstance(value, float) and not math.isinf(value) else str(value)
        texts.append(
            f"{key.replace('_', ' ')} {text}" if not isinstance(value, bool) else ("" if value else "not ") + key.replace("_", " ")
        )
    return ", ".join(texts)


def table(results: Sequence[Sharpness]) -> str:
    """Return results as a table of text: measure, value ± stderr, settings, cost."""
    rows = [("measure", "value ± stderr", "settings", "cost"), *map(row, results)]
    widths = [max(len(r[i]) for r in rows) for i in range(4)]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(r, widths, strict=True)).rstrip() for r in rows)
