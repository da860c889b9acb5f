"""Eigenpairs against spectra that are known, and against dense Hessians."""

import math

import numpy as np
import pytest
import torch
from oracles import dense_hessian, top_by_magnitude
from problems import NETWORKS, network, quadratic, spectrum_matrix
from torch import Tensor, nn
from torch.nn import functional as F

from landscape.curvature import DenseOperator, HessianOperator, Operator, top_eigenpairs
from landscape.curvature.lanczos import Lanczos, generator_for
from landscape.objective import Objective


def bulk(n: int, low: float = 0.0, high: float = 1.0) -> list[float]:
    return list(np.linspace(low, high, n))


# As if there were too many parameters to look for copies of eigenvalues.
LARGE = {"multiplicities": False}

SPECTRA = {
    "separated": [100, 60, 40, 25, 12, *bulk(195, -0.5)],
    "degenerate": [5, 5, 5, 3, 3, *bulk(60)],
    "degenerate, few distinct": [2] * 10 + [1] * 20,
    "clustered": [10, 10 - 1e-6, 10 - 2e-6, 10 - 3e-6, 10 - 4e-6, *bulk(60)],
    "indefinite": [-9, 8, -7, 6, -5, *bulk(60, -1)],
    "plus and minus": [4, -4, 3, -3, 2, *bulk(20, -1)],
    "identity": [1.0] * 20,
    "rank one": [7.0] + [0.0] * 30,
    "no gap at all": bulk(80, -1),
    "tiny": [1e-25, 1e-26, 5e-27, *([0] * 30)],
    "huge": [1e25, 1e24, 5e23, *([0] * 30)],
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", SPECTRA)
def test_top_five_of_known_spectra(name, dtype):
    values = np.array(SPECTRA[name], dtype=float)
    matrix = spectrum_matrix(SPECTRA[name], dtype=dtype)
    expected = np.sort(np.abs(values))[::-1][:5]
    found = top_eigenpairs(DenseOperator(matrix), k=5)
    assert found.converged and found.matvecs <= len(values)
    assert np.allclose(np.abs(found.values), expected, rtol=0, atol=1e-6 * expected[0])
    assert np.all(np.diff(np.abs(found.values)) <= 1e-6 * expected[0])
    v = found.vectors.double()
    assert torch.allclose(v @ v.T, torch.eye(5, dtype=torch.float64), rtol=0, atol=1e-12 if dtype == torch.float64 else 2e-6)
    true = (matrix.double() @ v.T - v.T * torch.tensor(found.values)).norm(dim=0).numpy()
    assert np.all(true <= 1.001 * found.residuals), "a residual that is better than the truth"
    assert np.all(found.residuals <= 1e-4 * expected[0])


@pytest.mark.parametrize("which", ["magnitude", "largest", "smallest", "both"])
def test_which_end(which):
    values = np.array(SPECTRA["indefinite"])
    ascending = np.sort(values)
    expected = {
        "magnitude": [-9, 8, -7, 6],
        "largest": ascending[-4:],
        "smallest": ascending[:4],
        "both": [8, 6, -9, -7],
    }[which]
    found = top_eigenpairs(DenseOperator(spectrum_matrix(values)), k=4, which=which)
    assert np.allclose(np.sort(found.values), np.sort(expected), atol=1e-6) and found.which == which
    assert np.all(np.diff(np.abs(found.values)) <= 1e-9)


@pytest.mark.parametrize("n", [1, 2, 4])
def test_fewer_parameters_than_pairs(n):
    values = np.array([3.0, -2.0, 1.0, 0.5][:n])
    found = top_eigenpairs(DenseOperator(spectrum_matrix(values)), k=5)
    assert found.converged and found.matvecs == n and found.vectors.shape == (n, n)
    assert np.allclose(found.values, values, atol=1e-12)


def test_zero_operator():
    found = top_eigenpairs(DenseOperator(torch.zeros(30, 30)), k=3)
    assert found.converged and not found.values.any() and not found.residuals.any()
    v = found.vectors
    assert torch.allclose(v @ v.T, torch.eye(3), atol=1e-6)


def test_separated_outliers_take_few_products():
    operator = DenseOperator(spectrum_matrix([100, 60, 40, 25, 12, *bulk(400, -0.5)]))
    for seed in range(5):
        found = top_eigenpairs(operator, k=5, seed=seed, **LARGE)
        assert found.converged and found.matvecs <= 12
        assert np.allclose(found.values, [100, 60, 40, 25, 12], rtol=1e-6)


def test_a_loose_tolerance_misses_no_eigenvector():
    operator = DenseOperator(spectrum_matrix([10, 9, 8, 7, 6, *bulk(400, -1)]))
    for seed in range(10):
        found = top_eigenpairs(operator, k=3, tol=0.3, seed=seed, **LARGE)
        assert np.allclose(found.values, [10, 9, 8], rtol=0.02)


def test_no_ghost_copies_after_many_steps():
    operator = DenseOperator(spectrum_matrix([100, 10, *bulk(298)], dtype=torch.float32))
    lanczos = Lanczos(operator, generator_for(operator, 0))
    for _ in range(150):
        lanczos.step()
    values = lanczos.ritz().values
    assert np.sum(values > 50) == 1 and np.sum(values > 5) == 2
    q = lanczos.combine(np.eye(150))
    assert float((q @ q.T - torch.eye(150)).abs().max()) < 1e-5


def test_residuals_of_the_recurrence_are_the_true_ones():
    matrix = spectrum_matrix(bulk(100, -1, 3))
    operator = DenseOperator(matrix)
    lanczos = Lanczos(operator, generator_for(operator, 0))
    for step in range(40):
        lanczos.step(end=0 if step % 3 else -1)
        if step in (10, 25):
            lanczos.refresh()
        if step == 30:
            ritz = lanczos.ritz()
            lanczos.restart(ritz.coefficients[:, -12:])
        ritz = lanczos.ritz()
        vectors = lanczos.combine(ritz.coefficients)
        true = (vectors @ matrix - torch.as_tensor(ritz.values)[:, None] * vectors).norm(dim=1).numpy()
        assert np.allclose(ritz.residuals, true, atol=1e-12)


def test_restarts_keep_memory_bounded_and_find_the_same():
    values = [3 - 0.05 * i for i in range(10)] + bulk(400, -1, 2)
    operator = DenseOperator(spectrum_matrix(values))
    small = top_eigenpairs(operator, k=5, tol=1e-6, memory_budget=1, **LARGE)
    large = top_eigenpairs(operator, k=5, tol=1e-6, **LARGE)
    assert small.converged and small.matvecs > large.matvecs > 20  # the basis of `small` holds 20 vectors
    assert np.allclose(small.values, values[:5], atol=1e-9) and np.allclose(large.values, values[:5], atol=1e-9)


def test_too_few_products_are_no_convergence():
    found = top_eigenpairs(DenseOperator(spectrum_matrix(bulk(200, -1))), k=5, max_matvecs=8)
    assert not found.converged and found.matvecs == 8 and found.residuals.max() > 1e-4


@pytest.mark.parametrize("kind", [pytest.param(k, marks=pytest.mark.slow) if k == "recurrent" else k for k in NETWORKS])
def test_networks_against_their_dense_hessians(kind):
    problem = network(kind)
    hessian = dense_hessian(*problem)
    for dtype in (torch.float64, torch.float32):
        found = top_eigenpairs(Objective(*problem, batch_size=10, dtype=dtype), k=5, **(LARGE if dtype == torch.float32 else {}))
        assert found.converged
        assert np.allclose(found.values, top_by_magnitude(hessian, 5), rtol=0, atol=1e-5 * abs(found.values[0]))
        v = found.vectors.double().T
        true = (hessian @ v - v * torch.tensor(found.values)).norm(dim=0).numpy()
        assert np.all(true <= 1.01 * found.residuals)


def test_results_say_what_they_cost_and_where_they_come_from():
    objective = Objective(*network("mlp"), batch_size=4)
    found = top_eigenpairs(objective, k=2, seed=5)
    assert found.cost.hvps == found.matvecs and found.cost.gradients == 1 and found.cost.seconds > 0
    assert found.provenance.seed == 5 and found.provenance.parameters == 91 and found.provenance.data_sha256
    assert "converged" in repr(found)


def test_same_seed_same_bits_whatever_the_global_state():
    def run(seed: int, torch_seed: int) -> tuple[np.ndarray, Tensor]:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(torch_seed)
            before = torch.get_rng_state()
            found = top_eigenpairs(Objective(*network("mlp")), k=2, seed=seed, tol=1e-2)
            assert torch.equal(torch.get_rng_state(), before)
        return found.values, found.vectors

    first, second, other = run(0, 1), run(0, 2), run(1, 1)
    assert np.array_equal(first[0], second[0]) and torch.equal(first[1], second[1])
    assert not torch.equal(first[1], other[1])


def test_a_warm_start_saves_products():
    values = [20, 15, 12, *bulk(400, -1)]
    operator = DenseOperator(spectrum_matrix(values))
    cold = top_eigenpairs(operator, k=3, **LARGE)
    g = torch.Generator().manual_seed(1)
    noise = 1e-3 * torch.randn(3, operator.size, generator=g, dtype=torch.float64) / operator.size**0.5
    warm = top_eigenpairs(operator, k=3, start=cold.vectors + noise)
    assert warm.converged and warm.matvecs < cold.matvecs
    assert top_eigenpairs(operator, k=1, start=cold.vectors[0] + noise[0]).matvecs <= 3
    assert np.allclose(warm.values, values[:3], rtol=1e-6)


def test_a_memory_that_is_also_the_result_is_not_overwritten():
    class Same(Operator):
        def matvec(self, vector: Tensor) -> Tensor:
            return vector

    found = top_eigenpairs(Same(40, torch.float64, torch.device("cpu")), k=4)
    assert np.allclose(found.values, 1) and found.converged


def test_autocast_of_the_caller_does_not_lower_the_precision():
    operator = DenseOperator(spectrum_matrix(SPECTRA["separated"], dtype=torch.float32))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = top_eigenpairs(operator, k=3)
    assert np.allclose(found.values, [100, 60, 40], rtol=1e-6)


def test_a_quadratic_objective_at_a_given_point():
    matrix = spectrum_matrix([5, -3, 1, 0.5])
    objective = Objective(*quadratic(matrix), batch_size=3)
    operator = HessianOperator(objective, {"w": torch.zeros(4, dtype=torch.float64)})
    assert np.allclose(top_eigenpairs(operator, k=2).values, [5, -3], rtol=1e-12)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"k": 0}, "k must be a positive integer, got 0"),
        ({"tol": 0}, "tol must be positive"),
        ({"which": "top"}, "which must be"),
        ({"max_matvecs": 2}, "max_matvecs must be at least k"),
        ({"start": torch.zeros(6)}, "start must be finite and not zero"),
        ({"start": torch.zeros(5)}, "start must have shape"),
    ],
)
def test_wrong_arguments_of_the_eigensolver_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        top_eigenpairs(DenseOperator(torch.eye(6)), **arguments)
    with pytest.raises(TypeError, match="DenseOperator"):
        top_eigenpairs(torch.eye(6))


def test_a_start_vector_may_be_tiny_and_memory_unlimited():
    operator = DenseOperator(spectrum_matrix(np.linspace(-1, 3, 30)).float())
    start = 1e-25 * torch.randn(30, generator=torch.Generator().manual_seed(0))
    assert top_eigenpairs(operator, 1, start=start, memory_budget=math.inf).values[0] == pytest.approx(3, rel=1e-4)
    with pytest.raises(ValueError, match="memory_budget must be"):
        top_eigenpairs(operator, 1, memory_budget=math.nan)


@pytest.mark.parametrize("seed", [8, 10, 11])  # the residuals were up to 80 times those that were printed
def test_residuals_hold_for_the_vectors_when_the_whole_space_is_searched(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    inputs, targets = torch.randn(24, 4, generator=generator), torch.arange(24) % 3  # five directions change no output
    model = nn.Linear(4, 3)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.rand(p.shape, generator=generator) - 0.5)
    found = top_eigenpairs(Objective(model, F.cross_entropy, (inputs, targets)), k=2)
    exact = HessianOperator(Objective(model, F.cross_entropy, (inputs, targets), dtype=torch.float64))
    vectors = torch.as_tensor(found.vectors).double()
    products = exact.matmat(vectors.T).T
    left = torch.linalg.vector_norm(products - torch.as_tensor(found.values)[:, None] * vectors, dim=1)
    assert (left.numpy() <= found.residuals).all()
    gram = found.basis.double() @ found.basis.double().T
    assert (gram - torch.eye(len(gram))).abs().max() < 2e-6
