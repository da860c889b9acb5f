"""Mode connection: a curve of low loss between two minima (Garipov et al. 2018, arXiv 1802.10026; Draxler et al. 2018).

The ends are fixed and the bends are trained, such that the mean loss over the curve, the integral of L(w(t)) over t in [0, 1], falls: each
step draws one t and moves the bends along their part of the gradient there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from landscape.objective import Objective, Parameters
from landscape.results.names import escape_name
from landscape.results.types import Cost, LossPath
from landscape.surfaces.alignment import aligned
from landscape.surfaces.along import Statistics
from landscape.surfaces.bends import Training, has_batch_norm
from landscape.surfaces.curves import CurveType, coefficients, place
from landscape.surfaces.directions import Plane
from landscape.surfaces.paths import curve_path, started
from landscape.surfaces.planes import minima_plane
from landscape.surfaces.weights import Point, Weights, statistics_names, weights_of


@dataclass(frozen=True, eq=False, repr=False)
class Connection:
    """A trained curve between two points, and the straight line to compare it with."""

    path: LossPath
    linear: LossPath
    bends: tuple[Parameters, ...]
    ends: tuple[Weights, Weights]
    curve: CurveType

    def at(self, t: float) -> Parameters:
        """Return the parameters at a place 0 <= t <= 1 on the curve."""
        if not 0 <= t <= 1:
            raise ValueError(f"t must be between 0 and 1, got {t!r}")
        corners = [self.ends[0].parameters, *self.bends, self.ends[1].parameters]
        out = {name: torch.empty_like(p) for name, p in corners[0].items()}
        place(corners, coefficients(self.curve, len(corners), np.array([float(t)]))[0].tolist(), out)
        return out

    def plane(self, objective: Objective) -> Plane:
        """Return the plane through both ends, a and b, and the first bend, c: a quadratic Bezier curve lies in it."""
        return minima_plane(objective, self.ends[0].parameters, self.ends[1].parameters, self.bends[0])

    def __repr__(self) -> str:
        return f"<Connection {self.path.summary()}; straight line: barrier {self.linear.barrier:.4g}>"


def connect_modes(
    objective: Objective,
    a: Point,
    b: Point,
    *,
    curve: Literal["bezier", "chain"] = "bezier",
    bends: int = 1,
    epochs: int = 30,
    lr: float = 0.03,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    batch_size: int = 128,
    align: bool = False,
    points: int = 25,
    statistics: Statistics = "recompute",
    statistics_data: Any = None,
    seed: int = 0,
    out: str | Path | None = None,
    name: str | None = None,
    resume: bool = True,
    save_every: float = 5.0,
    ranks: bool = False,
    progress: bool | None = None,
) -> Connection:
    """Train a curve between two minima and evaluate the loss along it, and along the straight line.

    SGD with momentum; the learning rate is `lr` for half of the epochs, falls linearly to a hundredth until nine tenths, and stays. Batch
    norm uses the statistics of the batch while the curve is trained. The bends begin on the straight line.

    Args:
        objective: the loss, on training data; its model is not written to.
        a: one end: a model, a state_dict or a dictionary of parameters.
        b: the other end.
        curve: "bezier", of degree `bends` + 1, or "chain", a polygon.
        bends: how many corners are trained.
        epochs: passes over the data.
        lr: learning rate.
        momentum: of SGD.
        weight_decay: d of the term d ||w(t)||^2 / 2 that is added to the loss at the place drawn, as in the authors' code.
        batch_size: of the training steps, for data given as tensors, which are shuffled; a loader's batches are taken as they come.
        align: permute the units of b first; see `aligned`.
        points: to evaluate both paths at, evenly spaced in t.
        statistics: of batch norm in evaluation mode along both paths; see `linear_path`.
        statistics_data: see `linear_path`.
        seed: of the order of examples and of the draws of t.
        out: result file to keep the path in, and the straight line.
        name: of the path in that file; the curve by default; the straight line is `name`-linear.
        resume: go on where a process that was killed or interrupted left this curve, in a file beside `out`; False begins anew.
        save_every: seconds between savings of how far it has come, at least.
        ranks: share the points of both paths out among the processes that torchrun started, see `linear_path`; the first one trains.
        progress: show bars; None shows them on a terminal.

    Returns:
        The curve: `.path` and `.linear` with their barriers, `.bends`, `.at(t)`.

    Raises:
        ValueError: an option outside what is allowed, or points that do not fit the objective; `NonFiniteLossError` if training diverges.
    """
    if curve not in ("bezier", "chain"):
        raise ValueError(f"curve must be 'bezier' or 'chain', got {curve!r}")
    for argument, value in (("bends", bends), ("epochs", epochs), ("batch_size", batch_size)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{argument} must be a positive integer, got {value!r}")
    if not 0 < lr < float("inf") or not 0 <= momentum < 1 or not 0 <= weight_decay < float("inf"):
        raise ValueError(f"lr must be positive, momentum in [0, 1), weight_decay at least 0; got {lr!r}, {momentum!r}, {weight_decay!r}")
    if batch_size == 1 and objective.batches.in_memory and has_batch_norm(objective):
        raise ValueError("batch_size must be at least 2: batch norm trains with the statistics of the batch, and one example has none")
    settings = {"epochs": epochs, "lr": lr, "momentum": momentum, "weight_decay": weight_decay, "train_batch_size": batch_size}
    name = name or curve
    options: dict[str, Any] = {"statistics": statistics, "statistics_data": statistics_data, "progress": progress}
    kept: dict[str, Any] = {"out": out, "resume": resume, "save_every": save_every, "ranks": ranks}
    with started(objective, name, points=points, **options, **kept) as run:
        escape_name(f"{name}-linear")
        ends = [weights_of(objective, a, "a"), weights_of(objective, b, "b")]
        meter = objective.meter()
        unfinished = run.unfinished(ends, curve, np.linspace(0, 1, points).tolist(), seed, align=align, bends=bends, **settings)
        if align:
            ends[1] = aligned(objective, ends[0], ends[1], seed=seed)
        common: dict[str, Any] = {"seed": seed, "unfinished": unfinished}
        straight = objective.meter()
        further: dict[str, Any] = {"aligned": align}
        linear, before = curve_path(run, ends, "linear", points, name=f"{name}-linear", stage="linear", further=further, **common)
        linear = replace(linear, cost=replace(linear.cost, seconds=before + straight.cost().seconds))
        training = Training(objective, ends, curve, bends, epochs, lr, momentum, weight_decay, batch_size, seed)
        training.run(unfinished, run.dealer, progress)
        corners = [ends[0], *(Weights(w, ends[0].statistics) for w in training.bends), ends[1]]
        if statistics == "interpolate" and statistics_names(objective):
            half = {n: (s + ends[1].statistics[n]) / 2 for n, s in ends[0].statistics.items()}
            corners[1:-1] = [Weights(w, half) for w in training.bends]
        further = {"aligned": align, "training_loss": training.history, **settings}
        path, path_before = curve_path(run, corners, curve, points, further=further, **common)
        path = _on_plane(path, objective, corners, curve)
        seconds = before + training.seconds_before + path_before + meter.cost().seconds
        path = replace(path, cost=Cost(linear.cost.forwards + path.cost.forwards, training.gradients, seconds=seconds))
        run.save(unfinished, linear, path)
    return Connection(path, linear, tuple(training.bends), (ends[0], ends[1]), curve)


def _on_plane(path: LossPath, objective: Objective, corners: Sequence[Weights], curve: CurveType) -> LossPath:
    """Add where the path runs on the plane through its ends and its first bend."""
    first, bend, *_, last = (corner.parameters for corner in corners)
    try:
        plane = minima_plane(objective, first, last, bend)
    except ValueError:  # the bend did not leave the line
        return path
    assert path.t is not None
    # Coordinates are linear in the weights: those of the corners are enough, and so are their distances where there is one bend.
    of_corners, _ = plane.coordinates([corner.parameters for corner in corners])
    shares = coefficients(curve, len(corners), path.t)
    return replace(path, coordinates=shares @ of_corners, curve=path.curve | {"plane": plane.describe()})
