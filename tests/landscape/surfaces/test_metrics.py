"""Further metrics against their definition on all of the data at once, in every way of evaluation, interrupted and interpolated."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from problems import network
from test_surface_resume import Interruptible, objective_with
from torch import Tensor, nn
from torch.nn import functional as F

from landscape.objective import Objective
from landscape.results import store
from landscape.results.types import Surface
from landscape.stateless import undisturbed
from landscape.surfaces import METRICS, loss_surface, random_plane
from landscape.surfaces.points import Options, evaluator, ways

X, Y = (-1, 1, 5), (-0.5, 1, 3)


def top2(outputs: Tensor, target: Tensor) -> Tensor:
    return (outputs.topk(2, 1).indices == target[:, None]).any(1).double().mean()


def spread(outputs: Tensor, target: Tensor) -> float:
    return float(outputs.std())


@pytest.mark.parametrize("kind", ["mlp", "cnn"])
def test_built_in_metrics_are_their_definitions_at_every_point(kind: str) -> None:
    problem = network(kind)
    objective = Objective(problem.model, problem.loss, problem.data, batch_size=5)  # 5, 5 and 3 of 13
    plane = random_plane(objective)
    surface = loss_surface(objective, plane, X, Y, metrics=METRICS)
    assert sorted(surface.metrics) == sorted(METRICS)
    inputs, target = problem.data
    rows = range(len(target))
    for j, i in ((0, 0), (2, 4)):
        with undisturbed(objective.device):
            outputs = torch.func.functional_call(problem.model.eval(), plane.at(surface.x[i], surface.y[j]), (inputs,))
        p, c = outputs.softmax(1), outputs.shape[1]
        others = [max(outputs[n, k] for k in range(c) if k != target[n]) for n in rows]
        expected = {
            "error": 1 - surface.accuracy[j, i],
            "top5": np.mean([sum(outputs[n] > outputs[n, target[n]]) < 5 for n in rows]),
            "confidence": p.amax(1).mean(),
            "brier": np.mean([sum((p[n, k] - float(k == target[n])) ** 2 for k in range(c)) for n in rows]),
            "margin": np.mean([outputs[n, target[n]] - others[n] for n in rows]),
        }
        for name, value in expected.items():
            np.testing.assert_allclose(surface.metrics[name][j, i], value, rtol=1e-10, err_msg=name)


@pytest.mark.parametrize("kind", ["mlp", "cnn"])
def test_every_way_measures_the_same(kind: str) -> None:
    objective = Objective(*network(kind), batch_size=5)
    plane, options = random_plane(objective), Options((METRICS["margin"], spread))
    points = [(x / 3, x - 0.5) for x in range(7)]
    with undisturbed(objective.device):
        for index, batch in objective.batches.seeded():
            expected = evaluator(objective, plane, 2, "plain", options)(batch, index, points).metrics
            assert expected is not None and expected.shape == (2, 7)
            for way in ways(objective, batch):
                found = evaluator(objective, plane, 2, way, options)(batch, index, points).metrics
                torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def test_statistics_computed_again_have_metrics_of_their_own() -> None:
    objective = Objective(*network("cnn"), batch_size=100)
    plane = random_plane(objective)
    surface = loss_surface(objective, plane, X, Y, statistics="recompute", metrics={"error": METRICS["error"]})
    np.testing.assert_allclose(surface.metrics["error"], 1 - surface.accuracy, rtol=1e-12)


@pytest.mark.parametrize("at", [1, 16, 44])
def test_interrupted_they_go_on_to_the_same_bits(tmp_path: Path, at: int) -> None:
    path, metrics = tmp_path / "run.h5", {"top2": top2, "margin": METRICS["margin"]}
    plane = random_plane(objective_with(Interruptible()))
    whole = loss_surface(objective_with(Interruptible()), plane, X, Y, metrics=metrics)
    with pytest.raises(KeyboardInterrupt):
        loss_surface(objective_with(Interruptible(at + 1)), plane, X, Y, metrics=metrics, out=path, name="a")  # one call is the first look
    rest = objective_with(Interruptible())
    resumed = loss_surface(rest, plane, X, Y, metrics=metrics, out=path, name="a")
    assert isinstance(rest.loss_function, Interruptible) and rest.loss_function.calls <= (46 if at < 16 else 31 if at < 31 else 16)
    for found in (resumed, store.load(path, "surfaces/a")):
        assert isinstance(found, Surface) and found.metric_names == ("margin", "top2")
        assert all(np.array_equal(found.metrics[name], whole.metrics[name]) for name in metrics)


def test_other_metrics_are_another_surface_and_fewer_the_same(tmp_path: Path) -> None:
    path, objective = tmp_path / "run.h5", Objective(*network("mlp"))
    plane = random_plane(objective)

    def asked(**metrics: Any) -> Surface:
        return loss_surface(objective, plane, X, None, out=path, metrics=metrics)

    first = asked(top2=top2, margin=METRICS["margin"])
    assert np.array_equal(asked(margin=METRICS["margin"]).metrics["margin"], first.metrics["margin"])
    for other in ({"top2": top2, "third": spread}, {"top2": spread}, {"top2": lambda o, t: top2(o, t) + 1}):
        with pytest.raises(ValueError, match="holds another surface 'surface': the metrics differ"):
            asked(**other)


def test_with_a_tolerance_they_are_interpolated_within_what_was_found(tmp_path: Path) -> None:
    problem = network("mlp", examples=20)
    objective = Objective(problem.model, problem.loss, problem.data)
    plane = random_plane(objective)
    grid: dict[str, Any] = {"x": (-1, 1, 33), "y": (-1, 1, 33), "metrics": {k: METRICS[k] for k in ("error", "confidence")}}
    full, adaptive = loss_surface(objective, plane, **grid), loss_surface(objective, plane, **grid, tolerance=0.01, out=tmp_path / "a.h5")
    between = adaptive.status == Surface.INTERPOLATED
    assert between.mean() > 0.5
    for name in grid["metrics"]:
        np.testing.assert_array_equal(adaptive.metrics[name][~between], full.metrics[name][~between])
        assert adaptive.metrics[name].min() >= full.metrics[name].min() and adaptive.metrics[name].max() <= full.metrics[name].max()
    assert np.abs(adaptive.metrics["confidence"] - full.metrics["confidence"]).max() < 0.01
    held = store.load(tmp_path / "a.h5", "surfaces/surface")
    assert isinstance(held, Surface) and all(np.array_equal(held.metrics[k], v) for k, v in adaptive.metrics.items())


def test_no_loss_has_no_metric() -> None:
    problem = network("mlp")
    objective = Objective(problem.model, lambda outputs, target: outputs.sum().log(), problem.data, takes="outputs")
    surface = loss_surface(objective, random_plane(objective), X, Y, metrics={"margin": METRICS["margin"]})
    failed = surface.status == Surface.FAILED
    assert failed.any() and not failed.all() and np.array_equal(np.isnan(surface.metrics["margin"]), failed)


BAD: dict[str, tuple[Any, str]] = {
    "no dictionary": (["top5"], "metrics must be a dictionary of functions"),
    "no function": ({"a": 3}, "metrics: a must be a function"),
    "no name": ({"": top2}, "names must be words"),
    "a name that is taken": ({"loss": top2}, "loss is there by itself"),
    "many numbers": ({"a": lambda outputs, target: outputs}, "metrics: a gives no number"),
    "nothing": ({"a": lambda outputs, target: None}, "metrics: a gives no number"),
    "an error of its own": ({"a": lambda outputs, target: outputs[:, 99]}, "metrics: a gives no number.*out of bounds"),
}


@pytest.mark.parametrize("what", BAD)
def test_what_is_no_metric_is_refused_before_the_work(what: str) -> None:
    objective = Objective(*network("mlp"))
    metrics, message = BAD[what]
    with pytest.raises(ValueError, match=message):
        loss_surface(objective, random_plane(objective), X, Y, metrics=metrics)


def test_without_outputs_there_are_none() -> None:
    problem = network("mlp")
    objective = Objective(problem.model, lambda model, batch: F.cross_entropy(model(batch[0]), batch[1]), problem.data, takes="model")
    with pytest.raises(ValueError, match="gives no outputs"):
        loss_surface(objective, random_plane(objective), X, Y, metrics={"top2": top2})


def test_files_without_metrics_are_read_as_before(tmp_path: Path) -> None:
    objective = Objective(*network("mlp"))
    surface = loss_surface(objective, random_plane(objective), X, Y)
    store.save(tmp_path / "a.h5", surface)
    held = store.load(tmp_path / "a.h5", "surfaces/surface")
    assert isinstance(held, Surface) and held.metrics == {} and held.metric_values is None
    assert dataclasses.replace(held, test=surface).test is surface


class Keeps(nn.Module):
    """Returns a dictionary of outputs."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"logits": self.model(x)}


def test_metrics_get_what_the_loss_gets() -> None:
    problem = network("mlp")
    plain = Objective(problem.model, problem.loss, problem.data)
    named = Objective(Keeps(problem.model), lambda outputs, target: F.cross_entropy(outputs["logits"], target), problem.data)
    planes = random_plane(plain), random_plane(named)
    one = loss_surface(plain, planes[0], X, None, metrics={"m": METRICS["margin"]})
    two = loss_surface(named, planes[1], X, None, metrics={"m": lambda o, t: METRICS["margin"](o["logits"], t)})
    np.testing.assert_allclose(two.metrics["m"], one.metrics["m"], rtol=1e-12)
