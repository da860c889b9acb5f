"""Gauss-Newton and Fisher products against dense matrices made of Jacobians and single gradients, and against closed forms, in float64."""

import functools

import pytest
import torch
from oracles import dense_hessian, flat_loss
from problems import NETWORKS, Problem, logistic_regression, network
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from landscape.curvature import EmpiricalFisherOperator, GGNOperator, HessianOperator, MonteCarloFisherOperator, top_eigenpairs
from landscape.objective import Objective


def probe(n: int, k: int = 2) -> Tensor:
    return torch.randn(n, k, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def relative(a: Tensor, b: Tensor) -> float:
    return float((a.double() - b.double()).norm() / b.double().norm())


def dense_jacobian(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the outputs (N, C) and their Jacobian (N, C, n)."""
    model = model.eval()
    named = {name: p.detach() for name, p in model.named_parameters()}

    def outputs(vector: Tensor) -> Tensor:
        parts = torch.split(vector, [p.numel() for p in named.values()])
        return functional_call(model, {name: part.view_as(p) for (name, p), part in zip(named.items(), parts, strict=True)}, (x,))

    point = torch.cat([p.reshape(-1) for p in named.values()])
    with sdpa_kernel(SDPBackend.MATH):
        return outputs(point), torch.autograd.functional.jacobian(outputs, point)


def dense_gauss_newton(problem: Problem) -> Tensor:
    outputs, jacobian = dense_jacobian(problem.model, problem.data[0])
    p = outputs.softmax(1)
    middle = torch.diag_embed(p) - p[:, :, None] * p[:, None]
    return torch.einsum("nci,ncd,ndj->ij", jacobian, middle, jacobian) / len(p)


@pytest.fixture(scope="module", params=NETWORKS)
def case(request):
    problem = network(request.param)
    return problem, dense_gauss_newton(problem)


@pytest.mark.parametrize("batch_size", [13, 5, 1])
def test_gauss_newton_products_are_those_of_the_dense_matrix(case, batch_size: int) -> None:
    problem, ggn = case
    v = probe(len(ggn))
    for budget in (None, 0):
        operator = GGNOperator(Objective(*problem, batch_size=batch_size), memory_budget=budget)
        assert relative(operator.matmat(v), ggn @ v) < 1e-12
        assert relative(operator.matvec(v[:, 0]), ggn @ v[:, 0]) < 1e-12


@pytest.mark.parametrize("batch_size", [13, 5, 1])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_empirical_fisher_is_the_mean_of_outer_products(case, batch_size: int, reduction: str) -> None:
    problem, _ = case
    gradients = []
    for x, y in zip(*problem.data, strict=True):
        function, point = flat_loss(problem.model, problem.loss, (x[None], y[None]))
        gradients.append(torch.autograd.functional.jacobian(function, point))
    fisher = torch.stack(gradients).T @ torch.stack(gradients) / len(gradients)
    loss = functools.partial(F.cross_entropy, reduction=reduction)
    operator = EmpiricalFisherOperator(Objective(problem.model, loss, problem.data, batch_size=batch_size, reduction=reduction))
    v = probe(len(fisher))
    assert relative(operator.matmat(v), fisher @ v) < 1e-12


def test_monte_carlo_fisher_tends_to_gauss_newton_like_one_over_the_root_of_draws(case) -> None:
    problem, ggn = case
    v, errors = probe(len(ggn), 10), []
    for draws in (4, 400):
        operator = MonteCarloFisherOperator(Objective(*problem), draws=draws, seed=1)
        errors.append(relative(operator.matmat(v), ggn @ v))
    # 13 examples and d draws: the error of a mean of 13 d outer products of vectors that point into a few directions
    assert errors[1] < 3 / (13 * 400) ** 0.5 and 3 < errors[0] / errors[1] < 30


def test_monte_carlo_draws_belong_to_examples() -> None:
    problem = network("mlp")
    v = probe(91)
    first = MonteCarloFisherOperator(Objective(*problem), draws=3, seed=5)
    expected = first.matmat(v)
    assert torch.equal(first.matmat(v), expected)
    for batch_size in (1, 4):
        for budget in (None, 0):
            operator = MonteCarloFisherOperator(Objective(*problem, batch_size=batch_size), draws=3, seed=5, memory_budget=budget)
            for _ in range(2):
                assert relative(operator.matmat(v), expected) < 1e-12
    assert relative(MonteCarloFisherOperator(Objective(*problem), draws=3, seed=6).matmat(v), expected) > 1e-2
    x, y = problem.data
    parts = [
        MonteCarloFisherOperator(Objective(problem.model, problem.loss, (x[s], y[s])), draws=3, seed=5, first_example=s.start).matmat(v)
        for s in (slice(0, 6), slice(6, 13))
    ]
    assert relative((6 * parts[0] + 7 * parts[1]) / 13, expected) < 1e-12


def test_hessian_gauss_newton_and_fisher_of_logistic_regression_are_one_matrix() -> None:
    problem, hessian = logistic_regression(examples=50)

    def loss(outputs: Tensor, target: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(outputs, target)

    x, y = problem.data
    objective = Objective(problem.model, loss, (x, y[:, None]), batch_size=7)
    eye = torch.eye(6, dtype=torch.float64)
    for operator in (HessianOperator(objective), GGNOperator(objective)):
        assert relative(operator.matmat(eye), hessian) < 1e-13
    sampled = MonteCarloFisherOperator(objective, likelihood="bernoulli", draws=400).matmat(eye)
    p = torch.sigmoid(problem.model(x))[:, 0].detach()
    variance = p * (1 - p) * (p**3 + (1 - p) ** 3) - (p * (1 - p)) ** 2  # of the square of a residual
    error = (variance * x.square().sum(1).square()).sum().sqrt() / 50 / 400**0.5
    assert 0.2 < (sampled - hessian).norm() / error < 2
    gradients = (p - y)[:, None] * x
    assert relative(EmpiricalFisherOperator(objective).matmat(eye), gradients.T @ gradients / 50) < 1e-13


@pytest.mark.parametrize("factor", [1.0, 0.5])
def test_squared_error_of_a_linear_model_has_the_gram_matrix(factor: float) -> None:
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(9, 4, generator=g, dtype=torch.float64), torch.randn(9, 2, generator=g, dtype=torch.float64)
    model = nn.Linear(4, 2, bias=False, dtype=torch.float64)

    def loss(outputs: Tensor, target: Tensor) -> Tensor:
        return factor * F.mse_loss(outputs, target)

    gram = factor * torch.kron(torch.eye(2, dtype=torch.float64), x.T @ x / 9)  # mse: mean over 9 x 2 squares
    eye = torch.eye(8, dtype=torch.float64)
    for operator in (HessianOperator(Objective(model, loss, (x, y))), GGNOperator(Objective(model, loss, (x, y), batch_size=4))):
        assert relative(operator.matmat(eye), gram) < 1e-13
    sampled = MonteCarloFisherOperator(Objective(model, loss, (x, y)), likelihood="gaussian", draws=400)
    assert relative(sampled.matmat(eye), gram) < 6 / (18 * 400) ** 0.5


class TwoHeads(nn.Module):
    """Outputs in a dictionary; one of them is computed from another one."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(3, 2, dtype=torch.float64), nn.Linear(2, 2, dtype=torch.float64)

    def forward(self, x: Tensor) -> dict[str, Tensor | int]:
        hidden = self.body(x).tanh()
        return {"hidden": hidden, "scores": self.head(hidden), "steps": 3}


def test_outputs_of_any_nesting_that_depend_on_each_other() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, x, y = TwoHeads(), torch.randn(6, 3, dtype=torch.float64), torch.randn(6, 2, dtype=torch.float64)

    def loss(outputs: dict[str, Tensor], target: Tensor) -> Tensor:
        return ((outputs["scores"] - target).square() * outputs["hidden"].exp()).sum(1).mean()

    class Stacked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model

        def forward(self, x: Tensor) -> Tensor:
            outputs = self.inner(x)
            return torch.cat([outputs["hidden"], outputs["scores"]], 1)

    _, jacobian = dense_jacobian(Stacked(), x)
    outputs = Stacked()(x).detach()
    middle = torch.stack(
        [
            torch.autograd.functional.hessian(lambda o, t=t: loss({"hidden": o[None, :2], "scores": o[None, 2:]}, t[None]), out)
            for out, t in zip(outputs, y, strict=True)
        ]
    )
    expected = torch.einsum("nci,ncd,ndj->ij", jacobian, middle, jacobian) / 6
    v = probe(len(expected))
    assert relative(GGNOperator(Objective(model, loss, (x, y), batch_size=4)).matmat(v), expected @ v) < 1e-12
    fisher = EmpiricalFisherOperator(Objective(model, loss, (x, y), batch_size=4)).matmat(torch.eye(len(expected), dtype=torch.float64))
    gradients = []
    for one, target in zip(x, y, strict=True):
        function, point = flat_loss(model, loss, (one[None], target[None]))
        gradients.append(torch.autograd.functional.jacobian(function, point))
    assert relative(fisher, torch.stack(gradients).T @ torch.stack(gradients) / 6) < 1e-12


def test_a_loss_linear_in_the_outputs_has_no_gauss_newton() -> None:
    model, x = nn.Linear(3, 2, dtype=torch.float64), torch.ones(4, 3, dtype=torch.float64)
    operator = GGNOperator(Objective(model, lambda outputs, target: outputs.mean(), (x, x)))
    assert torch.equal(operator.matvec(torch.ones(8, dtype=torch.float64)), torch.zeros(8, dtype=torch.float64))


@pytest.mark.parametrize("kind", ["mlp", "cnn", "recurrent"])
def test_blocks_are_blocks_of_the_dense_matrix(kind: str) -> None:
    problem = network(kind)
    ggn = dense_gauss_newton(problem)
    sizes = [p.numel() for p in problem.model.parameters()]
    starts = dict(zip((name for name, _ in problem.model.named_parameters()), torch.tensor([0, *sizes]).cumsum(0).tolist(), strict=False))
    hessian = dense_hessian(*problem)
    for whole, dense in ((HessianOperator(Objective(*problem, batch_size=6)), hessian), (GGNOperator(Objective(*problem)), ggn)):
        for by in ("layer", "parameter"):
            blocks = whole.blocks(by)
            assert sum(block.size for block in blocks.values()) == whole.size
            for block in blocks.values():
                rows = torch.cat([torch.arange(starts[name], starts[name] + block.point[name].numel()) for name in block.names])
                v = probe(len(rows))
                assert (block.matmat(v) - dense[rows][:, rows] @ v).norm() < 1e-12 * dense.norm() * v.norm()
                assert relative(block.matvec(v[:, 0]), block.matmat(v)[:, 0]) < 1e-13
        name = list(starts)[0]
        rows = torch.arange(sizes[0])
        top = top_eigenpairs(whole.block(name), 1, tol=1e-6).values[0]
        assert abs(abs(top) - torch.linalg.eigvalsh(dense[rows][:, rows]).abs().max()) < 1e-8 * abs(top)


def test_what_cannot_be_is_said_before_long_work() -> None:
    problem = network("mlp")
    by_model = Objective(problem.model, lambda model, batch: F.cross_entropy(model(batch[0]), batch[1]), problem.data)
    for kind in (GGNOperator, EmpiricalFisherOperator, MonteCarloFisherOperator):
        with pytest.raises(ValueError, match="needs the model's outputs"):
            kind(by_model)
    v = torch.ones(91, dtype=torch.float64)
    weighted = Objective(problem.model, nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2, 3], dtype=torch.float64)), problem.data)
    with pytest.raises(ValueError, match="mean of losses of examples"):
        EmpiricalFisherOperator(weighted).matvec(v)
    summed = Objective(problem.model, nn.CrossEntropyLoss(reduction="sum"), problem.data)
    with pytest.raises(ValueError, match="reduction='sum'"):
        EmpiricalFisherOperator(summed).matvec(v)
    smoothed = Objective(problem.model, nn.CrossEntropyLoss(label_smoothing=0.1), problem.data)
    with pytest.raises(ValueError, match="no categorical negative log-likelihood"):
        MonteCarloFisherOperator(smoothed).matvec(v)
    with pytest.raises(ValueError, match="likelihood must be"):
        MonteCarloFisherOperator(Objective(problem.model, lambda outputs, target: F.cross_entropy(outputs, target), problem.data))
    with pytest.raises(ValueError, match="draws must be a positive integer"):
        MonteCarloFisherOperator(Objective(*problem), draws=0)
    with pytest.raises(ValueError, match="weight must be None"):
        EmpiricalFisherOperator(Objective(*problem, weight=lambda batch: 1.0))
    with pytest.raises(ValueError, match="no parameter matches"):
        HessianOperator(Objective(*problem)).block("nothing*")
    with pytest.raises(ValueError, match="by must be"):
        HessianOperator(Objective(*problem)).blocks("module")
