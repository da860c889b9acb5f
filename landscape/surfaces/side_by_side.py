"""Points side by side, each on one thread: a network of short layers gains more from that than from threads inside its layers."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import torch

from landscape.batches import seed_everything
from landscape.objective import Objective
from landscape.surfaces.found import Found, joined
from landscape.surfaces.metrics import METRICS, Metric

Point = tuple[float, float]
_NUMBERS = 2**26  # of all threads' copies of the parameters


class Loop(Protocol):
    """Evaluates points one after another, on tensors of its own."""

    def __call__(self, batch: Any, index: int, points: Sequence[Point]) -> Found:
        """Return what is found."""
        ...


def threads_for(objective: Objective, metrics: Sequence[Metric] = ()) -> int:
    """Return how many points may be evaluated at the same time; 1 where it is not known to be safe, or cannot pay.

    The loss must be one of PyTorch's, and metrics ours, as others may keep things between calls; the copies of the model share nothing but
    their buffers.
    """
    loss = objective.loss_function
    kind = (getattr(loss, "__module__", None) or "") if not isinstance(loss, torch.nn.Module) else type(loss).__module__
    if not set(metrics) <= set(METRICS.values()):
        return 1
    if objective.device.type != "cpu" or objective.takes != "outputs" or not kind.startswith("torch.") or objective.held().written:
        return 1
    return max(1, min(torch.get_num_threads(), _NUMBERS // max(1, objective.size)))


def draws(run: Loop, batch: Any, point: Point, device: torch.device) -> bool:
    """Tell whether a model draws random numbers: those of several threads would get into each other's way."""

    def states() -> tuple[Any, ...]:
        return torch.get_rng_state(), random.getstate(), np.random.get_state()

    seed_everything(0, device)
    before = states()
    run(batch, 0, [point])
    after = states()
    return not torch.equal(before[0], after[0]) or before[1] != after[1] or str(before[2]) != str(after[2])


class SideBySide:
    """Loops that share the points among them; see `points.Evaluator`.

    Args:
        loops: what evaluates a share of the points, one for each thread.
    """

    def __init__(self, loops: Sequence[Loop]) -> None:
        self._loops = loops
        self.width = len(loops)

    def __call__(self, batch: Any, index: int, points: Sequence[Point]) -> Found:
        """Evaluate shares of the points at the same time."""
        bounds = np.linspace(0, len(points), min(self.width, len(points)) + 1).round().astype(int).tolist()
        shares = [points[a:b] for a, b in zip(bounds, bounds[1:], strict=False)]
        found: list[Found | BaseException] = [AssertionError("not evaluated")] * len(shares)

        def evaluate(i: int) -> None:
            try:
                torch.set_num_threads(1)  # of this thread
                with torch.no_grad():
                    found[i] = self._loops[i](batch, index, shares[i])
            except BaseException as error:
                found[i] = error

        threads = torch.get_num_threads()
        others = [threading.Thread(target=evaluate, args=(i,), daemon=True) for i in range(1, len(shares))]
        try:
            for thread in others:
                thread.start()
            evaluate(0)
        finally:
            for thread in others:
                thread.join()
            torch.set_num_threads(threads)
        shown: list[Found] = []
        for each in found:
            if isinstance(each, BaseException):
                raise each
            shown.append(each)
        return joined(shown)


def shared_out(build: Callable[[], Loop], threads: int) -> Loop:
    """Return a loop, or one for each thread."""
    return build() if threads == 1 else SideBySide([build() for _ in range(threads)])
