"""Directions against a plain implementation of filter normalisation, and against the mistakes of known tools."""

import copy
import dataclasses
import itertools
import math
from pathlib import Path

import pytest
import torch
from problems import NETWORKS, Vector, network, quadratic, spectrum_matrix
from torch import Tensor, nn
from torch.nn import functional as F

import landscape
from landscape.curvature import top_eigenpairs
from landscape.objective import Objective, tensors_sha256
from landscape.surfaces import Plane, eigen_plane, gaussian_draws, loss_surface, random_plane


def objective_of(kind: str, dtype: torch.dtype = torch.float64, **options: object) -> Objective:
    problem = network(kind, dtype=dtype)
    return Objective(problem.model, problem.loss, problem.data, **options)


def plain_filter_normalisation(draw: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Li et al. 2018, filter after filter."""
    result = {}
    for name, weight in model.named_parameters():
        d = draw[name].clone()
        if weight.dim() <= 1:
            d.fill_(0)
        else:
            for slice_of_d, slice_of_w in zip(d, weight.detach().double(), strict=True):
                slice_of_d.mul_(slice_of_w.norm() / (slice_of_d.norm() + 1e-10))
        result[name] = d
    return result


def draws_of(objective: Objective, seed: int) -> list[dict[str, Tensor]]:
    return gaussian_draws({name: p.shape for name, p in objective.parameters.items()}, seed)


def flat(direction: dict[str, Tensor]) -> Tensor:
    return torch.cat([d.double().reshape(-1) for d in direction.values()])


@pytest.mark.parametrize("kind", NETWORKS)
def test_filter_normalisation_agrees_with_the_plain_one(kind: str) -> None:
    objective = objective_of(kind)
    plane = random_plane(objective, seed=3)
    for direction, draw in zip(plane.directions, draws_of(objective, 3), strict=True):
        expected = plain_filter_normalisation(draw, objective.model)
        for name in objective.names:
            torch.testing.assert_close(direction[name], expected[name], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("kind", ["mlp", "cnn"])
def test_losses_on_filter_normalised_planes_agree_with_the_plain_ones(kind: str) -> None:
    objective = objective_of(kind)
    surface = loss_surface(objective, random_plane(objective, seed=3), x=(-1, 1, 5), y=(-0.5, 1, 4))
    directions = [plain_filter_normalisation(draw, objective.model) for draw in draws_of(objective, 3)]
    inputs, target = network(kind).data
    for j, i in itertools.product(range(4), range(5)):
        moved = copy.deepcopy(objective.model).eval()
        with torch.no_grad():
            for name, p in moved.named_parameters():
                p += surface.x[i] * directions[0][name] + surface.y[j] * directions[1][name]
            expected = F.cross_entropy(moved(inputs), target).item()
        assert surface.loss[j, i] == pytest.approx(expected, rel=1e-6)


def test_filters_and_layers_get_the_norms_of_the_weights() -> None:
    objective = objective_of("cnn")
    weights = objective.parameters
    by_filter, by_layer, by_nothing = (random_plane(objective, normalize=n) for n in ("filter", "layer", None))
    for name, w in weights.items():
        if w.ndim <= 1:
            assert not any(plane.directions[1][name].any() for plane in (by_filter, by_layer, by_nothing))
            continue
        torch.testing.assert_close(by_filter.directions[1][name].flatten(1).norm(dim=1), w.flatten(1).norm(dim=1))
        torch.testing.assert_close(by_layer.directions[1][name].norm(), w.norm())
        assert torch.equal(by_nothing.directions[1][name], draws_of(objective, 0)[1][name])


def test_zero_filters_stay_and_kept_biases_are_scaled_as_a_whole() -> None:
    objective = objective_of("cnn")
    with torch.no_grad():
        objective.model[0].weight[1] = 0
    plane = random_plane(objective, include_norm_and_bias=True)
    for direction in plane.directions:
        assert not direction["0.weight"][1].any() and direction["0.weight"][0].all()
        for name in ("1.weight", "3.bias"):
            torch.testing.assert_close(direction[name].norm(), objective.parameters[name].norm())
    # Known tools put the weights themselves into both directions.
    assert abs(plane.cosine) < 0.5
    weights = flat(plane.origin)
    assert all(abs(F.cosine_similarity(flat(d), weights, dim=0)) < 0.5 for d in plane.directions)


def test_draws_are_normal_and_independent() -> None:
    big = nn.Linear(200, 200, bias=False)
    objective = Objective(big, F.mse_loss, (torch.zeros(2, 200), torch.zeros(2, 200)))
    plane = random_plane(objective, normalize=None, seed=1)
    one, two = (flat(d) for d in plane.directions)
    n = len(one)
    for d in (one, two):
        assert abs(d.mean()) < 5 / math.sqrt(n) and abs(d.var() - 1) < 5 * math.sqrt(2 / n)
        assert abs((d**4).mean() - 3) < 5 * math.sqrt(96 / n)
        assert abs(F.cosine_similarity(d, torch.ones(n, dtype=d.dtype), dim=0)) < 5 / math.sqrt(n)
    assert abs(plane.cosine) < 5 / math.sqrt(n)
    assert math.isclose(plane.cosine, F.cosine_similarity(one, two, dim=0).item(), rel_tol=1e-5, abs_tol=1e-7)


def test_the_seed_decides_the_draws_and_nothing_else_does() -> None:
    single, double = objective_of("cnn", torch.float32), objective_of("cnn", dtype=torch.float64)
    state = torch.get_rng_state()
    plane = random_plane(single, seed=5, normalize=None)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(99)
    again, other, wide = (
        random_plane(single, seed=5, normalize=None),
        random_plane(single, seed=6),
        random_plane(double, seed=5, normalize=None),
    )
    assert plane.sha256 == again.sha256 and not set(plane.sha256) & set(other.sha256)
    assert all(torch.equal(wide.directions[i][n].float(), plane.directions[i][n]) for i in (0, 1) for n in single.names)
    line = random_plane(single, seed=5, dimensions=1, normalize=None)
    assert line.sha256 == plane.sha256[:1]


def test_a_plane_stays_where_it_was_made_and_moves_only_by_name() -> None:
    objective, other = objective_of("mlp"), Objective(*network("mlp", seed=8))
    plane = random_plane(objective)
    before = tensors_sha256(plane.origin)
    with torch.no_grad():
        objective.model[0].weight.mul_(2)
    assert tensors_sha256(plane.origin) == before == plane.origin_sha256
    moved, rescaled = plane.around(other), plane.around(other, renormalize=True)
    assert moved.sha256 == plane.sha256
    assert all(torch.equal(moved.origin[n], p) for n, p in other.parameters.items())
    assert rescaled.sha256 == random_plane(other).sha256 != plane.sha256
    with pytest.raises(ValueError, match="objective has .* where the plane has"):
        plane.around(objective_of("cnn"))


def test_at_is_affine() -> None:
    plane = random_plane(objective_of("mlp"))
    point = plane.at(0.25, -1.5)
    for name, p in plane.origin.items():
        torch.testing.assert_close(point[name], p + 0.25 * plane.directions[0][name] - 1.5 * plane.directions[1][name])
    assert all(torch.equal(plane.at(0)[name], p) for name, p in plane.origin.items())


def test_eigenvectors_as_directions_span_the_curvatures() -> None:
    problem = quadratic(spectrum_matrix([9.0, -4.0, 1.0, 0.5]))
    objective = Objective(*problem)
    eig = top_eigenpairs(objective, k=2, tol=1e-10)
    for plane in (eigen_plane(eig), eigen_plane(eig, objective)):
        centre = objective.loss()
        _, gradient = objective.gradient()
        for axis, curvature in ((0, 9.0), (1, -4.0)):
            slope = (gradient["w"] * plane.directions[axis]["w"]).sum().item()
            at = objective.loss(plane.at(*((0.7, 0.0) if axis == 0 else (0.0, 0.7))))
            assert math.isclose(at, centre + 0.7 * slope + 0.5 * 0.49 * curvature, rel_tol=1e-9)
        assert plane.norms == pytest.approx([1, 1]) and abs(plane.cosine) < 1e-8
        assert plane.eigenvalues == pytest.approx((9, -4))
    assert len(eigen_plane(eig, indices=(1,)).directions) == 1


def test_models_of_vectors_alone_move_their_vectors() -> None:
    objective = Objective(*quadratic(spectrum_matrix([1.0, 2.0])))
    plane = random_plane(objective)
    assert plane.include_norm_and_bias and plane.norms == pytest.approx([objective.parameters["w"].norm().item()] * 2)


def test_description_says_how_it_was_made() -> None:
    described = random_plane(objective_of("cnn"), "layer", seed=4).describe()
    assert (described["kind"], described["normalize"], described["seed"]) == ("random", "layer", 4)
    assert len(described["norms"]) == len(set(described["direction_sha256"])) == 2 and abs(described["cosine"]) < 1


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"normalize": "filters"}, ValueError, "'filter', 'layer' or None, got 'filters'"),
        ({"dimensions": 3}, ValueError, "dimensions must be 1 or 2, got 3"),
        ({"seed": 0.5}, TypeError, "seed must be an integer, got 0.5"),
        ({"seed": -1}, ValueError, "seed must not be negative"),
    ],
)
def test_wrong_arguments_are_named(options: dict, error: type, words: str) -> None:
    with pytest.raises(error, match=words):
        random_plane(objective_of("mlp"), **options)


def test_planes_that_are_none_are_refused() -> None:
    origin = {"w": torch.ones(3)}
    with pytest.raises(ValueError, match="parallel"):
        Plane(origin, ({"w": torch.tensor([1.0, 2, 3])}, {"w": torch.tensor([-2.0, -4, -6])}))
    with pytest.raises(ValueError, match="zero everywhere"):
        Plane(origin, ({"w": torch.zeros(3)},))
    with pytest.raises(ValueError, match="not finite, in 'w'"):
        Plane(origin, ({"w": torch.tensor([1.0, math.nan, 0])},))
    with pytest.raises(ValueError, match="no 'w'"):
        Plane(origin, ({"v": torch.ones(3)},))
    with pytest.raises(ValueError, match="directions is empty"):
        Plane(origin, ())
    zero = Objective(Vector(torch.zeros(3)), lambda outputs, target: outputs.sum(), (torch.ones(2, 3), torch.ones(2, 3)))
    with pytest.raises(ValueError, match="all zero; use normalize=None"):
        random_plane(zero)


def test_the_model_is_only_read() -> None:
    problem = network("cnn")
    before = copy.deepcopy(problem.model.state_dict())
    plane = random_plane(Objective(*problem))
    for direction in (plane.origin, *plane.directions):
        for tensor in direction.values():
            tensor.add_(1)
    assert all(torch.equal(v, before[k]) for k, v in problem.model.state_dict().items())


def test_cosines_with_eigenvectors_are_recorded() -> None:
    problem = quadratic(spectrum_matrix([9.0, -4.0, 1.0, 0.5]))
    objective = Objective(*problem)
    eig = top_eigenpairs(objective, k=4, tol=1e-10)
    turned = {"w": 3 * eig.vectors[0] + 4 * eig.vectors[2]}
    plane = Plane(objective.parameters, (turned, {"w": -2 * eig.vectors[1]})).compared_with(eig)
    expected = [[0.6, 0, 0.8, 0], [0, -1, 0, 0]]
    torch.testing.assert_close(torch.tensor(plane.describe()["eigenvector_cosines"]), torch.tensor(expected), rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match="5 entries, the plane has 4"):
        plane.compared_with(dataclasses.replace(eig, vectors=torch.ones(1, 5)))


@pytest.mark.parametrize("kind", ["mlp", "cnn"])
def test_a_plane_comes_back_from_a_file_to_the_bit(kind: str, tmp_path: Path) -> None:
    objective, other = objective_of(kind, torch.float32), Objective(*network(kind, seed=8, dtype=torch.float32))
    plane = random_plane(objective, seed=3)
    plane.save(tmp_path / "planes.h5", "shared")
    again = Plane.load(tmp_path / "planes.h5")
    assert again.describe() == plane.describe() and again.origin_sha256 == plane.origin_sha256
    assert again.around(other, renormalize=True).sha256 == random_plane(other, seed=3).sha256
    half = Plane({"w": torch.ones(3, dtype=torch.bfloat16)}, ({"w": torch.tensor([0.1, 2, 3], dtype=torch.bfloat16)},), marks={"a": (0.0,)})
    half.save(tmp_path / "planes.h5", "half")
    assert Plane.load(tmp_path / "planes.h5", "half").describe() == half.describe()
    with pytest.raises(ValueError, match="the planes 'half', 'shared': say which"):
        Plane.load(tmp_path / "planes.h5")
    with pytest.raises(ValueError, match="holds no planes/none"):
        Plane.load(tmp_path / "planes.h5", "none")


def test_a_plane_that_is_not_the_one_saved_is_refused(tmp_path: Path) -> None:
    plane = random_plane(objective_of("mlp"))
    plane.save(tmp_path / "planes.h5")
    record = landscape.open(tmp_path / "planes.h5").planes["plane"]
    landscape.save(tmp_path / "planes.h5", dataclasses.replace(record, origin=record.origin + 1))
    with pytest.raises(ValueError, match="do not have the hashes that were saved"):
        Plane.load(tmp_path / "planes.h5")
