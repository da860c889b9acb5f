"""Paths against closed forms, evaluated ends and a loop over points; trajectories against the surface of their plane."""

import copy
import hashlib
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from problems import Vector, network, quadratic, spectrum_matrix
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import landscape
from landscape.objective import Objective
from landscape.surfaces import around_coordinates, connect_modes, linear_path, loss_surface, loss_trajectory, pca_plane


def state_hash(model: nn.Module) -> str:
    digest = hashlib.sha256(torch.get_rng_state().numpy().tobytes())
    for name, tensor in model.state_dict().items():
        digest.update(name.encode() + tensor.cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    digest.update(repr([(m.training, [p.requires_grad for p in m.parameters(False)]) for m in model.modules()]).encode())
    return digest.hexdigest()


def batch_norm_pair(dtype: torch.dtype = torch.float64) -> tuple[nn.Module, nn.Module, tuple[Tensor, Tensor]]:
    one, other = (network("cnn", examples=24, seed=s, dtype=dtype) for s in (1, 2))
    return one.model, other.model, one.data


@pytest.mark.parametrize("kind", ["mlp", "cnn", "attention", "recurrent"])
@pytest.mark.parametrize("batch_size", [5, 64])
def test_ends_are_the_evaluated_losses_to_the_bit(kind: str, batch_size: int) -> None:
    one, other = (network(kind, seed=s, dtype=torch.float32) for s in (1, 2))
    objectives = [Objective(m, one.loss, one.data, batch_size=batch_size) for m in (one.model, other.model)]
    path = linear_path(objectives[0], one.model, other.model, 5)
    for end, objective in zip((0, -1), objectives, strict=True):
        expected = objective.evaluate()
        assert path.loss[end] == float(expected.loss) and path.accuracy[end] == float(expected.accuracy)
    assert path.gap[0] == path.gap[-1] == 0 and path.cost.forwards == pytest.approx(5)


def test_a_quadratic_has_its_closed_form_and_no_barrier() -> None:
    matrix = spectrum_matrix([3.0, 1.0, 0.2])
    problem = quadratic(matrix, examples=20)
    objective = Objective(*problem, batch_size=4)
    a, b = objective.parameters, {"w": objective.parameters["w"] + torch.tensor([1.0, -2, 0.5], dtype=torch.float64)}
    path = linear_path(objective, a, b, 11)
    u = (b["w"] - a["w"]).numpy()
    # L(t) - chord = -t (1 - t) u'Au / 2, the same for every example: no error
    np.testing.assert_allclose(path.gap, -path.t * (1 - path.t) * (u @ matrix.numpy() @ u) / 2, atol=1e-12)
    assert path.barrier == 0 and path.barrier_stderr < 1e-12 and path.stderr[0] > 0.01
    assert path.curve["distance"] == pytest.approx(np.linalg.norm(u))


def test_a_double_well_has_its_barrier_and_the_paired_error() -> None:
    height = torch.linspace(0.5, 1.5, 40, dtype=torch.float64)[torch.randperm(40, generator=torch.Generator().manual_seed(0))]
    far = 100 * torch.randn(40, generator=torch.Generator().manual_seed(1), dtype=torch.float64)  # large, and the same along the path

    def wells(outputs: Tensor, target: Tensor) -> Tensor:
        return (target[:, 0] * (outputs[:, 0] ** 2 - 1) ** 2 + target[:, 1]).mean()

    data = (torch.zeros(40, 1, dtype=torch.float64), torch.stack([height, far], 1))
    objective = Objective(Vector(-torch.ones(1, dtype=torch.float64)), wells, data, batch_size=1)
    path = linear_path(objective, {"w": -torch.ones(1)}, {"w": torch.ones(1)}, 21)
    assert path.barrier == pytest.approx(float(height.mean())) and path.highest == 10
    error = float(height.std()) / math.sqrt(40)
    assert error < path.barrier_stderr < 1.1 * error  # Student's factor for 40 batches is 1.03
    assert path.stderr[10] > 10


@pytest.mark.parametrize("statistics", ["interpolate", "recompute"])
def test_batch_norm_statistics_are_those_that_were_asked_for(statistics: str) -> None:
    one, other, data = batch_norm_pair()
    objective = Objective(one, F.cross_entropy, data, batch_size=8)
    path = linear_path(objective, one, other, 4, statistics=statistics)
    for t, loss in zip(path.t, path.loss, strict=True):
        middle = copy.deepcopy(one)
        ends = [m.state_dict() for m in (one, other)]
        middle.load_state_dict({n: (1 - t) * v + t * ends[1][n] if v.is_floating_point() else v for n, v in ends[0].items()})
        if statistics == "recompute":
            # The mean over batches, by PyTorch's own cumulative average: for batches of equal size the same.
            for module in middle.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.reset_running_stats()
                    module.momentum = None
            middle.train()
            with torch.no_grad():
                for x in data[0].split(8):
                    middle(x)
        assert loss == pytest.approx(F.cross_entropy(middle.eval()(data[0]), data[1]).item(), rel=1e-9)
    assert path.provenance.batch_norm == {"interpolate": "eval", "recompute": "recomputed"}[statistics]
    assert path.cost.forwards == pytest.approx(4 if statistics == "interpolate" else 8)


def test_other_data_for_the_statistics() -> None:
    one, other, data = batch_norm_pair()
    objective = Objective(one, F.cross_entropy, data)
    own = linear_path(objective, one, other, 3, statistics="recompute")
    same = linear_path(objective, one, other, 3, statistics="recompute", statistics_data=data)
    apart = linear_path(objective, one, other, 3, statistics="recompute", statistics_data=(3 * data[0] + 1, data[1]))
    assert np.array_equal(own.loss, same.loss) and abs(apart.loss - own.loss).max() > 1e-3


def test_trained_curves_lie_below_the_straight_line_and_are_the_same_twice() -> None:
    problem = network("mlp", examples=64, dtype=torch.float32)
    minima = []
    for seed in (1, 2):
        model = network("mlp", seed=seed, dtype=torch.float32).model
        optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
        for _ in range(150):
            optimizer.zero_grad()
            F.cross_entropy(model(problem.data[0]), problem.data[1]).backward()
            optimizer.step()
        minima.append(model)
    objective = Objective(minima[0], F.cross_entropy, problem.data, batch_size=16)
    before = state_hash(minima[0])
    for curve in ("bezier", "chain"):
        found = connect_modes(objective, *minima, curve=curve, epochs=40, lr=0.1, batch_size=16, points=9)
        assert found.linear.barrier > 0.3
        assert found.path.barrier < 0.4 * found.linear.barrier, (curve, found)
        assert found.path.loss.mean() < 0.7 * found.linear.loss.mean()
        assert found.path.loss[0] == found.linear.loss[0] == objective.loss() and found.path.loss[-1] == found.linear.loss[-1]
        middle = found.path.t[3]
        assert found.path.loss[3] == pytest.approx(objective.loss(found.at(float(middle))), rel=1e-5)
        assert len(found.path.curve["training_loss"]) == 40 and found.path.cost.gradients == pytest.approx(40)
        plane = found.plane(objective)
        on_plane, away = plane.coordinates([found.at(float(t)) for t in found.path.t])
        np.testing.assert_allclose(found.path.coordinates, on_plane, atol=1e-5)
        assert away.max() < 1e-3 * plane.norms[0]
    again = connect_modes(objective, *minima, curve="chain", epochs=40, lr=0.1, batch_size=16, points=9)
    assert np.array_equal(again.path.loss, found.path.loss)
    assert state_hash(minima[0]) == before


def test_training_is_that_of_garipov_written_out() -> None:
    """One t a step, uniform; the bend moves along 2 t (1 - t) of the gradient at w(t), of the loss and of d ||w(t)||^2 / 2."""
    problem = quadratic(spectrum_matrix([3.0, 1.0, 0.2]), examples=6)
    objective = Objective(*problem)
    a, c = torch.tensor([1.0, 0, -1], dtype=torch.float64), torch.tensor([-1.0, 2, 0], dtype=torch.float64)
    found = connect_modes(objective, {"w": a}, {"w": c}, epochs=8, lr=0.1, momentum=0.8, weight_decay=0.3, batch_size=4, seed=5, points=3)
    g, bend, velocity = torch.Generator().manual_seed(5), (a + c) / 2, 0
    for epoch in range(8):
        done = (epoch + 0.5) / 8
        lr = 0.1 * (1 if done < 0.5 else max(0.01, 1 - 0.99 * (done - 0.5) / 0.4))
        for part in torch.randperm(6, generator=g).split(4):
            t = torch.rand((), generator=g, dtype=torch.float64)
            w = ((1 - t) ** 2 * a + 2 * t * (1 - t) * bend + t**2 * c).requires_grad_()
            loss = problem.loss(w.expand(len(part), -1), problem.data[1][part]) + 0.3 * (w @ w) / 2
            velocity = 0.8 * velocity + 2 * t * (1 - t) * torch.autograd.grad(loss, w)[0]
            bend = bend - lr * velocity
    torch.testing.assert_close(found.bends[0]["w"], bend, rtol=1e-12, atol=1e-14)
    assert torch.equal(found.at(0.0)["w"], a) and torch.equal(found.at(1.0)["w"], c)


def test_one_example_is_no_batch_to_train_batch_norm_on() -> None:
    one, other = (nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)) for _ in range(2))
    problem = network("mlp", examples=9, dtype=torch.float32)
    with pytest.raises(ValueError, match="batch_size must be at least 2: batch norm trains"):
        connect_modes(Objective(one, F.cross_entropy, problem.data), one, other, batch_size=1)
    for size, words in ((4, None), (1, "every batch holds one example")):
        objective = Objective(one, F.cross_entropy, DataLoader(TensorDataset(*problem.data), batch_size=size))
        if words is None:  # the ninth example is left out
            assert connect_modes(objective, one, other, epochs=1, points=2, statistics="interpolate").path.cost.gradients == pytest.approx(
                8 / 9
            )
        else:
            with pytest.raises(ValueError, match=words):
                connect_modes(objective, one, other, epochs=1, points=2, statistics="interpolate")


def test_the_callers_inference_mode_and_autocast_do_not_matter() -> None:
    one, other, data = batch_norm_pair(torch.float32)
    objective = Objective(one, F.cross_entropy, data)
    plain = connect_modes(objective, one, other, epochs=1, points=3).path
    with torch.inference_mode():
        assert np.array_equal(connect_modes(objective, one, other, epochs=1, points=3).path.loss, plain.loss)
    with torch.autocast("cpu"):
        assert np.array_equal(connect_modes(objective, one, other, epochs=1, points=3).path.loss, plain.loss)


def test_curves_of_batch_norm_networks_train_in_batches(tmp_path: Path) -> None:
    one, other, data = batch_norm_pair(torch.float32)
    objective = Objective(one.train(), F.cross_entropy, DataLoader(TensorDataset(*data), batch_size=6), params=["0.*", "1.*", "3.*", "6.*"])
    before = state_hash(one)
    found = connect_modes(objective, one, other, bends=2, epochs=3, lr=0.05, points=4, out=tmp_path / "run.h5", name="bend")
    assert state_hash(one) == before and len(found.bends) == 2
    file = landscape.open(tmp_path / "run.h5")
    assert set(file.paths) == {"bend", "bend-linear"} and file.paths["bend"].curve["bends"] == 2
    assert np.array_equal(file.paths["bend"].loss, found.path.loss) and file.paths["bend"].t[-1] == 1


def test_a_trajectory_lies_on_the_surface_of_its_plane() -> None:
    """Three points lie on the plane of their components: there the surface is the loss of each."""
    problem = network("mlp", examples=30)
    objective = Objective(*problem)
    steps = [network("mlp", seed=s).model for s in (4, 5)] + [problem.model]
    path = loss_trajectory(objective, steps, [0, 5, 10])
    plane = pca_plane(steps, objective)
    assert path.distance.max() < 1e-7 and path.explained_variance.sum() == pytest.approx(1) and list(path.step) == [0, 5, 10]
    assert path.curve["plane"] == plane.describe()
    x, y = (np.sort(path.coordinates[:, axis]) for axis in (0, 1))
    for model, (cx, cy), loss in zip(steps, path.coordinates, path.loss, strict=True):
        surface = loss_surface(objective, plane, x=(x[0], cx + 1, 2), y=(y[0], cy + 1, 2))
        assert surface.loss[0, 0] == pytest.approx(objective.loss(plane.at(float(x[0]), float(y[0]))), rel=1e-9)
        assert loss == pytest.approx(objective.loss(dict(model.named_parameters())), rel=1e-12)
        assert loss == pytest.approx(objective.loss(plane.at(float(cx), float(cy))), rel=1e-7)
    (left, right, n), (low, high, _) = around_coordinates(path.coordinates, 7)
    assert n == 7 and left < x[0] and right > x[-1] and low < y[0] and high > y[-1]


def test_each_step_has_its_own_running_statistics() -> None:
    one, other, data = batch_norm_pair()
    third = network("cnn", seed=5).model
    objective = Objective(third, F.cross_entropy, data)
    path = loss_trajectory(objective, [m.state_dict() for m in (one, other, third)])
    for model, loss in zip((one, other, third), path.loss, strict=True):
        assert loss == Objective(model, F.cross_entropy, data).loss()


def test_losses_that_are_no_numbers_leave_no_barrier_and_no_trace() -> None:
    objective = Objective(Vector(torch.zeros(1)), lambda outputs, target: (1 / outputs).mean(), (torch.zeros(4, 1), torch.zeros(4, 1)))
    path = linear_path(objective, {"w": -torch.ones(1)}, {"w": torch.ones(1)}, 3)
    assert np.isnan(path.loss[1]) and np.isnan(path.barrier) and "not finite at 1 of 3" in path.summary()
    assert path.loss[0] == -1 and path.loss[2] == 1


@pytest.mark.parametrize("measure", [linear_path, connect_modes])
def test_the_model_comes_back_after_an_interrupt(measure: Callable[..., object]) -> None:
    one, other, data = batch_norm_pair()

    def interrupt(*_: object) -> None:
        calls.append(1)
        if len(calls) > 30:
            raise KeyboardInterrupt

    one[1].register_forward_hook(interrupt)
    calls: list[int] = []
    before = state_hash(one)
    with pytest.raises(KeyboardInterrupt):
        measure(Objective(one, F.cross_entropy, data), one, other, points=40, statistics="recompute")
    assert state_hash(one) == before


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"points": 1}, "points must be an integer of at least 2, got 1"),
        ({"statistics": "none"}, "'interpolate' or 'recompute', got 'none'"),
        ({"statistics_data": (torch.zeros(4, 1), torch.zeros(4, 1))}, "read with statistics='recompute' only"),
        ({"save_every": -1}, "save_every must be a number of seconds, got -1"),
        ({"name": 7}, "name is 7; it must be a string"),
        ({"b": {"w": torch.ones(2)}}, "b has 'w' of shape"),
        ({"b": {"w": torch.tensor([math.nan])}}, "not finite, in 'w'"),
    ],
)
def test_wrong_arguments_are_named(options: dict, words: str) -> None:
    objective = Objective(Vector(torch.zeros(1)), lambda outputs, target: outputs.mean(), (torch.zeros(4, 1), torch.zeros(4, 1)))
    with pytest.raises((ValueError, TypeError), match=words):
        linear_path(objective, **({"a": {"w": torch.ones(1)}, "b": {"w": torch.zeros(1)}} | options))


def test_frozen_parts_that_differ_are_refused() -> None:
    one, other, data = batch_norm_pair()
    objective = Objective(one, F.cross_entropy, data, params=["6.*"])
    with pytest.raises(ValueError, match="b differs from the objective's model in '0.weight'"):
        linear_path(objective, one, other)
    head = {n: p for n, p in other.named_parameters() if n.startswith("6.")}
    path = linear_path(objective, one, head, 3)
    assert path.loss[0] == objective.loss()


@pytest.mark.parametrize(
    ("options", "words"), [({"curve": "line"}, "'bezier' or 'chain'"), ({"bends": 0}, "bends"), ({"lr": 0}, "lr must")]
)
def test_wrong_options_of_a_connection(options: dict, words: str) -> None:
    one, other, data = batch_norm_pair()
    with pytest.raises(ValueError, match=words):
        connect_modes(Objective(one, F.cross_entropy, data), one, other, **options)


def test_training_that_diverges_says_so() -> None:
    objective = Objective(
        Vector(torch.zeros(2)), lambda outputs, target: (outputs**4).sum(1).mean(), (torch.zeros(9, 2), torch.zeros(9, 2))
    )
    with pytest.raises(landscape.NonFiniteLossError, match="smaller lr than"):
        connect_modes(objective, {"w": torch.tensor([3.0, 1])}, {"w": torch.tensor([1.0, 3])}, lr=10.0, epochs=9)
