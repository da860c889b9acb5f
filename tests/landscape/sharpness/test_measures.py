"""Every measure against its closed form or its formula written out, what it claims to be invariant to, and what it leaves as it was."""

import copy
import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from problems import Problem, Vector, network, quadratic, spectrum_matrix
from torch import Tensor, nn
from torch.nn import functional as F

import landscape
from landscape import sharpness
from landscape.objective import NonFiniteLossError, Objective, tensors_sha256
from landscape.results.types import Sharpness
from landscape.sharpness.shards import _Shards

A = spectrum_matrix([3.0, 1.0, 0.3])


def smooth(examples: int = 40) -> Problem:
    return quadratic(A, examples=examples, seed=3)


def near(found: Sharpness, truth: float) -> bool:
    return abs(found.value - truth) < 4 * found.stderr and found.stderr < 0.2 * abs(truth)


def test_average_case_is_half_the_trace_times_rho_squared() -> None:
    problem = smooth(4)
    w = problem.model.w.detach()
    objective = Objective(*problem)
    plain = sharpness.average_case(objective, 0.3, draws=200)
    adaptive = sharpness.average_case(objective, 0.3, draws=200, adaptive=True)
    assert near(plain, 0.5 * 0.09 * float(A.trace())) and near(adaptive, 0.5 * 0.09 * float((w**2 * A.diagonal()).sum()))
    assert plain.cost.forwards == 401 and len(plain.per_shard) == 200
    single = sharpness.average_case(objective, 0.3, draws=200, antithetic=False)
    assert single.stderr > 2 * plain.stderr and abs(single.value - plain.value) < 4 * single.stderr


def test_low_pass_is_the_loss_convolved_with_a_gaussian() -> None:
    problem = smooth(4)
    w = problem.model.w.detach()
    objective = Objective(*problem)
    here = objective.loss()
    found = sharpness.low_pass(objective, 0.5, draws=300, antithetic=True)
    assert abs(found.value - here - 0.5 * 0.25 * float(A.trace())) < 4 * found.stderr
    filtered = sharpness.low_pass(objective, 0.5, draws=300, antithetic=True, normalize="filter")  # a vector: |w|
    assert abs(filtered.value - here - 0.5 * 0.25 * float((w**2 * A.diagonal()).sum())) < 4 * filtered.stderr
    assert found.rho == 0.5 and found.settings["normalize"] == "none" and filtered.settings["normalize"] == "filter"


def test_noise_of_filters_has_their_norms() -> None:
    """A loss that is the sum of squares of what was added: sum_f n_f sigma^2 ||w_f||^2."""
    g = torch.Generator().manual_seed(0)
    model = nn.Conv2d(2, 3, 2).double()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=g))
    w, b = (p.detach().clone() for p in model.parameters())

    def added(module: nn.Module, batch: Tensor) -> Tensor:
        return (module.weight - w).square().sum() + (module.bias - b).square().sum()

    found = sharpness.low_pass(Objective(model, added, [torch.zeros(1, 1)]), 0.1, draws=400, normalize="filter")
    assert near(found, 0.01 * float(8 * w.square().sum() + b.square().sum()))


def test_gradient_norms_of_quadratics() -> None:
    problem = smooth()
    w, c = problem.model.w.detach(), problem.data[1]
    g = (w - c) @ A
    objective = Objective(*problem)
    for p, q in ((2.0, 2.0), (1.0, math.inf), (math.inf, 1.0), (3.0, 1.5)):
        assert sharpness.gradient_norm(objective, p=p).value == pytest.approx(g.mean(0).norm(q).item(), rel=1e-12)
        for vectorize in (False, True):
            single = sharpness.gradient_norm(objective, m=1, p=p, vectorize=vectorize)
            np.testing.assert_allclose(single.per_shard, g.norm(q, dim=1), rtol=1e-12)
    found = sharpness.gradient_norm(objective)
    np.testing.assert_allclose(found.per_shard, g @ g.mean(0) / g.mean(0).norm(), rtol=1e-12)  # pieces of one example
    assert found.m == 40 and found.cost.gradients == 2


def test_sam_gaps_are_m_sharpness_with_all_examples_and_the_optimizers_step() -> None:
    problem = network("cnn")
    objective = Objective(*problem, batch_size=4)
    for options in ({}, {"p": math.inf}, {"adaptive": True, "eta": 0.1}):
        gaps = sharpness.sam_gap(objective, (0.05, 0.2), **options)
        for gap in gaps:
            assert gap.value == pytest.approx(sharpness.m_sharpness(objective, gap.rho, 13, **options).value, rel=1e-9)
        assert [g.rho for g in gaps] == [0.05, 0.2]
        assert sum(g.cost.gradients for g in gaps) == 1 and sum(g.cost.forwards for g in gaps) == 3


@pytest.mark.parametrize("vectorize", [False, True])
def test_fisher_trace_of_single_examples(vectorize: bool) -> None:
    problem = network("mlp", examples=30)
    objective, (x, y) = Objective(*problem), problem.data
    data = sharpness.fisher_trace(objective, labels="data", vectorize=vectorize)
    squares = torch.zeros(30, 3, dtype=torch.float64)
    for i, label in itertools.product(range(30), range(3)):
        grads = torch.autograd.grad(F.cross_entropy(problem.model(x[i : i + 1]), torch.tensor([label])), problem.model.parameters())
        squares[i, label] = sum(g.square().sum() for g in grads)
    np.testing.assert_allclose(data.per_shard, squares[torch.arange(30), y], rtol=1e-10)
    model = sharpness.fisher_trace(objective, vectorize=vectorize)
    # Every draw is the square of one of the labels, and over seeds labels come as often as the model says.
    assert all(np.isclose(v, squares[i]).any() for i, v in enumerate(model.per_shard))
    if vectorize:
        loop = sharpness.fisher_trace(objective, vectorize=False)
        np.testing.assert_allclose(model.per_shard, loop.per_shard, rtol=1e-10)  # the same labels
        means = [sharpness.fisher_trace(objective, seed=s, vectorize=True).value for s in range(30)]
        truth = (problem.model(x).softmax(1) * squares).sum(1).mean().item()
        assert abs(np.mean(means) - truth) < 4 * np.std(means) / math.sqrt(30)


def test_keskar_on_quadratics_is_the_best_vertex_of_the_box() -> None:
    problem = smooth()
    w, c = problem.model.w.detach(), problem.data[1]
    vertices = 0.2 * (w.abs() + 1) * torch.tensor(list(itertools.product([-1.0, 1.0], repeat=3)), dtype=torch.float64)
    loss = lambda d: 0.5 * (d @ A * d).sum(-1)  # noqa: E731
    here, gain = loss(w - c).mean(), (loss(w + vertices[:, None] - c).mean(1) - loss(w - c).mean()).max()
    found = sharpness.keskar(Objective(*problem), 0.2, steps=20, restarts=2)
    assert found.value == pytest.approx(100 * float(gain / (1 + here)), rel=1e-9)
    assert found.per_shard.mean() == pytest.approx(found.value) and len(found.per_shard) == 40 and found.m == 40
    assert found.rho == 0.2 and found.settings["eta"] == 1.0 and found.steps is not None
    sharded = sharpness.keskar(Objective(*problem), 0.2, 20, steps=20, restarts=2)
    halves = [
        100 * float((loss(w + vertices[:, None] - h).mean(1).max() - loss(w - h).mean()) / (1 + loss(w - h).mean())) for h in c.split(20)
    ]
    np.testing.assert_allclose(sharded.per_shard, halves, rtol=1e-9)


@pytest.mark.parametrize(("kind", "layers"), [("mlp", ["0.weight", "5.weight"]), ("cnn", ["3.weight", "6.weight"])])
def test_relative_flatness_is_its_formula_in_the_dense_hessian(kind: str, layers: list[str]) -> None:
    problem = network(kind)
    for layer in layers:
        w = dict(problem.model.named_parameters())[layer]
        rows = w.detach().reshape(len(w), -1)

        def loss(v: Tensor, layer: str = layer) -> Tensor:
            outputs = torch.func.functional_call(problem.model.eval(), {layer: v}, (problem.data[0],))
            return problem.loss(outputs, problem.data[1])

        hessian = torch.autograd.functional.hessian(loss, w.detach()).reshape(*rows.shape, *rows.shape)
        truth = torch.einsum("skuk,sj,uj->", hessian, rows, rows).item()
        found = sharpness.relative_flatness(Objective(*problem, batch_size=5), layer, draws=60)
        assert abs(found.value - truth) < 4 * found.stderr
    last = sharpness.relative_flatness(Objective(*problem), draws=3)
    assert last.settings["layer"] == layers[-1] and last.cost.hvps == 3


def relu_net(dtype: torch.dtype) -> tuple[Problem, nn.Module]:
    """A network and the same function with its layers rescaled."""
    g = torch.Generator().manual_seed(4)
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)).to(dtype)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=g, dtype=torch.float64) / 2)
    other = copy.deepcopy(model)
    with torch.no_grad():
        for layer, weight, bias in ((0, 4.0, 4.0), (2, 0.5, 2.0), (4, 0.5, 1.0)):
            other[layer].weight *= weight
            other[layer].bias *= bias
    x, y = torch.randn(12, 4, generator=g, dtype=torch.float64).to(dtype), torch.arange(12) % 3
    return Problem(model, F.cross_entropy, (x, y)), other


INVARIANT: dict[str, Callable[[Objective], Sharpness]] = {
    "adaptive m-sharpness": lambda o: sharpness.m_sharpness(o, 0.1, 4, adaptive=True),
    "adaptive m-sharpness, several steps": lambda o: sharpness.m_sharpness(o, 0.1, 4, adaptive=True, p=math.inf, steps=3, restarts=1),
    "worst case, inf": lambda o: sharpness.worst_case(o, 0.05, 6, steps=5),
    "worst case, 2": lambda o: sharpness.worst_case(o, 0.2, 6, p=2, steps=5, normalize_logits=True),
    "SAM gap, adaptive": lambda o: sharpness.sam_gap(o, [0.1], adaptive=True)[0],
    "average case, adaptive": lambda o: sharpness.average_case(o, 0.2, draws=5, adaptive=True),
    "low pass, filters": lambda o: sharpness.low_pass(o, 0.1, draws=5, normalize="filter"),
    "relative flatness": lambda o: sharpness.relative_flatness(o, draws=5),
    "relative flatness, first layer": lambda o: sharpness.relative_flatness(o, "0.weight", draws=5),
}
NOT_INVARIANT: dict[str, Callable[[Objective], Sharpness]] = {
    "m-sharpness": lambda o: sharpness.m_sharpness(o, 0.1, 4),
    "average case": lambda o: sharpness.average_case(o, 0.2, draws=5),
    "gradient norm": sharpness.gradient_norm,
    "Fisher trace": lambda o: sharpness.fisher_trace(o, labels="data"),
    "Keskar": lambda o: sharpness.keskar(o, 0.1, steps=3),
    "low pass": lambda o: sharpness.low_pass(o, 0.3, draws=5),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rescaling_the_layers_of_a_relu_network_changes_what_says_so_alone(dtype: torch.dtype) -> None:
    problem, other = relu_net(dtype)
    a, b = Objective(*problem), Objective(other, problem.loss, problem.data)
    assert a.loss() == pytest.approx(b.loss(), rel=1e-6)
    for name, measure in INVARIANT.items():
        first, second = measure(a), measure(b)
        assert second.value == pytest.approx(first.value, rel=1e-5), name
        if dtype == torch.float64:
            assert second.value == pytest.approx(first.value, rel=1e-10), name
    for name, measure in NOT_INVARIANT.items():
        assert abs(measure(b).value / measure(a).value - 1) > 0.02, name


def test_normalised_logits_do_not_know_the_scale_of_the_logits() -> None:
    problem, _ = relu_net(torch.float64)
    louder = copy.deepcopy(problem.model)
    with torch.no_grad():
        for p in louder[4].parameters():
            p *= 7
    a, b = Objective(*problem), Objective(louder, problem.loss, problem.data)
    for normalize in (True, False):
        values = [sharpness.worst_case(o, 0.05, 6, steps=5, normalize_logits=normalize).value for o in (a, b)]
        assert (values[0] == pytest.approx(values[1], rel=1e-9)) is normalize
        values = [sharpness.average_case(o, 0.3, draws=4, adaptive=True, normalize_logits=normalize).value for o in (a, b)]
        assert (values[0] == pytest.approx(values[1], rel=1e-9)) is normalize


ALL = {**INVARIANT, **NOT_INVARIANT}


def test_models_come_back_unchanged_and_batches_do_not_matter() -> None:
    problem, _ = relu_net(torch.float64)
    problem.model.train()
    before = tensors_sha256(dict(problem.model.named_parameters())), torch.get_rng_state()
    small, large = Objective(*problem, batch_size=3), Objective(*problem)
    for name, measure in ALL.items():
        first, second = measure(small), measure(large)
        assert first.value == pytest.approx(second.value, rel=1e-9), name
        assert measure(large).value == second.value, "the same bits from the same seed"
        held = second.settings
        assert {"rho", "m", "p", "data", "examples", "batch_norm", "dtype"} <= set(held) and held["data"] == second.provenance.data_sha256
        assert (held["rho"], held["m"], held["p"]) == (second.rho, second.m, second.p)
        assert np.average(second.per_shard, weights=second.shard_sizes) == pytest.approx(second.value, rel=1e-9)
    assert before[0] == tensors_sha256(dict(problem.model.named_parameters())) and torch.equal(before[1], torch.get_rng_state())
    assert problem.model.training and all(p.grad is None for p in problem.model.parameters())


def test_results_are_kept_with_their_settings_and_found_again(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    problem, _ = relu_net(torch.float64)
    objective, file = Objective(*problem), tmp_path / "run.h5"
    results = {name: measure(objective) for name, measure in ALL.items()}
    for result in results.values():
        landscape.save(file, result)
    kept = list(landscape.open(file).sharpness.values())
    assert len(kept) == len(ALL), "no two of them share a name"
    back = sharpness.worst_case(objective, 0.05, 6, steps=5, known=kept)
    assert dict(back.settings) == dict(results["worst case, inf"].settings)
    np.testing.assert_array_equal(back.steps, results["worst case, inf"].steps)
    monkeypatch.setattr(_Shards, "run", lambda self: pytest.fail("it was measured again"))
    assert sharpness.m_sharpness(objective, 0.1, 4, known=kept).value == results["m-sharpness"].value
    with torch.no_grad():
        problem.model[0].weight += 0.1
    assert sharpness.average_case(objective, 0.2, draws=5, known=kept).value != results["average case"].value  # other weights
    assert sharpness.low_pass(objective, 0.3, draws=4, known=kept).settings["draws"] == 4  # other settings


def test_per_example_work_with_batch_statistics_is_refused() -> None:
    objective = Objective(*network("cnn"), batch_norm="batch")
    for call in (
        lambda: sharpness.fisher_trace(objective),
        lambda: sharpness.gradient_norm(objective, m=1),
        lambda: sharpness.worst_case(objective, m=1),
        lambda: sharpness.keskar(objective, m=4),  # 13 = 3 * 4 + 1
    ):
        with pytest.raises(ValueError, match=r"a shard of one example, and one example has no batch statistics.*batch_norm='eval'"):
            call()
    for found in (sharpness.average_case(objective, draws=3), sharpness.sam_gap(objective)[0], sharpness.keskar(objective, steps=2)):
        assert found.settings["batch_norm"] == "batch" and found.settings["batch_size"] == objective.batches.batch_size


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda o: sharpness.average_case(o, -1.0), "rho, the width of the noise, must be in"),
        (lambda o: sharpness.average_case(o, draws=2), "draws, the number of draws, must be at least 3, got 2"),
        (lambda o: sharpness.low_pass(o, normalize="layer"), "normalize must be 'none' or 'filter', got 'layer'"),
        (lambda o: sharpness.relative_flatness(o, "0.bias"), "layer must be the name of a parameter with neurons.*'0.bias'"),
        (lambda o: sharpness.fisher_trace(o, labels="true"), "labels must be 'model' or 'data', got 'true'"),
        (lambda o: sharpness.sam_gap(o, []), "rhos is empty"),
        (lambda o: sharpness.sam_gap(o, 0.1), "rhos must be a list of radii.*got 0.1"),
        (lambda o: sharpness.fisher_trace(o, seed=math.nan), "seed must be an integer"),
        (lambda o: sharpness.keskar(o, -0.1), "rho must be"),
        (lambda o: sharpness.gradient_norm(o, p=0.5), "p must be"),
        (lambda o: sharpness.m_sharpness(o, m=4, ranks=True), "ranks=True needs an initialised torch.distributed"),
    ],
)
def test_wrong_arguments_are_named(call: Callable[[Objective], object], words: str) -> None:
    with pytest.raises((ValueError, TypeError), match=words):
        call(Objective(*network("mlp")))


def test_other_losses_than_cross_entropy_have_no_labels_to_draw() -> None:
    with pytest.raises(ValueError, match="labels='model' needs cross_entropy"):
        sharpness.fisher_trace(Objective(*smooth()))


def test_noise_that_breaks_the_loss_is_told() -> None:
    def log(outputs: Tensor, target: Tensor) -> Tensor:
        return outputs.log().mean()

    objective = Objective(Vector(torch.ones(4)), log, (torch.zeros(3, 1), torch.zeros(3, 1)))
    with pytest.raises(NonFiniteLossError, match=r"draw 0 \(counted from 0\) of noise of width 100"):
        sharpness.low_pass(objective, 100.0, draws=4)
