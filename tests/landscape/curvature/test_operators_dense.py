"""Hessian-vector products against dense Hessians, closed forms and finite differences, all in float64."""

import copy
import random

import numpy as np
import pytest
import torch
from oracles import dense_hessian, finite_difference_product
from problems import NETWORKS, Vector, logistic_regression, network, quadratic, spectrum_matrix
from scipy.sparse.linalg import eigsh
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from landscape.curvature import DenseOperator, HessianOperator, hessian_trace, spectral_density, top_eigenpairs
from landscape.objective import NonFiniteLossError, Objective


def probe(n: int, dtype: torch.dtype = torch.float64, seed: int = 3) -> Tensor:
    return torch.randn(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def relative(a: Tensor, b: Tensor) -> float:
    return float((a.double() - b.double()).norm() / b.double().norm())


@pytest.fixture(scope="module", params=NETWORKS)
def case(request):
    problem = network(request.param)
    return problem, dense_hessian(*problem)


@pytest.mark.parametrize("batch_size", [13, 5, 1])
def test_products_are_those_of_the_dense_hessian_for_any_batch_size(case, batch_size):
    problem, hessian = case
    operator = HessianOperator(Objective(*problem, batch_size=batch_size))
    v = probe(operator.size)
    assert relative(operator.matvec(v), hessian @ v) < 1e-12
    several = torch.stack([v, probe(operator.size, seed=4)], 1)
    assert relative(operator.matmat(several), hessian @ several) < 1e-12


def test_products_are_differences_of_gradients(case):
    problem, _ = case
    operator = HessianOperator(Objective(*problem))
    v = probe(operator.size)
    assert relative(operator.matvec(v), finite_difference_product(*problem, v)) < 1e-7


def test_a_loader_a_list_and_tensors_give_the_same_product(case):
    problem, hessian = case
    x, y = problem.data
    v = probe(len(hessian))
    for data in (DataLoader(TensorDataset(x, y), batch_size=4), [(x[:3], y[:3]), (x[3:12], y[3:12]), (x[12:], y[12:])]):
        assert relative(HessianOperator(Objective(problem.model, problem.loss, data)).matvec(v), hessian @ v) < 1e-12


def test_float32_agrees_with_float64(case):
    problem, hessian = case
    operator = HessianOperator(Objective(*problem, dtype=torch.float32))
    v = probe(len(hessian), torch.float32)
    product = operator.matvec(v)
    assert product.dtype == torch.float32
    assert relative(product, hessian @ v.double()) < 2e-5


def test_graphs_kept_partly_kept_and_rebuilt_give_the_same_bits(case):
    problem, _ = case
    everything = HessianOperator(Objective(*problem, batch_size=3))
    v = probe(everything.size)
    expected = everything.matvec(v)
    assert len(everything._kept) == 5 and everything.memory_kept > 0
    for budget in (0, 0.5 * everything.memory_kept):
        objective = Objective(*problem, batch_size=3)
        operator = HessianOperator(objective, memory_budget=budget)
        assert torch.equal(operator.matvec(v), expected) and torch.equal(operator.matvec(v), expected)
        assert operator.memory_kept <= budget and (0 < len(operator._kept) < 5 if budget else not operator._kept)
    assert torch.equal(everything.matvec(v), expected)


def test_work_is_counted():
    problem = network("mlp")
    for budget, gradients in ((None, 1), (0, 3)):
        objective = Objective(*problem, batch_size=4)
        meter = objective.meter()
        operator = HessianOperator(objective, memory_budget=budget)
        for _ in range(3):
            operator.matvec(probe(operator.size))
        cost = meter.cost()
        assert (cost.hvps, cost.gradients, cost.forwards) == (3, gradients, 0)


def test_without_a_budget_one_graph_is_alive_at_a_time():
    problem = network("mlp", examples=15)
    kept: list[StorageWeakRef] = []
    alive = []

    def watching(outputs: Tensor, target: Tensor) -> Tensor:
        alive.append(sum(not storage.expired() for storage in kept))
        activation = outputs.tanh()  # its graph holds on to it
        kept.append(StorageWeakRef(activation.untyped_storage()))
        return problem.loss(activation, target)

    for budget, expected in ((0, [0] * 10), (None, [0, 1, 2, 3, 4])):
        kept.clear()
        objective = Objective(problem.model, watching, problem.data, batch_size=3, takes="outputs")
        operator = HessianOperator(objective, memory_budget=budget)
        alive.clear()
        operator.matmat(torch.stack([probe(operator.size)] * 2, 1))
        operator.matvec(probe(operator.size))
        assert alive == expected


def test_the_memory_of_a_graph_is_measured():
    x = torch.zeros(1000, 50, dtype=torch.float64)
    objective = Objective(
        nn.Sequential(nn.Linear(50, 40), nn.Tanh(), nn.Linear(40, 1)).double(), lambda outputs, target: outputs.square().mean(), (x, x)
    )
    operator = HessianOperator(objective)
    operator.matvec(probe(operator.size))
    activations = 1000 * 40 * 8
    # tanh's output, what flows back into it, and little more; the inputs themselves are the caller's
    assert 2 * activations <= operator.memory_kept - 2 * x.numel() * 8 <= 8 * activations


def test_logistic_regression_has_its_textbook_hessian():
    problem, hessian = logistic_regression()
    operator = HessianOperator(Objective(*problem, batch_size=7))
    assert relative(operator.matmat(torch.eye(operator.size, dtype=torch.float64)), hessian) < 1e-13


def test_a_quadratic_has_its_matrix_everywhere():
    matrix = spectrum_matrix([3, 1, -2, 0.5])
    problem = quadratic(matrix)
    elsewhere = {"w": torch.full((4,), 7.0, dtype=torch.float64)}
    for params in (None, elsewhere):
        operator = HessianOperator(Objective(*problem, batch_size=2), params)
        assert relative(operator.matmat(torch.eye(4, dtype=torch.float64)), matrix) < 1e-13


def test_a_relu_network_is_differentiated_not_differenced():
    """Steps across kinks of ReLU made finite-difference products of known tools 30-80 % wrong."""
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(40, 6, generator=g, dtype=torch.float64), torch.randint(0, 3, (40,), generator=g)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).double()
    hessian = dense_hessian(model, F.cross_entropy, (x, y))
    v = probe(len(hessian))
    assert relative(HessianOperator(Objective(model, F.cross_entropy, (x, y))).matvec(v), hessian @ v) < 1e-12
    assert relative(finite_difference_product(model, F.cross_entropy, (x, y), v, h=1e-1), hessian @ v) > 0.05


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_batches_count_by_their_examples(reduction):
    """Neither multiplied by the number of batches, nor a short last batch counted like a full one."""
    problem = network("mlp", examples=9)
    hessian = dense_hessian(*problem)

    def loss(outputs: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(outputs, target, reduction=reduction)

    operator = HessianOperator(Objective(problem.model, loss, problem.data, batch_size=8, reduction=reduction))
    v = probe(operator.size)
    assert relative(operator.matvec(v), hessian @ v) < 1e-12


def test_a_subset_of_the_parameters_gives_its_block(case):
    problem, hessian = case
    names = [name for name, _ in problem.model.named_parameters()]
    chosen = names[1:3]
    sizes = [p.numel() for p in problem.model.parameters()]
    rows = torch.cat([torch.arange(sum(sizes[:i]), sum(sizes[: i + 1])) for i in (1, 2)])
    operator = HessianOperator(Objective(*problem, params=chosen))
    v = probe(operator.size)
    assert relative(operator.matvec(v), hessian[rows][:, rows] @ v) < 1e-12


class Odd(nn.Module):
    """A product of two parameters, a linear one, an unused one."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.linear, self.unused = (nn.Parameter(torch.full((2,), v, dtype=torch.float64)) for v in (2.0, 3.0, 1.0, 1.0))

    def forward(self, x: Tensor) -> Tensor:
        return x * (self.a * self.b + self.linear).sum()


def test_unused_and_linear_parameters_have_zero_rows():
    x = torch.ones(3, 1, dtype=torch.float64)

    def loss(outputs: Tensor, target: Tensor) -> Tensor:
        return outputs.mean()

    operator = HessianOperator(Objective(Odd(), loss, (x, x)))
    expected = torch.zeros(8, 8, dtype=torch.float64)
    expected[:2, 2:4] = expected[2:4, :2] = torch.eye(2)
    for _ in range(2):
        assert torch.equal(operator.matmat(torch.eye(8, dtype=torch.float64)), expected)
    for name in ("linear", "unused"):
        operator = HessianOperator(Objective(Odd(), loss, (x, x), params=[name]))
        assert torch.equal(operator.matvec(torch.ones(2, dtype=torch.float64)), torch.zeros(2, dtype=torch.float64))


def test_the_model_and_all_random_states_stay_as_they_are():
    problem = network("cnn", dtype=torch.float32)
    problem.model.train()
    before = copy.deepcopy(problem.model.state_dict())
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    operator = HessianOperator(Objective(*problem, batch_size=4))
    operator.matvec(probe(operator.size, torch.float32))
    assert problem.model.training and all(p.requires_grad and p.grad is None for p in problem.model.parameters())
    assert all(torch.equal(v, before[k]) for k, v in problem.model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), states[0]) and random.getstate() == states[1]
    assert np.array_equal(np.random.get_state()[1], states[2])


def test_training_on_does_not_move_the_operator():
    problem = network("mlp")
    operator = HessianOperator(Objective(*problem, batch_size=4))
    lazy = HessianOperator(Objective(*problem, batch_size=4), memory_budget=0)
    v = probe(operator.size)
    before = operator.matvec(v)
    with torch.no_grad():
        for p in problem.model.parameters():
            p.add_(1)
    assert torch.equal(operator.matvec(v), before) and torch.equal(lazy.matvec(v), before)


def test_a_product_that_is_not_finite_says_where():
    def loss(outputs: Tensor, target: Tensor) -> Tensor:
        return (outputs * target).abs().pow(1.5).sum() / len(outputs)

    x = torch.ones(4, 2, dtype=torch.float64)
    operator = HessianOperator(Objective(Vector(torch.zeros(2, dtype=torch.float64)), loss, (x, x), batch_size=3))
    with pytest.raises(NonFiniteLossError, match=r"batch 0 .* parameter 'w'"):
        operator.matvec(torch.ones(2, dtype=torch.float64))

    problem = network("mlp")
    x, y = problem.data
    x[9, 0] = torch.nan
    with pytest.raises(NonFiniteLossError, match="loss is nan on batch 2"):
        HessianOperator(Objective(problem.model, problem.loss, (x, y), batch_size=4)).matvec(probe(91))


def test_nothing_of_the_callers_context_matters():
    problem = network("mlp", dtype=torch.float32)
    expected = HessianOperator(Objective(*problem)).matvec(probe(91, torch.float32))
    for context in (torch.no_grad(), torch.inference_mode()):
        with context:
            assert torch.equal(HessianOperator(Objective(*problem)).matvec(probe(91, torch.float32)), expected)


def test_scipy_solves_with_it(case):
    problem, hessian = case
    operator = HessianOperator(Objective(*problem))
    found = eigsh(operator.to_scipy(), k=3, which="LA", return_eigenvectors=False, v0=probe(operator.size).numpy())
    assert np.allclose(np.sort(found), torch.linalg.eigvalsh(hessian)[-3:].numpy(), rtol=1e-10)


def test_wrong_arguments_are_named():
    objective = Objective(*network("mlp"))
    with pytest.raises(ValueError, match=r"vector must have shape \(91,\)"):
        HessianOperator(objective).matvec(torch.zeros(90))
    with pytest.raises(ValueError, match="params must hold '0.weight'"):
        HessianOperator(objective, {})
    with pytest.raises(ValueError, match="memory_budget"):
        HessianOperator(objective, memory_budget=-1)
    with pytest.raises(ValueError, match="symmetric"):
        DenseOperator([[1.0, 2.0], [0.0, 1.0]])


class Cube(torch.autograd.Function):
    """A custom kernel: x^3, with a backward that autograd cannot look into."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        return 3 * ctx.saved_tensors[0] ** 2 * grad


@pytest.mark.parametrize("measure", [top_eigenpairs, hessian_trace, spectral_density])
@pytest.mark.parametrize("where", ["everywhere", "below a layer"])
def test_a_backward_that_is_differentiable_once_is_refused(where, measure):
    """Autograd takes such a derivative for zero, and the largest eigenvalue was 0 ± 0."""

    class Custom(Vector):
        def forward(self, x):
            return Cube.apply(super().forward(x))

    model = Custom(torch.ones(2, dtype=torch.float64))
    if where == "below a layer":
        model = nn.Sequential(model, nn.Linear(2, 2).double())
    x = torch.ones(4, 2, dtype=torch.float64)
    objective = Objective(model, lambda outputs, target: outputs.sum() if where == "everywhere" else outputs.square().mean(), (x, x))
    assert objective.gradient()[1]
    with pytest.raises(NotImplementedError, match="marked once_differentiable"):
        measure(objective)


def test_the_operator_keeps_the_buffers_it_was_made_with():
    problem = network("cnn")
    lazy, kept = (HessianOperator(Objective(*problem), memory_budget=budget) for budget in (0, None))
    v = probe(lazy.size)
    before = lazy.matvec(v)
    for buffer in problem.model.buffers():
        buffer.mul_(2)
    assert torch.equal(lazy.matvec(v), before) and torch.equal(kept.matvec(v), before)


@pytest.mark.parametrize("dim", [0, -1])
def test_weight_normalisation_has_the_second_derivative_that_pytorch_gets_wrong(dim):
    torch.manual_seed(0)
    layer = nn.utils.parametrizations.weight_norm(nn.Linear(4, 5), dim=dim)
    model = nn.Sequential(layer, nn.Tanh(), nn.Linear(5, 3)).double()
    data = torch.randn(9, 4, dtype=torch.float64), torch.randint(0, 3, (9,))
    operator = HessianOperator(Objective(model, F.cross_entropy, data))
    v = probe(operator.size)
    assert relative(operator.matvec(v), finite_difference_product(model, F.cross_entropy, data, v)) < 1e-7


def test_scipy_may_hand_over_any_array():
    matrix = spectrum_matrix(np.linspace(-1, 3, 12))
    linear, dense, v = DenseOperator(matrix).to_scipy(), np.asarray(matrix), np.arange(12.0)
    v.setflags(write=False)
    for vector in (v, v[::-1], np.stack([v, v])[:, ::-1].T, v * (1 + 2j)):
        np.testing.assert_allclose(linear @ vector, dense @ vector, atol=1e-12)
