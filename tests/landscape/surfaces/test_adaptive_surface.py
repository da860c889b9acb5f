"""Adaptive surfaces of networks against their full grids, interrupted ones against uninterrupted ones, and their files."""

import dataclasses
import math
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
from test_surface_resume import Interruptible, objective_with
from torch import Tensor, nn
from torch.nn import functional as F

import landscape
from landscape.objective import Objective
from landscape.results import store
from landscape.results.types import Surface
from landscape.surfaces import Plane, loss_surface, random_plane

X, Y = (-1, 1, 25), (-1, 1.5, 21)
SMALL = {
    "x": (-1, 1, 17),
    "y": (-1, 1.5, 15),
    "tolerance": 3e-4,
}  # five rounds for the network of `objective_with`, 169 points in the first
LINE = {"x": (-1, 1, 41), "y": None, "tolerance": 3e-4}  # three, 13 points in the first
FIELDS = ("loss", "accuracy", "stderr", "status", "error_estimate", "x", "y")


@pytest.fixture(autouse=True)
def plain_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no trial runs of other ways to evaluate points be among the calls that are counted."""
    monkeypatch.setattr("landscape.surfaces.computing.WORTH_COMPARING", math.inf)


class Bowl(nn.Module):
    """A network of two inputs whose loss along its two weights is known; NaN beyond a radius."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(2, dtype=torch.float64))
        self.calls = 0

    def forward(self, inputs: Tensor) -> Tensor:
        self.calls += 1
        x, y = self.w
        value = 0.01 + (x - 0.1) ** 2 + 3 * (y + 0.2) ** 2 + 2 * x**4
        return (torch.where(x + y > 1.5, torch.nan, value) * inputs).reshape(-1, 1)


def bowl(batch_size: int = 2) -> tuple[Objective, Plane]:
    inputs = torch.tensor([0.5, 1.5, 0.8, 1.2, 1.1, 0.9], dtype=torch.float64)
    objective = Objective(
        Bowl(), lambda outputs, target: (outputs[:, 0] * target).mean(), (inputs, torch.ones_like(inputs)), batch_size=batch_size
    )
    directions = [{"w": torch.eye(2, dtype=torch.float64)[i]} for i in (0, 1)]
    return objective, Plane(objective.parameters, tuple(directions))


def same(a: Surface, b: Surface) -> bool:
    pairs = [(getattr(a, name), getattr(b, name)) for name in FIELDS]
    return all(one is other is None or np.array_equal(one, other, equal_nan=True) for one, other in pairs)


def test_a_network_is_found_within_the_tolerance_for_fewer_evaluations() -> None:
    problem = network("mlp", examples=40, dtype=torch.float32)
    objective = Objective(*problem, batch_size=10)
    plane = random_plane(objective)
    meter = objective.meter()
    adaptive = loss_surface(objective, plane, (-1, 1, 41), (-1, 1, 41), tolerance=0.01)
    evaluated = adaptive.status == Surface.EVALUATED
    assert adaptive.cost.forwards == meter.cost().forwards == evaluated.sum() < 1681 / 4
    full = loss_surface(objective, plane, (-1, 1, 41), (-1, 1, 41))
    for name in ("loss", "accuracy", "stderr"):  # the same bits where evaluated
        np.testing.assert_array_equal(getattr(adaptive, name)[evaluated], getattr(full, name)[evaluated])
    error = np.abs(adaptive.loss - full.loss)
    assert np.quantile(error / full.loss, 0.99) < 0.01 and (error / full.loss).max() < 0.03
    between = adaptive.status == Surface.INTERPOLATED
    assert (evaluated | between).all()
    assert np.mean(error[between] <= adaptive.error_estimate[between]) >= 0.95
    assert (adaptive.error_estimate[evaluated] == 0).all() and full.error_estimate is None
    assert (
        np.quantile(np.abs(adaptive.accuracy - full.accuracy), 0.99) < 0.06 and 0 <= adaptive.accuracy.min() <= adaptive.accuracy.max() <= 1
    )
    assert np.quantile(np.abs(adaptive.stderr / full.stderr - 1), 0.99) < 0.05


def test_points_that_fail_are_failed_and_what_they_surround_is_nan() -> None:
    objective, plane = bowl()
    surface = loss_surface(objective, plane, (-1, 1, 31), (-1, 1.4, 33), tolerance=0.01)
    x, y = np.meshgrid(surface.x, surface.y)
    fails = x + y > 1.5
    failed, between = surface.status == Surface.FAILED, surface.status == Surface.INTERPOLATED
    np.testing.assert_array_equal(np.isnan(surface.loss), fails)
    assert failed.any() and fails[failed].all() and (between & fails).any() and not (surface.status == Surface.PENDING).any()
    inputs = objective.batches._whole[0]
    truth = (0.01 + (x - 0.1) ** 2 + 3 * (y + 0.2) ** 2 + 2 * x**4) * inputs.mean().item()
    assert np.nanmax(np.abs(surface.loss / truth - 1)) < 0.03
    assert np.isnan(surface.error_estimate[fails]).all() and "nan" not in repr(surface)


def test_a_line_and_a_fine_line() -> None:
    objective, plane = bowl()
    for n, most in ((51, 40), (1001, 60)):
        line = loss_surface(objective, plane, (-1, 1, n), None, tolerance=0.01)
        full = loss_surface(objective, plane, (-1, 1, n), None)
        assert line.cost.forwards <= most and line.error_estimate.shape == (n,)
        np.testing.assert_allclose(line.loss, full.loss, rtol=0.02)


def test_one_pass_over_the_loader_a_round() -> None:
    class Counting(list):
        passes = 0

        def __iter__(self):  # noqa: ANN204
            type(self).passes += 1
            return super().__iter__()

    objective, plane = bowl()
    batches = Counting(objective.batches)
    objective = Objective(objective.model, objective.loss_function, batches)
    assert objective.provenance().examples == 6
    Counting.passes = 0
    surface = loss_surface(objective, plane, X, Y, tolerance=0.01)
    assert 3 <= Counting.passes <= 12 and 169 < surface.cost.forwards < 525


@pytest.mark.parametrize(("grid", "share"), [(LINE, 0.1), (LINE, 0.5), (LINE, 0.9), (LINE, 1.0), (SMALL, 0.95)])
def test_an_interrupted_surface_goes_on_to_the_same_points_and_bits(tmp_path: Path, grid: dict, share: float) -> None:
    path, whole_loss = tmp_path / "run.h5", Interruptible()
    plane = random_plane(objective_with(Interruptible()))
    whole = loss_surface(objective_with(whole_loss), plane, **grid)
    calls = whole_loss.calls
    assert calls == 3 * whole.cost.forwards and (whole.status == Surface.INTERPOLATED).any()
    at = math.ceil(share * calls)
    with pytest.raises(KeyboardInterrupt):
        loss_surface(objective_with(Interruptible(at)), plane, **grid, out=path, name="a")
    kept = store.load_partial(path, "a")
    assert kept is not None and (kept[1]["round"] == 1) == (at <= 3 * (13 if grid is LINE else 169))
    rest = Interruptible()
    resumed = loss_surface(objective_with(rest), plane, **grid, out=path, name="a")
    assert same(resumed, whole) and resumed.cost.forwards == whole.cost.forwards
    assert calls - at < rest.calls <= calls - at + 257  # one portion at most is done again
    assert same(store.load(path, "surfaces/a"), whole) and not store.open(path).partial


def test_interrupted_again_and_again(tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    plane = random_plane(objective_with(Interruptible()))
    whole = loss_surface(objective_with(Interruptible()), plane, **LINE)
    attempts = 0
    while True:
        attempts += 1
        try:
            surface = loss_surface(objective_with(Interruptible(20)), plane, **LINE, out=path, save_every=0)
        except KeyboardInterrupt:
            continue
        break
    assert attempts > 3 and same(surface, whole)


SLOW = """
import sys, time
sys.path.insert(0, {tests!r})
import landscape.surfaces.computing
import test_adaptive_surface as t
landscape.surfaces.computing.WORTH_COMPARING = float("inf")
class Interruptible(t.Interruptible):
    def forward(self, outputs, target):
        time.sleep(0.05 * (self.calls > 510))
        return super().forward(outputs, target)
objective = t.objective_with(Interruptible())
t.loss_surface(objective, t.random_plane(objective), **t.SMALL, out={path!r}, name="a", save_every=0)
"""


@pytest.mark.slow
def test_a_killed_process_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    path, here = tmp_path / "run.h5", Path(__file__).parent
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(here.parents[2]), str(here.parents[1])]), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, "-c", SLOW.format(tests=str(here), path=str(path))], env=environment)
    deadline = time.monotonic() + 60
    kept = None
    while process.poll() is None and time.monotonic() < deadline:
        kept = store.load_partial(path, "a")
        if kept is not None and kept[1]["round"] > 1:
            break
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "it ended before it could be killed"
    assert kept is not None and kept[1]["round"] > 1
    torch.set_num_threads(1)
    objective, rest = objective_with(Interruptible()), Interruptible()
    plane = random_plane(objective)
    resumed = loss_surface(objective_with(rest), plane, **SMALL, out=path, name="a")
    whole = loss_surface(objective, plane, **SMALL)
    assert same(resumed, whole) and 3 * whole.cost.forwards > rest.calls


def test_a_choice_whose_round_has_not_begun_is_made_anew(tmp_path: Path) -> None:
    """As where an interrupt came between the two, and an older rule had chosen."""
    path = tmp_path / "run.h5"
    plane = random_plane(objective_with(Interruptible()))
    whole = loss_surface(objective_with(Interruptible()), plane, **LINE)
    with pytest.raises(KeyboardInterrupt):
        loss_surface(objective_with(Interruptible(20)), plane, **LINE, out=path, name="a")
    kept = store.load_partial(path, "a")
    assert kept is not None and kept[1]["round"] == 1
    place = np.flatnonzero(whole.status == Surface.INTERPOLATED)[0]
    kept[0]["round"][place] = 2
    store.save_partial(path, "a", *kept)
    assert same(loss_surface(objective_with(Interruptible()), plane, **LINE, out=path, name="a"), whole)


def test_other_tolerances_are_other_surfaces_but_better_ones_will_do(tmp_path: Path) -> None:
    path, (objective, plane) = tmp_path / "run.h5", bowl()
    fine = loss_surface(objective, plane, X, Y, tolerance=0.01, out=path)
    calls = objective._caller.model.calls
    assert same(loss_surface(objective, plane, X, Y, tolerance=0.01, out=path), fine)
    assert same(loss_surface(objective, plane, X, Y, tolerance=0.03, out=path), fine)
    for asked in (0.003, None):
        with pytest.raises(ValueError, match=r"holds another surface 'surface': the tolerances differ.*resume=False"):
            loss_surface(objective, plane, X, Y, tolerance=asked, out=path)
    full = loss_surface(objective, plane, X, Y, out=path, resume=False)
    assert full.error_estimate is None and "tolerance" not in full.plane
    again = loss_surface(objective, plane, X, Y, tolerance=0.01, out=path)
    assert np.array_equal(again.loss, full.loss, equal_nan=True) and again.error_estimate is None
    assert calls == objective._caller.model.calls


def test_files_keep_the_estimate_and_old_ones_have_none(tmp_path: Path) -> None:
    path, (objective, plane) = tmp_path / "run.h5", bowl()
    surface = loss_surface(objective, plane, X, Y, tolerance=0.01, out=path, name="a")
    assert same(landscape.open(path).surfaces["a"], surface)
    assert landscape.open(path).surfaces["a"].plane["tolerance"] == 0.01
    store.save(path, dataclasses.replace(surface, error_estimate=None), "b")
    assert landscape.open(path).surfaces["b"].error_estimate is None


def test_an_unfinished_full_surface_of_an_older_version_is_continued(tmp_path: Path) -> None:
    """It says nothing about rounds or tolerances."""
    path = tmp_path / "run.h5"
    plane = random_plane(objective_with(Interruptible()))
    with pytest.raises(KeyboardInterrupt):
        loss_surface(objective_with(Interruptible(20)), plane, (-1, 1, 5), (-1, 1, 3), out=path, name="a")
    kept = store.load_partial(path, "a")
    assert kept is not None
    arrays, attributes = kept
    del arrays["round"], attributes["round"], attributes["identity"]["tolerance"]
    store.save_partial(path, "a", arrays, attributes)
    rest = Interruptible()
    resumed = loss_surface(objective_with(rest), plane, (-1, 1, 5), (-1, 1, 3), out=path, name="a")
    whole = loss_surface(objective_with(Interruptible()), plane, (-1, 1, 5), (-1, 1, 3))
    assert rest.calls < 45 and np.array_equal(resumed.loss, whole.loss)


@pytest.mark.parametrize("tolerance", [0, -1, 1, 2.0, math.nan, "0.01"])
def test_tolerances_that_cannot_be(tolerance: object) -> None:
    objective, plane = bowl()
    with pytest.raises(ValueError, match="tolerance must be above 0 and below 1, or None"):
        loss_surface(objective, plane, X, Y, tolerance=tolerance)


def test_losses_below_zero() -> None:
    problem = network("mlp", examples=20)
    objective = Objective(problem.model, lambda outputs, target: F.cross_entropy(outputs, target) - 1.5, problem.data)
    plane = random_plane(objective)
    adaptive, full = (loss_surface(objective, plane, X, Y, tolerance=t) for t in (0.01, None))
    size = np.hypot(full.loss, 0.1 * np.median(np.abs(full.loss)))
    assert full.loss.min() < 0 < full.loss.max()
    assert np.quantile(np.abs(adaptive.loss - full.loss) / size, 0.99) < 0.01 and adaptive.cost.forwards < 525


@pytest.mark.slow
def test_the_small_cnn_on_digits() -> None:
    """The claim of the documentation, on 51 x 51 points: benchmarks/surfaces_adaptive.py has ResNet-20 too."""
    import sam_core

    run = sam_core.train(sam_core.TrainConfig(method="none", epochs=3, seed=5), progress=False)
    objective = Objective(run.model, F.cross_entropy, run.data.train.take(100).tensors())
    plane = random_plane(objective, seed=3)
    adaptive, full = (loss_surface(objective, plane, tolerance=t) for t in (0.01, None))
    error, between = np.abs(adaptive.loss - full.loss), adaptive.status == Surface.INTERPOLATED
    assert adaptive.cost.forwards <= 2601 / 5
    assert np.quantile(error / full.loss, 0.99) <= 0.01 and (error / full.loss).max() <= 0.03
    assert np.mean(error[between] <= adaptive.error_estimate[between]) >= 0.95
