"""Loss surfaces against a plain loop that moves a copy of the model, and against the mistakes of known tools."""

import copy
import math

import numpy as np
import pytest
import torch
from problems import NETWORKS, Problem, Vector, network, quadratic, spectrum_matrix
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from landscape.batches import untouched_random_state
from landscape.curvature import top_eigenpairs
from landscape.intervals import student_factor
from landscape.objective import Objective, tensors_sha256
from landscape.results.types import Surface
from landscape.surfaces import Plane, eigen_plane, loss_surface, random_plane
from landscape.surfaces.directions import gaussian_draws

X, Y = (-1.2, 0.8, 5), (-0.5, 1, 4)


def plain_surface(problem: Problem, plane: Plane, xs: np.ndarray, ys: np.ndarray, train: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Loss and accuracy by a deep copy of the model for every point, all data at once."""
    loss, accuracy = np.empty((len(ys), len(xs))), np.empty((len(ys), len(xs)))
    inputs, target = problem.data
    for j, y in enumerate(ys):
        for i, x in enumerate(xs):
            moved = copy.deepcopy(problem.model).train(train)
            with torch.no_grad():
                for name, p in moved.named_parameters():
                    p.copy_(plane.origin[name] + float(x) * plane.directions[0][name] + float(y) * plane.directions[1][name])
                outputs = moved(inputs)
                loss[j, i] = problem.loss(outputs, target)
                accuracy[j, i] = (outputs.argmax(1) == target).double().mean()
    return loss, accuracy


def state_of(model: nn.Module) -> tuple[object, ...]:
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    pointers = [t.data_ptr() for t in tensors.values()]
    modes = [m.training for m in model.modules()]
    return tensors_sha256(tensors), pointers, modes, [p.requires_grad for p in model.parameters()], torch.get_rng_state().tolist()


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_every_network_agrees_with_a_plain_loop(kind: str, dtype: torch.dtype, tolerance: float) -> None:
    problem = network(kind, dtype=dtype)
    problem.model.train()
    before = state_of(problem.model)
    objective = Objective(problem.model, problem.loss, problem.data, batch_size=5)  # 5, 5 and 3 of 13
    plane = random_plane(objective, seed=2)
    surface = loss_surface(objective, plane, X, Y)
    loss, accuracy = plain_surface(problem, plane, surface.x, surface.y)
    np.testing.assert_allclose(surface.loss, loss, rtol=tolerance)
    np.testing.assert_allclose(surface.accuracy, accuracy, rtol=1e-12)
    assert (surface.status == Surface.EVALUATED).all() and surface.loss.shape == (4, 5)
    assert state_of(problem.model) == before


def test_uneven_batches_and_loaders_and_their_sizes_do_not_matter() -> None:
    problem = network("cnn", examples=11)
    x, y = problem.data
    lists = [(x[:1], y[:1]), (x[1:8], y[1:8]), (x[8:], y[8:])]
    loader = DataLoader(TensorDataset(x, y), batch_size=4, shuffle=True)
    plane = random_plane(Objective(*problem))
    surfaces = [loss_surface(Objective(problem.model, F.cross_entropy, data), plane, X, Y) for data in (problem.data, lists, loader)]
    for other in surfaces[1:]:
        np.testing.assert_allclose(other.loss, surfaces[0].loss, rtol=1e-12)
        np.testing.assert_allclose(other.accuracy, surfaces[0].accuracy, rtol=1e-12)


def test_the_centre_is_the_loss_of_the_model() -> None:
    for kind in NETWORKS:
        objective = Objective(*network(kind, dtype=torch.float32), batch_size=4)
        surface = loss_surface(objective, random_plane(objective), (-1, 1, 3), (-1, 1, 3))
        assert surface.x[1] == surface.y[1] == 0
        assert math.isclose(surface.loss[1, 1], objective.loss(), rel_tol=1e-6)
        assert surface.accuracy[1, 1] == objective.evaluate().accuracy.item()


def test_a_quadratic_is_a_quadratic_and_rows_are_y() -> None:
    """Known tools scramble grids that are not square, or shift every second row."""
    a = spectrum_matrix([5.0, -9.0, -1.0])
    objective = Objective(*quadratic(a))
    d = gaussian_draws({"w": (3,)}, 1)
    plane = Plane(objective.parameters, tuple(d))
    surface = loss_surface(objective, plane, (-2, 1, 7), (0, 3, 4))
    value, gradient = objective.gradient()
    for j, y in enumerate(np.linspace(0, 3, 4)):
        for i, x in enumerate(np.linspace(-2, 1, 7)):
            step = x * d[0]["w"] + y * d[1]["w"]
            expected = value + step @ gradient["w"] + 0.5 * step @ a @ step
            assert math.isclose(surface.loss[j, i], expected.item(), rel_tol=1e-9, abs_tol=1e-9)
    assert surface.loss.min() < 0 and (surface.status == Surface.EVALUATED).all()


def test_a_line_is_the_row_of_the_plane() -> None:
    objective = Objective(*network("mlp"), batch_size=5)
    plane = random_plane(objective)
    surface, line = loss_surface(objective, plane, X, (-1, 1, 3)), loss_surface(objective, plane, X, None)
    assert line.y is None and line.loss.shape == line.status.shape == (5,)
    assert np.array_equal(line.loss, surface.loss[1]) and np.array_equal(line.stderr, surface.stderr[1])
    alone = loss_surface(objective, random_plane(objective, dimensions=1), X, None)
    assert np.array_equal(alone.loss, line.loss)


def test_farther_points_are_farther() -> None:
    objective = Objective(*network("mlp"))
    plane = random_plane(objective)
    small, large = loss_surface(objective, plane, (-1, 1, 3), None), loss_surface(objective, plane, (-2, 2, 5), None)
    np.testing.assert_array_equal(large.loss[1:4], small.loss)


def test_batch_statistics_on_request() -> None:
    problem = network("cnn")
    objective = Objective(problem.model, problem.loss, problem.data, batch_norm="batch", batch_size=100)
    plane = random_plane(objective)
    surface = loss_surface(objective, plane, X, Y)
    loss, _ = plain_surface(problem, plane, surface.x, surface.y, train=True)
    np.testing.assert_allclose(surface.loss, loss, rtol=1e-10)


def test_standard_errors_are_those_of_the_weighted_batch_means() -> None:
    problem = network("mlp", examples=23)
    objective = Objective(problem.model, problem.loss, problem.data, batch_size=4)
    surface = loss_surface(objective, random_plane(objective), X, Y)
    plane, (inputs, target) = random_plane(objective), problem.data
    for j, i in ((0, 0), (3, 2)):
        point = plane.at(surface.x[i], surface.y[j])
        sizes = np.array([len(t) for t in target.split(4)])
        means = np.array([objective.batch_loss(point, batch).item() for batch in zip(inputs.split(4), target.split(4), strict=True)])
        mean = (sizes * means).sum() / 23
        unbiased = (sizes**2 * (means - mean) ** 2).sum() / (1 - (sizes**2).sum() / 23**2)
        assert math.isclose(surface.stderr[j, i] / student_factor(5), math.sqrt(unbiased) / 23, rel_tol=5e-3)  # 4.9 degrees of freedom
    whole = Objective(*problem)
    assert np.isnan(loss_surface(whole, plane, X, None).stderr).all()


@pytest.mark.slow
def test_standard_errors_cover_the_mean_as_often_as_they_should() -> None:
    g = torch.Generator().manual_seed(0)
    hits = []
    for _ in range(200):
        c = torch.randn(64, 2, generator=g, dtype=torch.float64)
        objective = Objective(
            Vector(torch.ones(2, dtype=torch.float64)), lambda outputs, target: (outputs * target).sum(1).mean(), (c, c), batch_size=2
        )
        line = loss_surface(objective, Plane(objective.parameters, (objective.parameters,)), (0, 1, 2), None)
        hits.append(abs(line.loss[0]) < 1.96 * line.stderr[0])  # the true mean is 0
    assert 0.90 <= np.mean(hits) <= 0.985


@pytest.mark.parametrize(("examples", "batch_size"), [(129, 128), (130, 64), (12, 4)])
def test_error_bars_of_few_uneven_batches_cover_too(examples: int, batch_size: int) -> None:
    """With k / (k - 1) for the bias and 1.96 for the quantile, 129 examples in batches of 128 cover in 19 % of all runs."""
    g = torch.Generator().manual_seed(0)
    model, hits = Vector(torch.ones(1, dtype=torch.float64)), []
    for _ in range(200):
        c = torch.randn(examples, 1, generator=g, dtype=torch.float64)
        objective = Objective(model, lambda outputs, target: (outputs * target).mean(), (c, c), batch_size=batch_size)
        line = loss_surface(objective, Plane(objective.parameters, (objective.parameters,)), (0, 1, 2), None)
        hits.append(abs(line.loss[0]) < 1.96 * line.stderr[0])
    assert 0.90 <= np.mean(hits) <= 0.985


def test_points_without_a_loss_are_nan_and_the_others_do_not_care() -> None:
    """Known tools replace NaN by the mean."""

    def root(outputs: Tensor, target: Tensor) -> Tensor:
        return (outputs + target).sqrt().mean() - 1

    target = torch.zeros(6, 1, dtype=torch.float64)
    objective = Objective(Vector(torch.ones(1, dtype=torch.float64)), root, (target, target), batch_size=4)
    plane = Plane(objective.parameters, ({"w": torch.ones(1, dtype=torch.float64)},))
    line = loss_surface(objective, plane, (-2, 2, 5), None)
    np.testing.assert_allclose(line.loss, [math.nan, -1, 0, math.sqrt(2) - 1, math.sqrt(3) - 1], atol=1e-12)
    assert line.status.tolist() == [Surface.FAILED] + 4 * [Surface.EVALUATED]
    assert np.isnan(line.accuracy).all() and np.isnan(line.stderr[0]) and "nan" not in repr(line)
    infinite = loss_surface(Objective(objective.model, lambda o, t: o.log().mean(), (target, target)), plane, (-1, 0, 2), None)
    assert infinite.status[0] == Surface.FAILED and np.isnan(infinite.loss[0])
    nowhere = loss_surface(Objective(objective.model, lambda o, t: o.mean() * math.nan, (target, target)), plane, (-1, 1, 2), None)
    assert np.isnan(nowhere.loss).all() and "2 not finite" in repr(nowhere)


@pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt])
def test_the_model_comes_back_when_the_loss_raises(failure: type[BaseException]) -> None:
    problem = network("cnn", dtype=torch.float32)
    calls = []

    def raising(outputs: Tensor, target: Tensor) -> Tensor:
        calls.append(torch.rand(()))
        if len(calls) > 7:
            raise failure
        return F.cross_entropy(outputs, target)

    objective = Objective(problem.model.train(), raising, problem.data)
    plane, before = random_plane(objective), state_of(problem.model)
    with pytest.raises(failure):
        loss_surface(objective, plane, X, Y)
    assert len(calls) == 8 and state_of(problem.model) == before


def test_a_model_that_counts_its_calls_is_not_written_to() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(2, 2)
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return self.layer(x)

    model = Counting()
    objective = Objective(model, F.mse_loss, (torch.ones(3, 2), torch.ones(3, 2)))
    loss_surface(objective, random_plane(objective), X, None)
    assert model.calls == 0


def test_other_forms_of_model_and_data() -> None:
    """A loss of (model, batch), dictionaries, frozen parts, and another dtype than the model's."""
    problem = network("mlp", dtype=torch.float32)
    problem.model[0].weight.requires_grad_(False)
    batches = {"x": problem.data[0], "label": problem.data[1]}
    by_model = Objective(problem.model, lambda model, batch: F.cross_entropy(model(batch["x"]), batch["label"]), batches, batch_size=6)
    plain, double = Objective(*problem), Objective(*problem, dtype=torch.float64)
    plane = random_plane(plain)
    surfaces = [loss_surface(o, plane, X, Y) for o in (by_model, plain, double)]
    for surface in surfaces:
        np.testing.assert_allclose(surface.loss, surfaces[2].loss, rtol=1e-5)
    assert np.isnan(surfaces[0].accuracy).all() and "0.weight" not in plane.origin
    frozen = copy.deepcopy(problem.model).double()
    with torch.no_grad():
        frozen[5].weight += surfaces[2].x[0] * plane.directions[0]["5.weight"].double()
    last = Plane({"5.weight": plane.origin["5.weight"]}, ({"5.weight": plane.directions[0]["5.weight"]},))
    only = loss_surface(Objective(*problem, params=["5.weight"], dtype=torch.float64), last, X, None)
    expected = F.cross_entropy(frozen(problem.data[0].double()), problem.data[1]).item()
    assert math.isclose(only.loss[0], expected, rel_tol=1e-12)


def test_shared_directions_have_each_model_at_its_own_centre() -> None:
    first, second = network("cnn"), network("cnn", seed=5)
    objectives = [Objective(*p) for p in (first, second)]
    plane = random_plane(objectives[0])
    for problem, objective in zip((first, second), objectives, strict=True):
        own = plane.around(objective)
        surface = loss_surface(objective, own, (-1, 1, 3), (-1, 1, 3))
        np.testing.assert_allclose(surface.loss, plain_surface(problem, own, surface.x, surface.y)[0], rtol=1e-10)
        assert surface.plane["direction_sha256"] == list(plane.sha256)
    with pytest.raises(ValueError, match=r"statistics belong to its own; use plane.around"):
        loss_surface(objectives[1], plane, X, None)


def test_results_say_what_they_cost_and_what_they_are() -> None:
    problem = network("cnn")
    objective = Objective(*problem, batch_size=4)
    plane = random_plane(objective, seed=7)
    meter = objective.meter()
    surface = loss_surface(objective, plane, X, Y, name="filter")
    assert surface.cost.forwards == 20 == meter.cost().forwards and surface.cost.seconds > 0
    assert surface.provenance.seed == 7 and surface.provenance.data_sha256 == objective.batches.sha256
    assert surface.plane["direction_sha256"] == list(plane.sha256) and surface.name == "filter"


def test_evaluation_is_the_same_whatever_ran_before() -> None:
    objective = Objective(*network("cnn", dtype=torch.float32), batch_size=4)
    first = loss_surface(objective, random_plane(objective), X, Y)
    torch.rand(3)
    with untouched_random_state(objective.device):
        torch.manual_seed(4)
        second = loss_surface(objective, random_plane(objective), X, Y)
    assert np.array_equal(first.loss, second.loss) and np.array_equal(first.stderr, second.stderr)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"x": (1, -1, 5)}, "x must run from a finite number to a larger one, got 1 to -1"),
        ({"x": (-1, math.inf, 5)}, "x must run from a finite"),
        ({"x": (-1, math.nan, 5)}, "x must run from a finite"),
        ({"x": (-1e308, 1e308, 5)}, "x must run from a finite"),
        ({"save_every": "often"}, "save_every"),
        ({"y": (-1, 1, 1)}, "y: the number of points must be an integer of at least 2, got 1"),
        ({"y": (-1, 1, 2.5)}, "y: the number of points"),
        ({"y": (-1, 1)}, "y must be .from, to, number of points., got"),
        ({"x": None}, "x must be .from, to"),
        ({"x": ("a", 1, 3)}, "x must be"),
        ({"name": ""}, "name must be a string that is not empty"),
        ({"save_every": -1}, "save_every"),
    ],
)
def test_wrong_arguments_are_named(change: dict, words: str) -> None:
    objective = Objective(*network("mlp"))
    with pytest.raises(ValueError, match=words):
        loss_surface(objective, random_plane(objective), **change)


def test_planes_that_do_not_fit_are_refused() -> None:
    objective, other = Objective(*network("mlp")), Objective(*network("cnn"))
    with pytest.raises(ValueError, match="differ in parameter '0.weight'"):
        loss_surface(objective, random_plane(other), X, Y)
    with pytest.raises(ValueError, match="one direction: pass y=None"):
        loss_surface(objective, random_plane(objective, dimensions=1), X, Y)


def test_an_eigen_plane_shows_the_curvatures() -> None:
    objective = Objective(*network("mlp"))
    eig = top_eigenpairs(objective, k=2, tol=1e-8)
    h = 1e-3
    surface = loss_surface(objective, eigen_plane(eig), (-h, h, 3), (-h, h, 3))
    for values, curvature in zip((surface.loss[1], surface.loss[:, 1]), eig.values, strict=True):
        assert math.isclose((values[0] - 2 * values[1] + values[2]) / h**2, curvature, rel_tol=1e-3)
