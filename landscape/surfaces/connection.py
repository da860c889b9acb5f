"""Mode connection: a curve of low loss between two minima (Garipov et al. 2018, arXiv 1802.10026; Draxler et al. 2018).

The ends are fixed and the bends are trained, such that the mean loss over the curve, the integral of L(w(t)) over t in [0, 1], falls: each
step draws one t and moves the bends along their part of the gradient there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from landscape.batches import count_examples, seed_torch
from landscape.objective import NonFiniteLossError, Objective, Parameters, differentiable
from landscape.progress import progress as progress_bar
from landscape.results import store
from landscape.results.types import LossPath
from landscape.stateless import recurrent_gradients, undisturbed
from landscape.surfaces.alignment import aligned
from landscape.surfaces.curves import CurveType, coefficients, place
from landscape.surfaces.directions import Plane
from landscape.surfaces.paths import Statistics, check_options, curve_path
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
        weight_decay: of SGD, on the bends.
        batch_size: of the training steps, for data given as tensors, which are shuffled; a loader's batches are taken as they come.
        align: permute the units of b first; see `aligned`.
        points: to evaluate both paths at, evenly spaced in t.
        statistics: of batch norm in evaluation mode along both paths; see `linear_path`.
        statistics_data: see `linear_path`.
        seed: of the order of examples and of the draws of t.
        out: result file to keep the path in, and the straight line.
        name: of the path in that file; the curve by default; the straight line is `name`-linear.
        progress: show bars; None shows them on a terminal.

    Returns:
        The curve: `.path` and `.linear` with their barriers, `.bends`, `.at(t)`.

    Raises:
        ValueError: an option outside what is allowed, or points that do not fit the objective; `NonFiniteLossError` if training diverges.
    """
    check_options(points, statistics)
    if curve not in ("bezier", "chain"):
        raise ValueError(f"curve must be 'bezier' or 'chain', got {curve!r}")
    for argument, value in (("bends", bends), ("epochs", epochs), ("batch_size", batch_size)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{argument} must be a positive integer, got {value!r}")
    if not 0 < lr < float("inf") or not 0 <= momentum < 1 or not 0 <= weight_decay < float("inf"):
        raise ValueError(f"lr must be positive, momentum in [0, 1), weight_decay at least 0; got {lr!r}, {momentum!r}, {weight_decay!r}")
    if out is not None:
        store.check_writable(out)
    ends = [weights_of(objective, a, "a"), weights_of(objective, b, "b")]
    meter = objective.meter()
    if align:
        ends[1] = aligned(objective, ends[0], ends[1], seed=seed)
    name = name or curve
    settings = {"epochs": epochs, "lr": lr, "momentum": momentum, "weight_decay": weight_decay, "train_batch_size": batch_size}
    common: dict[str, Any] = {"statistics": statistics, "statistics_data": statistics_data, "seed": seed, "progress": progress}
    straight_meter = objective.meter()
    linear = curve_path(objective, ends, "linear", points, name=f"{name}-linear", further={"aligned": align}, **common)
    linear = replace(linear, cost=straight_meter.cost())
    trained, history = _trained(objective, ends, curve, bends, epochs, lr, momentum, weight_decay, batch_size, seed, progress)
    corners = [ends[0], *(Weights(w, ends[0].statistics) for w in trained), ends[1]]
    if statistics == "interpolate" and statistics_names(objective):
        half = {n: (s + ends[1].statistics[n]) / 2 for n, s in ends[0].statistics.items()}
        corners[1:-1] = [Weights(w, half) for w in trained]
    further = {"aligned": align, "training_loss": history, **settings}
    path = curve_path(objective, corners, curve, points, name=name, further=further, **common)
    path = _on_plane(path, objective, corners, curve)
    path = replace(path, cost=meter.cost())
    if out is not None:
        store.save(out, linear)
        store.save(out, path)
    return Connection(path, linear, tuple(trained), (ends[0], ends[1]), curve)


def _trained(
    objective: Objective,
    ends: Sequence[Weights],
    curve: CurveType,
    bends: int,
    epochs: int,
    lr: float,
    momentum: float,
    weight_decay: float,
    batch_size: int,
    seed: int,
    show: bool | None,
) -> tuple[list[Parameters], list[float]]:
    """Return the trained bends and the mean loss of every epoch."""
    generator = torch.Generator().manual_seed(seed)
    names, device = objective.names, objective.device
    first, last = (end.parameters for end in ends)
    free = [{n: torch.lerp(first[n], last[n], (k + 1) / (bends + 1)) for n in names} for k in range(bends)]
    flat = [bend[n] for bend in free for n in names]
    optimizer = torch.optim.SGD(flat, lr=lr, momentum=momentum, weight_decay=weight_decay)
    corners = [first, *free, last]
    here = {n: differentiable(first[n].clone()) for n in names}
    history: list[float] = []
    step = 0
    with undisturbed(device), recurrent_gradients(objective.model, device):
        training = _with_batch_statistics(objective)
        read = _reader(objective, batch_size)
        with progress_bar(epochs * objective.examples, f"training {curve}", "example", show=show) as bar:
            for epoch in range(epochs):
                optimizer.param_groups[0]["lr"] = lr * _slowed((epoch + 0.5) / epochs)
                total, weight = torch.zeros((), dtype=torch.float64, device=device), 0.0
                for batch in read(generator):
                    t = torch.rand((), generator=generator, dtype=torch.float64).numpy().reshape(1)
                    shares = coefficients(curve, bends + 2, t)[0].tolist()
                    place(corners, shares, here)
                    seed_torch(step, device)
                    with torch.enable_grad():
                        loss = training.batch_loss(here, batch)
                        grads = torch.autograd.grad(loss, list(here.values()), allow_unused=True)
                    for k, bend in enumerate(free):
                        for n, g in zip(names, grads, strict=True):
                            bend[n].grad = None if g is None else g * shares[k + 1]
                    optimizer.step()
                    n_examples = count_examples(batch)
                    total += loss.detach().double() * n_examples
                    weight += n_examples
                    step += 1
                    bar.update(n_examples)
                objective.count("gradients", weight)
                history.append(float(total) / weight)
                if not np.isfinite(history[-1]):
                    raise NonFiniteLossError(f"training the curve diverged in epoch {epoch + 1}: try a smaller lr than {lr}")
    for tensor in flat:
        tensor.grad = None
    return free, history


def _slowed(done: float) -> float:
    """Return the factor of the learning rate after a share of the epochs (Garipov et al. 2018)."""
    return 1.0 if done < 0.5 else max(0.01, 1 - 0.99 * (done - 0.5) / 0.4)


def _with_batch_statistics(objective: Objective) -> Objective:
    """Return the same loss with batch norm as in training, of which only `batch_loss` is asked."""
    if not statistics_names(objective):
        return objective
    return Objective(
        objective.model,
        objective.loss_function,
        [next(iter(objective.batches))],
        params=[_literally(name) for name in objective.names],
        dtype=objective.dtype,
        device=objective.device,
        batch_norm="batch",
        takes=objective.takes,
        reduction=objective.reduction,
        weight=objective.weight,
    )


def _literally(name: str) -> str:
    """Return the pattern that only this name matches."""
    return "".join(f"[{c}]" if c in "*?[" else c for c in name)


def _reader(objective: Objective, batch_size: int) -> Callable[[torch.Generator], Iterator[Any]]:
    """Return a function that yields the batches of an epoch: shuffled if the data are tensors, else as the loader gives them."""
    if not objective.batches.in_memory:
        return lambda _: iter(objective.batches)
    parts = list(objective.batches)
    whole = tree_map(lambda *t: torch.cat(t) if isinstance(t[0], Tensor) else t[0], *parts)
    single = objective.batch_norm == "eval" and bool(statistics_names(objective))

    def read(generator: torch.Generator) -> Iterator[Any]:
        order = torch.randperm(objective.examples, generator=generator).to(objective.device)
        for chosen in torch.split(order, batch_size):
            if len(chosen) > 1 or not single:  # one example has no batch statistics
                yield tree_map(lambda t, i=chosen: t[i] if isinstance(t, Tensor) else t, whole)

    return read


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
