"""What a forward pass, a gradient, a product and a point of a surface cost with a model, measured once on a few examples.

The time of a pass over n examples in batches of b is n (s + a / b): a for every batch, s for every example.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch

from landscape.batches import count_examples
from landscape.comparison.sizes import Sizes
from landscape.curvature import HessianOperator
from landscape.objective import Objective
from landscape.sharpness import m_sharpness
from landscape.stateless import undisturbed
from landscape.surfaces import Plane
from landscape.surfaces.points import evaluator, ways

_MOMENT = 0.05  # seconds that a measured pass should take
_SHARE = 0.22  # of the points of a plane that are evaluated, before anything is known of it
_VERY_LONG = 10.0
_MANY_POINTS = 500
_COARSE = 13  # points along an axis that always are


@dataclass(frozen=True)
class Costs:
    """Seconds; `call` for every batch, `each` for every example in it."""

    forward_call: float
    forward_each: float
    gradient_call: float
    gradient_each: float
    product_each: float
    single_each: float
    """Of m-sharpness with m = 1: a gradient and a forward pass of one example, many at once where that is faster."""
    point_each: float
    """A point of a surface."""
    draw: float
    """Noise for all parameters."""
    batch: int
    form: str
    """Of the model in products, see `HessianOperator`."""
    parameters: int

    def forward(self, n: int, batch: int | None = None) -> float:
        """Return the seconds of a pass over n examples."""
        return _pass(n, min(batch or self.batch, self.batch), self.forward_call, self.forward_each)

    def gradient(self, n: int, batch: int | None = None) -> float:
        """Return the seconds of a gradient over n examples."""
        return _pass(n, min(batch or self.batch, self.batch), self.gradient_call, self.gradient_each)

    def product(self, n: int) -> float:
        """Return the seconds of a Hessian-vector product over n examples."""
        return n * self.product_each

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as a plain dictionary."""
        return asdict(self)


def _pass(n: int, batch: int, call: float, each: float) -> float:
    return math.ceil(n / max(batch, 1)) * call + n * each


def measured(make: Callable[[int], Objective], total: int, plane: Plane | None) -> Costs:
    """Measure the costs of one model.

    Args:
        make: returns the objective on so many examples.
        total: how many there are.
        plane: directions around the model, to see what a point costs.

    Returns:
        The costs.
    """
    small = make(min(8, total))
    device = small.device
    forward_small = _timed(small.evaluate, device)
    count = min(8, total)
    large, forward_large = small, forward_small
    while count < total and forward_large < _MOMENT and count < (large.batches.batch_size or 128):
        count = min(4 * count, total)
        large = make(count)
        forward_large = _timed(large.evaluate, device)
    size = large.batches.batch_size or 128
    forward = _line(small.examples, forward_small, large.examples, forward_large, size)
    gradient = _line(small.examples, _timed(small.gradient, device), large.examples, _timed(large.gradient, device), size)
    operator = HessianOperator(large)
    vector = torch.ones(large.size, dtype=large.dtype, device=device)
    with undisturbed(device):
        operator.matvec(vector)  # builds the graphs that are kept
        product = _timed(partial(operator.matvec, vector), device) / large.examples
    form = operator.form or "plain"
    if operator.memory_kept * total / large.examples > operator.memory_budget:  # graphs are built again for every product
        product += gradient[1] + gradient[0] / size
    del operator
    few = make(max(1, min(total, 96 if large.batch_norm == "eval" else 8, int(0.5 / max(4 * sum(gradient), 1e-6)))))
    single = sum(gradient) + sum(forward)
    if large.batch_norm == "eval":
        single = _timed(lambda: m_sharpness(few, m=1, progress=False), device) / few.examples
    point = forward_large / large.examples
    if plane is not None and point * total * _MANY_POINTS > 2.0:  # looking for a faster way takes a second or two
        point = min(point, _point(large, plane))
    drawn = torch.zeros(min(large.size, 1 << 20), dtype=torch.float64)
    draw = _timed(lambda: drawn.normal_(generator=torch.Generator().manual_seed(0)), torch.device("cpu")) * large.size / len(drawn)
    return Costs(*forward, *gradient, product, single, point, 2 * draw, size, form, large.size)


def _point(objective: Objective, plane: Plane) -> float:
    """Return the seconds that a point of a surface takes on an example, in the fastest way that there is."""
    points = [(x / 10, y / 10) for x in (-1, 0, 1) for y in (-1, 0, 1)]
    best = math.inf
    with undisturbed(objective.device), closing(objective.batches.seeded()) as batches:
        batch = next(batches)[1]
        for way in ways(objective, batch):
            with suppress(Exception):  # a way that this loss cannot be gone is none
                run = evaluator(objective, plane, 2, way)
                best = min(best, _timed(partial(run, batch, 0, points), objective.device) / (len(points) * count_examples(batch)))
    return best


def _timed(work: Callable[[], object], device: torch.device) -> float:
    """Return the seconds that some work takes: the best of a few times, once warm.

    The first time may import, compile or choose kernels; only where it takes very long it counts, for there is no time for a second.
    """
    best = math.inf
    for turn in range(4):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        taken = time.perf_counter() - start
        if turn or taken > _VERY_LONG:
            best = min(best, taken)
        if best < math.inf and (best > 4 * _MOMENT or turn == 3):
            break
    return best


def _line(n: int, seconds: float, more: int, longer: float, batch: int) -> tuple[float, float]:
    """Return the seconds of a batch and of each example in it, from the times of n examples and of more, in batches of `batch`."""
    calls, further = math.ceil(n / batch), math.ceil(more / batch)
    if more == n:
        return 0.2 * seconds / calls, 0.8 * seconds / n
    # Two equations, call c + n e = t; where noise makes one of them negative it is none.
    determinant = calls * more - further * n
    each = (calls * longer - further * seconds) / determinant if determinant else longer / more
    each = min(max(each, 0.0), longer / more)
    return max(0.0, (seconds - n * each) / calls), each


def seconds_of_measure(name: str, costs: Costs, sizes: Sizes, n: int) -> float:
    """Return about how long one measure of sharpness takes on n examples.

    Args:
        name: of the measure.
        costs: of the model.
        sizes: how much is measured.
        n: number of examples.

    Returns:
        Seconds.
    """
    c, pieces = costs, max(1, n // 32)
    batch = min(c.batch, n)
    noisy = c.draw + c.forward(n)
    match name:
        case "m_sharpness":
            sizes_of_shards = dict.fromkeys(min(m, n) for m in sizes.shards)
            return sum(_shards(c, n, m) for m in sizes_of_shards)
        case "sam_gap":
            return c.gradient(n) + 6 * c.forward(n, pieces)
        case "gradient_norm":
            return c.gradient(n) + c.gradient(n, pieces)
        case "fisher_trace":
            return 0.8 * n * c.single_each
        case "worst_case":
            return 22 * c.gradient(n, min(batch, 128, max(1, n // 4)))
        case "keskar":
            return 11 * c.gradient(n) + 2 * c.forward(n, pieces)
        case "average_case" | "adaptive_average_case":
            draws = sizes.draws or 50
            return draws * (noisy + c.forward(n)) + c.forward(n)
        case "low_pass":
            return (sizes.draws or 100) * noisy
        case "relative_flatness":
            return c.gradient(n) + (sizes.draws or 50) * 0.5 * c.forward(n)
    return c.gradient(n)  # a measure that came later


def _shards(c: Costs, n: int, m: int) -> float:
    if m == 1:
        return n * c.single_each
    one_by_one = c.gradient(n, m) + c.forward(n, m)
    return min(one_by_one, max(n * c.single_each, c.gradient(n) + c.forward(n)))


def evaluated_points(sizes: Sizes, share: float | None = None) -> int:
    """Return about how many points of a plane are evaluated."""
    points = sizes.points**2
    if sizes.tolerance is None or sizes.points <= _COARSE:
        return points
    return min(points, int(min(_COARSE, sizes.points) ** 2 + (share or _SHARE) * (points - _COARSE**2)))
