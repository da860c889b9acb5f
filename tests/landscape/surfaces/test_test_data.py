"""The surface of test data, asked for with that of the training data, against one that is computed by itself."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from problems import network
from test_surface_resume import Interruptible, objective_with, same

from landscape.objective import Objective
from landscape.results import store
from landscape.results.types import Surface
from landscape.surfaces import METRICS, loss_surface, random_plane

X, Y = (-1, 1, 5), (-0.5, 1, 3)


def other_data(kind: str = "cnn") -> tuple[torch.Tensor, torch.Tensor]:
    inputs, target = network(kind, dtype=torch.float32, examples=11).data
    return inputs.flip(0) * 0.9 + 0.1, target


def test_it_is_the_surface_of_these_data_and_lies_beside_the_other(tmp_path: Path) -> None:
    path, problem = tmp_path / "run.h5", network("cnn", dtype=torch.float32)
    objective = Objective(problem.model, problem.loss, problem.data, batch_size=5)
    plane = random_plane(objective)
    metrics = {"margin": METRICS["margin"]}
    both = loss_surface(objective, plane, X, Y, test_data=other_data(), metrics=metrics, out=path, name="a")
    on_test = Objective(problem.model, problem.loss, other_data(), batch_size=5)
    alone = [loss_surface(one, plane, X, Y, metrics=metrics) for one in (objective, on_test)]
    assert both.test is not None and same(both, alone[0]) and same(both.test, alone[1])
    assert np.array_equal(both.test.metrics["margin"], alone[1].metrics["margin"])
    assert both.test.provenance.data_sha256 == on_test.provenance().data_sha256 != both.provenance.data_sha256
    held = store.load(path, "surfaces/a-test")
    assert isinstance(held, Surface) and held.name == "a-test" and same(held, both.test)
    again = loss_surface(objective, plane, X, Y, test_data=on_test, metrics=metrics, out=path, name="a")  # as an objective
    assert again.test is not None and same(again.test, held)


@pytest.mark.parametrize("at", [20, 50, 80])
def test_interrupted_in_either_part_it_goes_on_to_the_same_bits(tmp_path: Path, at: int) -> None:
    path = tmp_path / "run.h5"
    plane = random_plane(objective_with(Interruptible()))
    whole = loss_surface(objective_with(Interruptible()), plane, X, Y, test_data=other_data())
    with pytest.raises(KeyboardInterrupt):
        loss_surface(objective_with(Interruptible(at)), plane, X, Y, test_data=other_data(), out=path)
    resumed = loss_surface(objective_with(Interruptible()), plane, X, Y, test_data=other_data(), out=path)
    assert resumed.test is not None and whole.test is not None and same(resumed, whole) and same(resumed.test, whole.test)
    assert store.groups(path) == ["surfaces/surface", "surfaces/surface-test"]


def test_with_a_tolerance_its_points_hold_those_of_the_first_and_it_meets_the_tolerance_too() -> None:
    problem = network("mlp", examples=40)
    halves = [tuple(t[part] for t in problem.data) for part in (slice(20), slice(20, None))]
    objective = Objective(problem.model, problem.loss, halves[0])
    plane = random_plane(objective)
    grid: dict[str, Any] = {"x": (-1, 1, 33), "y": (-1, 1, 33), "test_data": halves[1]}
    full, adaptive = loss_surface(objective, plane, **grid), loss_surface(objective, plane, **grid, tolerance=0.01)
    assert adaptive.test is not None and full.test is not None
    seen, seen_in_test = (s.status == Surface.EVALUATED for s in (adaptive, adaptive.test))
    assert (seen <= seen_in_test).all() and seen_in_test.mean() < 0.5
    error = np.abs(adaptive.test.loss / full.test.loss - 1)
    assert np.quantile(error, 0.99) < 0.01 and error.max() < 0.03


def test_statistics_computed_again_are_those_of_the_training_data() -> None:
    """So two parts of the training data add up to all of them, which they do not with statistics of their own."""
    problem = network("cnn")
    objective = Objective(problem.model, problem.loss, problem.data, batch_size=100)
    plane = random_plane(objective)
    test_data = tuple(t[:6] for t in problem.data)  # of the same examples
    surface = loss_surface(objective, plane, X, Y, statistics="recompute", test_data=test_data)
    pieces = [Objective(problem.model, problem.loss, [tuple(t[part] for t in problem.data)]) for part in (slice(6), slice(6, None))]
    rest = loss_surface(objective, plane, X, Y, statistics="recompute", test_data=tuple(t[6:] for t in problem.data))
    assert surface.test is not None and rest.test is not None
    n = len(problem.data[1])
    np.testing.assert_allclose((6 * surface.test.loss + (n - 6) * rest.test.loss) / n, surface.loss, rtol=1e-12)
    own = loss_surface(pieces[0], plane, X, Y, statistics="recompute")
    assert np.abs(own.loss / surface.test.loss - 1).max() > 0.005


def test_what_does_not_fit_is_refused_before_the_work(tmp_path: Path) -> None:
    problem, path = network("cnn", dtype=torch.float32), tmp_path / "run.h5"
    calls = []

    def loss(outputs: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return torch.nn.functional.cross_entropy(outputs, target)

    objective = Objective(problem.model, loss, problem.data, batch_size=5)
    plane = random_plane(objective)
    with pytest.raises(ValueError, match="test_data: data is empty"):
        loss_surface(objective, plane, X, Y, test_data=[])
    with pytest.raises(TypeError, match="test_data: data must be a tuple"):
        loss_surface(objective, plane, X, Y, test_data=3)
    another = Objective(*network("cnn", dtype=torch.float64))
    with pytest.raises(ValueError, match="its weights and dtypes differ"):
        loss_surface(objective, plane, X, Y, test_data=another)
    loss_surface(objective, plane, X, Y, out=path, name="a-test")
    calls.clear()
    with pytest.raises(ValueError, match="holds another surface 'a-test': the data differ"):
        loss_surface(objective, plane, X, Y, test_data=other_data(), out=path, name="a")
    assert len(calls) < 10 and store.groups(path) == ["surfaces/a-test"]
