"""What a comparison does, in which order, how long it will take, and what is left out for lack of time.

With a budget the largest sizes are chosen that fit: first fewer examples, down to a number that each level still asks for, then fewer
products, draws and points, then fewer measures. Nothing goes without a word: what is left out is listed with the reason.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from landscape.comparison.costs import Costs, evaluated_points, seconds_of_measure
from landscape.comparison.sizes import Sizes, in_words

CURVATURE = ("eigenvalues", "trace", "density")
_FIT = 0.8  # of the budget is planned: estimates are no promises
_LEAST = 32  # examples
_RATHER_MEASURES = 0.7  # of the time may go into more measures before it goes into more examples
_FEWEST_PRODUCTS = 16


@dataclass(frozen=True)
class Level:
    """How much is measured at one level of a budget, on how many examples at least."""

    examples: int
    changes: dict[str, int | float | None]
    without: tuple[str, ...] = ()


# Each level takes a half to two thirds of the time of the one before.
LEVELS = (
    Level(4096, {}),
    Level(2048, {"products": 120, "density_probes": 3, "density_steps": 24, "draws": 25, "points": 41}),
    Level(1024, {"products": 80, "density_probes": 3, "density_steps": 20, "draws": 12, "points": 31}),
    Level(512, {"products": 60, "density_probes": 2, "density_steps": 16, "draws": 8, "points": 25}),
    Level(256, {"products": 40, "density_probes": 2, "density_steps": 12, "draws": 5, "points": 21}, ("worst_case",)),
    Level(
        128,
        {"eigenpairs": 3, "products": 30, "density_probes": 1, "density_steps": 10, "draws": 3, "points": 17},
        ("worst_case", "keskar", "relative_flatness"),
    ),
    Level(
        64,
        {"eigenpairs": 1, "products": 24, "density_probes": 0, "draws": 3, "points": 13},
        ("worst_case", "keskar", "relative_flatness", "average_case", "adaptive_average_case", "low_pass", "density"),
    ),
    Level(
        32,
        {"eigenpairs": 1, "products": 16, "density_probes": 0, "draws": 3, "points": 9, "between": 9},
        (
            "worst_case",
            "keskar",
            "relative_flatness",
            "average_case",
            "adaptive_average_case",
            "low_pass",
            "density",
            "fisher_trace",
            "sam_gap",
        ),
    ),
)


@dataclass(frozen=True)
class Shape:
    """What the plan has to know of the job."""

    costs: Mapping[str, Costs]
    """By model."""
    examples: int
    test_examples: int
    pairs: int
    """Of models on one line."""
    reference: str


@dataclass(frozen=True)
class Plan:
    """Sizes, what is left out and why, and seconds by part for all models together."""

    sizes: Sizes
    left_out: dict[str, str] = field(default_factory=dict)
    budget: float | None = None
    share: float | None = None
    """Of the points of a plane that are evaluated, where that was tried."""
    plane_examples: int | None = None
    """Of the plane, where it was made to fit the time that was left; None for as many as the other surfaces."""
    plane_points: int | None = None
    begun: tuple[str, ...] = ()
    """Parts that have been measured of a model at least."""


_TITLES = {
    "evaluation": "loss and accuracy",
    "eigenvalues": "largest eigenvalues",
    "trace": "trace of the Hessian",
    "density": "spectral density",
    "line": "surface on a line",
    "plane": "surface on a plane",
    "between": "straight line between two",
    "m_sharpness": "m-sharpness",
    "sam_gap": "SAM gap",
    "fisher_trace": "Fisher trace",
    "adaptive_average_case": "average case, adaptive",
}


def title(part: str) -> str:
    """Return what a part is called."""
    return _TITLES.get(part, part.replace("_", " "))


def parts_of(sizes: Sizes) -> list[str]:
    """Return the parts of a job in the order in which they are done; a part is done for all models before the next begins."""
    parts = ["evaluation", "eigenvalues", "trace"]
    first = [m for m in sizes.measures if m == "m_sharpness"]
    others = [m for m in sizes.measures if m != "m_sharpness"]
    parts += ["density"] if sizes.density_probes else []
    parts += [*first, *(["line"] if sizes.points else []), *others]
    parts += ["between"] if sizes.between else []
    return parts + (["plane"] if sizes.points else [])


def seconds_of_part(part: str, name: str, shape: Shape, sizes: Sizes, share: float | None = None) -> float:
    """Return about how long a part takes with one model.

    Args:
        part: of `parts_of`.
        name: of the model.
        shape: of the job.
        sizes: how much is measured.
        share: of the points of a plane that are evaluated.

    Returns:
        Seconds.
    """
    c = shape.costs[name]
    n = min(sizes.examples or shape.examples, shape.examples)
    s = min(sizes.surface_examples or n, n)
    match part:
        case "evaluation":
            tested = min(sizes.test_examples or shape.test_examples, shape.test_examples)
            return 3 * c.forward(n, max(1, n // 64)) + 2 * (c.forward(tested, max(1, tested // 64)) if tested else 0.0)
        case "eigenvalues":
            return c.gradient(n) + min(sizes.products, 14 + 4 * sizes.eigenpairs) * c.product(n)
        case "trace":
            return min(sizes.products, 40) * c.product(n)
        case "density":
            return sizes.density_probes * sizes.density_steps * c.product(n)
        case "line":
            return min(sizes.points, 25) * s * c.point_each
        case "between":
            return 0.0 if name == shape.reference or not shape.pairs else sizes.between * c.forward(s, _between_batch(s))
        case "plane":
            return evaluated_points(sizes, share) * s * c.point_each
    return seconds_of_measure(part, c, sizes, n)


def _between_batch(examples: int) -> int:
    return max(1, -(-examples // BETWEEN_BATCHES))


BETWEEN_BATCHES = 10  # at least: a barrier has its standard error over batches


def estimate(shape: Shape, sizes: Sizes, share: float | None = None) -> dict[str, float]:
    """Return about how long each part takes with all models together."""
    return {part: sum(seconds_of_part(part, name, shape, sizes, share) for name in shape.costs) for part in parts_of(sizes)}


def planned(shape: Shape, sizes: Sizes, budget: float | None, spent: float = 0.0) -> Plan:
    """Return the sizes that fit a budget, or those that were asked for where there is none.

    Args:
        shape: of the job.
        sizes: the most that is wanted.
        budget: seconds for the whole job; None for no limit.
        spent: seconds that have gone by.

    Returns:
        The plan.
    """
    if budget is None:
        return Plan(sizes)
    room = _FIT * budget - spent
    for level in LEVELS:
        at_level = _at(level, sizes)
        least = min(level.examples, shape.examples)
        richer = _with_what_is_cheap(_on(at_level, least, shape), sizes, shape, _RATHER_MEASURES * room)
        at_level = replace(at_level, measures=richer.measures, density_probes=richer.density_probes)
        examples = _largest(at_level, shape, room, least)
        if examples is not None or level is LEVELS[-1]:
            if examples is None:
                examples = _largest(at_level, shape, room, min(_LEAST, shape.examples)) or min(_LEAST, shape.examples)
            chosen = _on(at_level, examples, shape)
            chosen = _bounded(_wide_enough(_with_what_is_cheap(chosen, sizes, shape, room), sizes, shape, room), shape, budget)
            return Plan(chosen, _reasons(sizes, chosen, shape, budget), budget)
    return Plan(sizes, {}, budget)


def _at(level: Level, sizes: Sizes) -> Sizes:
    """Return the sizes of a level: never more than was asked for."""
    changes: dict[str, object] = {}
    for name, value in level.changes.items():
        asked = getattr(sizes, name)
        changes[name] = value if asked is None or (value is not None and value < asked) else asked
    measures = tuple(m for m in sizes.measures if m not in level.without)
    return replace(sizes, **changes, measures=measures)  # type: ignore[arg-type]


def _on(sizes: Sizes, examples: int, shape: Shape) -> Sizes:
    """Return the sizes on so many examples, of which surfaces take a fourth where they are many."""
    few = None if examples >= shape.examples and sizes.examples is None else min(examples, sizes.examples or examples)
    on_surfaces = max(min(examples, 512), examples // 4)
    on_surfaces = min(on_surfaces, sizes.surface_examples or on_surfaces)
    tested = min(shape.test_examples, max(4 * examples, 1000))
    return replace(
        sizes,
        examples=few,
        surface_examples=on_surfaces if on_surfaces < examples else None,
        test_examples=tested if 0 < tested < shape.test_examples else sizes.test_examples,
    )


def _largest(sizes: Sizes, shape: Shape, room: float, least: int) -> int | None:
    """Return the largest number of examples that fits, None if not even the least does."""
    most = min(sizes.examples or shape.examples, shape.examples)
    least = min(least, most)

    def fits(examples: int) -> bool:
        return sum(estimate(shape, _on(sizes, examples, shape)).values()) <= room

    if fits(most):
        return most
    if not fits(least):
        return None
    low, high = least, most
    while high - low > max(1, low // 50):
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low if low < 256 else low // 128 * 128  # whole shards of 128


def _wide_enough(chosen: Sizes, asked: Sizes, shape: Shape, room: float) -> Sizes:
    """Give what time is left to the surfaces: more points, then more examples."""
    for points in sorted({41, 51, asked.points, 31, 25}):
        wider = replace(chosen, points=points)
        if chosen.points < points <= asked.points and sum(estimate(shape, wider).values()) <= room:
            chosen = wider
    return chosen


def _bounded(chosen: Sizes, shape: Shape, budget: float) -> Sizes:
    """Stop eigenvalues and trace where they would take more than a third of the budget; what has not converged then says so."""
    one = sum(c.product(min(chosen.examples or shape.examples, shape.examples)) for c in shape.costs.values())
    return replace(chosen, products=min(chosen.products, max(_FEWEST_PRODUCTS, int(budget / 6 / max(one, 1e-9)))))


def _missing(asked: Sizes, chosen: Sizes) -> dict[str, Sizes]:
    """Return every part that was asked for and is not to be measured, with the sizes that would have it."""
    found = {}
    for part in asked.measures:
        if part not in chosen.measures:
            found[part] = replace(chosen, measures=tuple(m for m in asked.measures if m == part or m in chosen.measures))
    if asked.density_probes and not chosen.density_probes:
        found["density"] = replace(chosen, density_probes=1)
    return found


def _with_what_is_cheap(chosen: Sizes, asked: Sizes, shape: Shape, room: float) -> Sizes:
    """Take in again what a level leaves out and there is time for, the cheapest first."""
    while missing := _missing(asked, chosen):
        costs = {part: sum(seconds_of_part(part, name, shape, with_it) for name in shape.costs) for part, with_it in missing.items()}
        cheapest = min(costs, key=lambda part: costs[part])
        if sum(estimate(shape, missing[cheapest]).values()) > room:
            break
        chosen = missing[cheapest]
    return chosen


def _reasons(asked: Sizes, chosen: Sizes, shape: Shape, budget: float) -> dict[str, str]:
    """Say of everything that was asked for and is not measured how long it would have taken."""
    found = {}
    for part, with_it in _missing(asked, chosen).items():
        seconds = sum(seconds_of_part(part, name, shape, with_it) for name in shape.costs)
        found[part] = f"about {in_words(seconds)} more did not fit into the budget of {in_words(budget)}"
    return found


def in_short(plan: Plan, shape: Shape) -> list[str]:
    """Return what is going to be measured and how long it will take, in a few lines."""
    s = plan.sizes
    n = min(s.examples or shape.examples, shape.examples)
    on = min(s.surface_examples or n, n)
    every = estimate(shape, s, plan.share)
    curvature = f"{s.eigenpairs} eigenvalue{'s' if s.eigenpairs > 1 else ''}, the trace to {100 * s.trace_tol:g} %"
    curvature += f", the density from {s.density_probes} x {s.density_steps} products" if s.density_probes else ""
    drawn = "" if s.draws is None else f" ({s.draws} draws)"
    lines = [
        f"on {n:,} of {shape.examples:,} examples: {curvature}, "
        f"{len(s.measures)} measure{'' if len(s.measures) == 1 else 's'} of sharpness{drawn}"
    ]
    if s.points:
        text = "every point evaluated" if s.tolerance is None else f"interpolated where {100 * s.tolerance:g} % can be kept"
        lines.append(f"on {on:,} of them: a line and a plane of {s.points} x {s.points} points, {text}")
    if s.between and shape.pairs:
        lines.append(f"between {'the two' if shape.pairs == 1 else 'each one and ' + shape.reference}: {s.between} points")
    lines += [f"left out: {title(part)}, as {reason}" for part, reason in plan.left_out.items()]
    limit = "" if plan.budget is None else f" of a budget of {in_words(plan.budget)}"
    lines.append(f"this takes about {in_words(sum(every.values()))}{limit}")
    return lines
