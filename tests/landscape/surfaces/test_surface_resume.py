"""Interrupted and continued surfaces against uninterrupted ones, bit for bit."""

import dataclasses
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from problems import network
from torch import Tensor, nn
from torch.nn import functional as F

from landscape.objective import Objective
from landscape.results import store
from landscape.results.types import Surface
from landscape.surfaces import Plane, loss_surface, random_plane
from landscape.surfaces.growing import Growing

X, Y = (-1, 1, 5), (-0.5, 1, 3)


class Interruptible(nn.Module):
    """Cross-entropy that is interrupted at one of its calls."""

    def __init__(self, at: int = -1, smoothing: float = 0.0) -> None:
        super().__init__()
        self.smoothing = smoothing
        self.at, self.calls, self.armed = at, 0, False

    def forward(self, outputs: Tensor, target: Tensor) -> Tensor:
        self.calls += 1
        if self.calls == self.at and self.armed:
            raise KeyboardInterrupt
        return F.cross_entropy(outputs, target, label_smoothing=self.smoothing)


def objective_with(loss: nn.Module, **change: object) -> Objective:
    problem = network("cnn", dtype=torch.float32)
    objective = Objective(problem.model, loss, problem.data, **({"batch_size": 5} | change))
    objective.provenance()  # its pass over the data is behind us: calls and interruptions are those of the surface
    if isinstance(loss, Interruptible):
        loss.calls, loss.armed = 0, True
    return objective


def same(a: Surface, b: Surface) -> bool:
    arrays = ("loss", "accuracy", "stderr", "status", "x") + (() if a.y is None else ("y",))
    return all(np.array_equal(getattr(a, n), getattr(b, n), equal_nan=True) for n in arrays)


@pytest.mark.parametrize("at", [1, 2, 9, 15, 16, 31, 45])
def test_an_interrupted_surface_goes_on_to_the_same_bits(tmp_path: Path, at: int) -> None:
    path = tmp_path / "run.h5"
    plane = random_plane(objective_with(Interruptible()))
    whole = loss_surface(objective_with(Interruptible()), plane, X, Y)
    with pytest.raises(KeyboardInterrupt):
        loss_surface(objective_with(Interruptible(at)), plane, X, Y, out=path, name="a")
    assert store.open(path).partial["a"].x.tolist() == whole.x.tolist()  # a usable file
    rest = Interruptible()
    resumed = loss_surface(objective_with(rest), plane, X, Y, out=path, name="a")
    assert same(resumed, whole)
    assert resumed.cost.forwards == 15 and 45 - at + 1 <= rest.calls <= 45
    if at == 45:
        assert rest.calls <= 15
    assert store.open(path).groups() == ["surfaces/a"] and not store.open(path).partial
    assert same(store.load(path, "surfaces/a"), whole)


def test_interrupted_again_and_again(tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    plane = random_plane(objective_with(Interruptible()))
    whole = loss_surface(objective_with(Interruptible()), plane, X, None)
    for _ in range(100):
        try:
            surface = loss_surface(objective_with(Interruptible(5)), plane, X, None, out=path, save_every=0)
        except KeyboardInterrupt:
            continue
        break
    assert same(surface, whole)


def test_a_complete_surface_is_not_computed_again(tmp_path: Path) -> None:
    path, loss = tmp_path / "run.h5", Interruptible()
    objective = objective_with(loss)
    plane = random_plane(objective)
    first = loss_surface(objective, plane, X, Y, out=path)
    calls = loss.calls
    again = loss_surface(objective, plane, X, Y, out=path)
    assert loss.calls == calls and same(first, again)
    assert again.plane == first.plane and again.provenance == first.provenance
    loss_surface(objective, plane, X, Y, out=path, resume=False)
    assert loss.calls == 2 * calls


def test_zeros_negative_losses_and_nan_are_finished_points(tmp_path: Path) -> None:
    """Known tools take them for points not computed yet, and recompute them for ever."""
    problem, calls = network("mlp"), []
    plain = Objective(problem.model, lambda outputs, target: outputs.sum(), problem.data)
    plane = random_plane(plain)
    low, high = np.quantile(loss_surface(plain, plane, X, Y).loss, [0.3, 0.6])

    def loss(outputs: Tensor, target: Tensor) -> Tensor:
        calls.append(1)
        total = outputs.sum()
        return torch.where(total < low, -1.0, torch.where(total < high, 0.0, torch.nan))

    objective = Objective(problem.model, loss, problem.data, takes="outputs")
    objective.provenance()
    calls.clear()
    first = loss_surface(objective, plane, X, Y, out=tmp_path / "run.h5")
    assert {-1.0, 0.0} <= set(first.loss.ravel().tolist()) and np.isnan(first.loss).any()
    again = loss_surface(objective, plane, X, Y, out=tmp_path / "run.h5")
    assert len(calls) == 15 and same(first, again) and (again.status == Surface.FAILED).sum() == np.isnan(again.loss).sum()


def changed_data(objective: Objective) -> Objective:
    problem = network("cnn", dtype=torch.float32)
    return Objective(problem.model, Interruptible(), (problem.data[0] + 1, problem.data[1]), batch_size=5)


def changed_model(objective: Objective) -> Objective:
    with torch.no_grad():
        objective.model[1].running_mean.add_(1)
    return objective


CHANGES = {
    "data": (changed_data, {}),
    "parameters or buffers of the model": (changed_model, {}),
    "batch sizes": (lambda _: objective_with(Interruptible(), batch_size=4), {}),
    "dtypes": (lambda _: objective_with(Interruptible(), dtype=torch.float64), {}),
    "loss functions": (lambda _: objective_with(F.cross_entropy), {}),
    "loss functions (a sum for a mean)": (lambda _: objective_with(Interruptible(), reduction="sum"), {}),
    "loss functions (weights of batches)": (lambda _: objective_with(Interruptible(), weight=lambda batch: 1.0), {}),
    "loss functions (another one of the name)": (lambda _: objective_with(Interruptible(smoothing=0.1)), {}),
    "grids on y": (lambda o: o, {"y": (-0.5, 1, 4)}),
    "grids on x": (lambda o: o, {"x": (-1, 1.5, 5)}),
    "directions": (lambda o: o, {"seed": 1}),
}


@pytest.mark.parametrize("what", CHANGES)
@pytest.mark.parametrize("complete", [True, False])
def test_another_surface_of_that_name_is_refused_by_what_differs(tmp_path: Path, what: str, complete: bool) -> None:
    """Known tools take directions for reusable because a file of that name exists."""
    path = tmp_path / "run.h5"
    plane = random_plane(objective_with(Interruptible()))
    try:
        loss_surface(objective_with(Interruptible(-1 if complete else 20)), plane, X, Y, out=path, name="a")
    except KeyboardInterrupt:
        assert not complete
    change, arguments = CHANGES[what]
    objective = change(objective_with(Interruptible()))
    other = dataclasses.replace(plane, directions=plane.directions[::-1]) if "seed" in arguments else plane
    grid = {"x": X, "y": Y} | {k: v for k, v in arguments.items() if k != "seed"}
    before = path.read_bytes()
    with pytest.raises(ValueError, match=rf"holds another surface 'a': the {what.split(' (')[0]} differ.*resume=False"):
        loss_surface(objective, other, **grid, out=path, name="a")
    assert path.read_bytes() == before
    assert isinstance(loss_surface(objective, other, **grid, out=path, name="b"), Surface)
    replaced = loss_surface(objective, other, **grid, out=path, name="a", resume=False)
    assert same(store.load(path, "surfaces/a"), replaced) and not store.open(path).partial


def test_a_file_that_cannot_be_is_refused_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "text.h5").write_text("no HDF5")
    loss = Interruptible()
    objective = objective_with(loss)
    with pytest.raises(ValueError, match=r"text\.h5"):
        loss_surface(objective, random_plane(objective), X, Y, out=tmp_path / "text.h5")
    assert loss.calls == 0


SLOW = """
import sys, time
sys.path.insert(0, {tests!r})
import test_surface_resume as t
class Interruptible(t.Interruptible):
    def forward(self, outputs, target):
        time.sleep(0.02)
        return super().forward(outputs, target)
objective = t.objective_with(Interruptible())
t.loss_surface(objective, t.random_plane(objective), t.X, t.Y, out={path!r}, name="a", save_every=0)
"""


def test_a_killed_process_loses_little(tmp_path: Path) -> None:
    path, here = tmp_path / "run.h5", Path(__file__).parent
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    script = SLOW.format(tests=str(here), path=str(path))
    process = subprocess.Popen([sys.executable, "-c", script], env=environment)
    deadline = time.monotonic() + 60
    while not path.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.2)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "it ended before it could be killed"
    torch.set_num_threads(1)
    objective = objective_with(Interruptible())
    plane = random_plane(objective)
    kept = store.load_partial(path, "a")
    assert kept is not None and (kept[1]["batch"], kept[1]["point"]) > (0, 0)
    rest = Interruptible()
    resumed = loss_surface(objective_with(rest), plane, X, Y, out=path, name="a")
    assert rest.calls < 45 and same(resumed, loss_surface(objective, plane, X, Y))


def test_a_plane_given_by_hand_is_kept_too(tmp_path: Path) -> None:
    objective = objective_with(Interruptible())
    plane = Plane(objective.parameters, random_plane(objective).directions)
    surface = loss_surface(objective, plane, X, Y, out=tmp_path / "new" / "run.h5")
    assert store.open(tmp_path / "new" / "run.h5").surfaces["surface"].plane == surface.plane


def test_an_interrupt_before_a_portion_is_noted_counts_nothing_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    objective = Objective(*network("mlp"), batch_size=5)
    plane, moves = random_plane(objective), []

    def placed(self: Growing, name: str, value: object) -> None:
        if name == "_at" and isinstance(value, tuple) and value[1] == 1 and value[2]:
            moves.append(value)
            raise KeyboardInterrupt
        object.__setattr__(self, name, value)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Growing, "__setattr__", placed, raising=False)
        loss_surface(objective, plane, X, Y, out=tmp_path / "r.h5")
    resumed = loss_surface(objective, plane, X, Y, out=tmp_path / "r.h5")
    assert same(resumed, loss_surface(objective, plane, X, Y)) and moves[0][2] > 0
