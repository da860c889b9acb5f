"""m-sharpness against closed forms, a plain loop of model copies, and one step of the optimizer whose climb it measures."""

import copy
import math

import numpy as np
import pytest
import torch
from problems import NETWORKS, Problem, Vector, network, quadratic, spectrum_matrix
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import sam_core
from landscape.objective import NonFiniteLossError, Objective, tensors_sha256
from landscape.sharpness import m_sharpness
from landscape.sharpness.m_sharpness import weighted_mean


def plain(problem: Problem, rho: float, m: int, train: bool = False) -> list[tuple[int, float]]:
    """Size and loss gap of every shard, by copies of the model, p = 2."""
    found = []
    for x, y in zip(*(t.split(m) for t in problem.data), strict=True):
        model = copy.deepcopy(problem.model).train(train)
        parameters = [p for p in model.parameters() if p.requires_grad]
        before = problem.loss(model(x), y)
        grads = torch.autograd.grad(before, parameters)
        norm = torch.cat([g.reshape(-1) for g in grads]).norm()
        with torch.no_grad():
            for p, g in zip(parameters, grads, strict=True):
                p += rho * g / norm
            found.append((len(y), (problem.loss(model(x), y) - before).item()))
    return found


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@pytest.mark.parametrize("m", [1, 4, 13])
def test_both_ways_agree_with_a_plain_loop(kind: str, dtype: torch.dtype, tolerance: float, m: int) -> None:
    """The last shard is a short one for m = 4, and shards cross the borders of the batches of 5."""
    problem = network(kind, dtype=dtype)
    problem.model.train()
    before = tensors_sha256(dict(problem.model.named_parameters()) | dict(problem.model.named_buffers())), torch.get_rng_state()
    objective = Objective(problem.model, problem.loss, problem.data, batch_size=5)
    expected = plain(problem, 0.1, m)
    for vectorize in (False, True, None) if kind != "recurrent" else (False, None):
        found = m_sharpness(objective, 0.1, m, vectorize=vectorize)
        assert found.shard_sizes.tolist() == [n for n, _ in expected]
        np.testing.assert_allclose(found.per_shard, [v for _, v in expected], rtol=tolerance, atol=tolerance)
        assert found.value == pytest.approx(sum(n * v for n, v in expected) / 13, rel=10 * tolerance)
    after = tensors_sha256(dict(problem.model.named_parameters()) | dict(problem.model.named_buffers())), torch.get_rng_state()
    assert before[0] == after[0] and torch.equal(before[1], after[1])
    assert problem.model.training and all(p.grad is None for p in problem.model.parameters())


def test_uneven_shards_by_hand() -> None:
    """L_i(w) = 1/2 (w - c_i)^2 has L_i(w + eps) - L_i(w) = rho |w - c_i| + rho^2 / 2, with c_i the mean of the shard's centres."""
    model = Vector(torch.tensor([1.0], dtype=torch.float64))
    centres = torch.tensor([0.0, 2.0, 5.0, 7.0, -3.0], dtype=torch.float64)[:, None]
    objective = Objective(model, lambda o, t: 0.5 * ((o - t) ** 2).mean(), (centres, centres), batch_size=3)
    found = m_sharpness(objective, rho=0.1, m=2)
    # Shards {0, 2}, {5, 7}, {-3}: gradients 1 - 1, 1 - 6, 1 + 3. Nothing climbs where the gradient is zero.
    np.testing.assert_allclose(found.per_shard, [0, 0.5 + 0.005, 0.4 + 0.005], atol=1e-12)
    value = (2 * 0 + 2 * 0.505 + 1 * 0.405) / 5
    assert found.value == pytest.approx(value, rel=1e-12)
    squares = 4 * value**2 + 4 * (0.505 - value) ** 2 + (0.405 - value) ** 2
    assert found.stderr == pytest.approx(weighted_mean(found.per_shard, found.shard_sizes)[1])
    unbiased = math.sqrt(squares / (1 - 9 / 25)) / 5
    assert 2.19 * unbiased < found.stderr < 2.4 * unbiased  # Student's factor for 2 degrees of freedom or a little less
    assert (found.rho, found.m, found.p, found.shard_sizes.tolist()) == (0.1, 2, 2.0, [2, 2, 1])


@pytest.mark.parametrize("p", [1.0, 1.5, 2.0, 3.0, math.inf])
def test_quadratics_in_every_norm(p: float) -> None:
    a = spectrum_matrix([4.0, 1.0, -2.0])
    problem = quadratic(a, examples=6)
    found = m_sharpness(Objective(*problem), rho=0.3, m=1, p=p, vectorize=True)
    q = math.inf if p == 1 else 1 if p == math.inf else p / (p - 1)
    for centre, value in zip(problem.data[1], found.per_shard, strict=True):
        g = a @ (problem.model.w.detach() - centre)
        if p == math.inf:
            eps = 0.3 * g.sign()
        elif p == 1:
            eps = torch.zeros_like(g)
            eps[g.abs().argmax()] = 0.3 * g[g.abs().argmax()].sign()
        else:
            eps = 0.3 * g.sign() * (g.abs() / g.norm(q)) ** (q - 1)
        assert value == pytest.approx((g @ eps + 0.5 * eps @ a @ eps).item(), rel=1e-9)
        assert eps.norm(p) == pytest.approx(0.3, rel=1e-9)


@pytest.mark.parametrize("adaptive", [False, True])
def test_with_all_examples_it_is_the_loss_gap_of_the_optimizers_step(adaptive: bool) -> None:
    problem = network("cnn")
    objective = Objective(*problem, batch_size=4)
    found = m_sharpness(objective, rho=0.2, m=13, adaptive=adaptive)
    model = copy.deepcopy(problem.model).eval()
    optimizer = sam_core.SAM(torch.optim.SGD(model.parameters(), lr=0.1), rho=0.2, adaptive=adaptive)
    loss = problem.loss(model(problem.data[0]), problem.data[1])
    loss.backward()
    with optimizer.perturb():
        gap = problem.loss(model(problem.data[0]), problem.data[1]) - loss
    assert found.value == pytest.approx(gap.item(), rel=1e-9) and math.isnan(found.stderr)


def test_many_shards_are_tried_both_ways_and_come_out_the_same() -> None:
    problem = network("mlp", examples=203)
    objective = Objective(*problem, batch_size=50)
    automatic, loop = m_sharpness(objective, m=1), m_sharpness(objective, m=1, vectorize=False)
    for small in (1, 10**6):  # one shard at a time, or a few
        bounded = m_sharpness(objective, m=2, vectorize=True, memory_budget=small)
        np.testing.assert_allclose(bounded.per_shard, m_sharpness(objective, m=2, vectorize=False).per_shard, rtol=1e-9)
        assert len(bounded.per_shard) == 102
    np.testing.assert_allclose(automatic.per_shard, loop.per_shard, rtol=1e-9)
    assert automatic.shard_sizes.sum() == 203
    assert automatic.cost.gradients == automatic.cost.forwards == 1


def test_what_cannot_be_vectorized_falls_back_to_the_loop() -> None:
    class Peeking(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x) * (2.0 if x.sum().item() > 0 else 1.0)

    x, y = torch.randn(120, 3, generator=torch.Generator().manual_seed(0)), torch.arange(120) % 3
    objective = Objective(Peeking(), F.cross_entropy, (x, y))
    np.testing.assert_array_equal(m_sharpness(objective, m=1).per_shard, m_sharpness(objective, m=1, vectorize=False).per_shard)


def test_sums_and_losses_of_model_and_batch_have_the_same_value() -> None:
    problem = network("mlp", examples=11)
    x, y = problem.data
    expected = m_sharpness(Objective(*problem), m=3).value
    for vectorize in (True, False):
        summed = Objective(problem.model, nn.CrossEntropyLoss(reduction="sum"), problem.data, reduction="sum")
        by_model = Objective(problem.model, lambda model, batch: F.cross_entropy(model(batch["x"]), batch["y"]), {"x": x, "y": y})
        for objective in (summed, by_model):
            assert m_sharpness(objective, m=3, vectorize=vectorize).value == pytest.approx(expected, rel=1e-9)


def test_batch_statistics_are_those_of_the_shard() -> None:
    problem = network("cnn", examples=12)
    objective = Objective(problem.model, problem.loss, problem.data, batch_norm="batch")
    expected = [v for _, v in plain(problem, 0.1, 4, train=True)]
    for vectorize in (True, False):
        np.testing.assert_allclose(m_sharpness(objective, 0.1, 4, vectorize=vectorize).per_shard, expected, rtol=1e-9)
    for m in (1, 11):
        with pytest.raises(ValueError, match=rf"m = {m} on 12 examples makes a shard of one example.*batch_norm='eval'"):
            m_sharpness(objective, m=m)
    assert m_sharpness(Objective(*network("mlp"), batch_norm="batch"), m=1).value > 0  # no batch norm, no matter


def test_no_radius_no_gap_and_frozen_parameters_do_not_climb() -> None:
    problem = network("mlp")
    assert m_sharpness(Objective(*problem), rho=0, m=4).value == 0
    problem.model[0].requires_grad_(False)
    np.testing.assert_allclose(m_sharpness(Objective(*problem), 0.1, 4).per_shard, [v for _, v in plain(problem, 0.1, 4)], rtol=1e-9)


def test_standard_errors_cover_the_mean_as_often_as_they_should() -> None:
    """Centres are normal: |w - c| has mean sqrt(2 / pi) in one dimension at w = 0."""
    g = torch.Generator().manual_seed(5)
    model = Vector(torch.zeros(1, dtype=torch.float64))
    truth = 0.1 * math.sqrt(2 / math.pi) + 0.005
    hits = []
    for _ in range(200):
        c = torch.randn(100, 1, generator=g, dtype=torch.float64)
        found = m_sharpness(Objective(model, lambda o, t: 0.5 * ((o - t) ** 2).mean(), (c, c)), rho=0.1, m=1, vectorize=True)
        hits.append(abs(found.value - truth) < 1.96 * found.stderr)
    assert 0.90 <= np.mean(hits) <= 0.985


def test_weighted_means_of_equal_weights_are_the_usual_ones() -> None:
    values = np.array([1.0, 4.0, -2.0, 0.5])
    mean, stderr = weighted_mean(values, np.full(4, 3.0))
    assert mean == pytest.approx(values.mean()) and stderr == pytest.approx(3.1824 / 1.95996 * values.std(ddof=1) / 2, rel=1e-4)


@pytest.mark.parametrize("sizes", [[128, 1], [64, 64, 2], [4, 4, 4], [10, 3], [8] * 6 + [1]])
def test_error_bars_of_few_uneven_shards_cover(sizes: list[int]) -> None:
    """The variance of a shard's mean is 1 / its size; k / (k - 1) was right for equal sizes alone, 1.96 for many."""
    weights, rng = np.array(sizes, dtype=float), np.random.default_rng(0)
    found = [weighted_mean(rng.normal(size=len(sizes)) / np.sqrt(weights), weights) for _ in range(2000)]
    assert 0.93 <= np.mean([abs(mean) < 1.96 * stderr for mean, stderr in found]) <= 0.985


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"m": 0}, ValueError, r"m, the number of examples per shard, must be 1 ... 13 .*got 0"),
        ({"m": 14}, ValueError, r"must be 1 ... 13 .*got 14"),
        ({"m": 2.0}, TypeError, "m must be an integer"),
        ({"rho": -0.1}, ValueError, "rho must be"),
        ({"rho": math.nan}, ValueError, "rho must be"),
        ({"p": 0.5}, ValueError, "p must be"),
    ],
)
def test_wrong_arguments_are_named(options: dict, error: type, words: str) -> None:
    with pytest.raises(error, match=words):
        m_sharpness(Objective(*network("mlp")), **({"m": 2} | options))


def test_losses_that_are_no_numbers_stop_with_their_shard() -> None:
    problem = network("mlp")
    x = problem.data[0].clone()
    x[9] = math.nan
    with pytest.raises(NonFiniteLossError, match=r"shard 2 \(counted from 0, 4 examples each\).*own weights"):
        m_sharpness(Objective(problem.model, problem.loss, (x, problem.data[1])), m=4)
    model = Vector(torch.ones(1))
    objective = Objective(model, lambda o, t: 2 * o.sum() + (2 - o).log().sum(), (torch.zeros(3, 1), torch.zeros(3, 1)))
    with pytest.raises(NonFiniteLossError, match="after the climb of rho = 5.*smaller rho"):
        m_sharpness(objective, rho=5, m=1)


@pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt])
def test_a_loaders_generator_is_put_back_while_the_exception_is_held(failure: type[BaseException]) -> None:
    calls = []

    def raising(outputs: Tensor, target: Tensor) -> Tensor:
        calls.append(1)
        if len(calls) > 3:
            raise failure
        return F.cross_entropy(outputs, target)

    problem = network("mlp", dtype=torch.float32)
    generator = torch.Generator().manual_seed(3)
    loader = DataLoader(TensorDataset(*problem.data), batch_size=2, shuffle=True, generator=generator)
    objective, before = Objective(problem.model, raising, loader), generator.get_state()
    for measure in (lambda: m_sharpness(objective, m=1), objective.loss, objective.gradient):
        calls.clear()
        with pytest.raises(failure) as held:
            measure()
        assert torch.equal(generator.get_state(), before), held  # the traceback, and with it every frame, is still alive


def test_the_climb_of_a_model_that_draws_is_that_of_its_own_draw() -> None:
    """With other dropout before and after the climb, v_i would be the difference of two draws: it stays at a gap of order rho."""

    class Drawing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(50, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(F.dropout(x, 0.5))

    g = torch.Generator().manual_seed(0)
    objective = Objective(Drawing(), F.cross_entropy, (torch.randn(200, 50, generator=g), torch.arange(200) % 3))
    for vectorize in (False, None):
        found = m_sharpness(objective, rho=1e-3, m=1, vectorize=vectorize)
        assert 0 < found.per_shard.min() and found.per_shard.max() < 0.02
