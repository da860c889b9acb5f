"""Traces against sums of known eigenvalues; error bars against the errors of 200 runs."""

import numpy as np
import pytest
import torch
from oracles import dense_hessian
from problems import NETWORKS, network, spectrum_matrix

from landscape.curvature import DenseOperator, hessian_trace, top_eigenpairs
from landscape.objective import Objective

OUTLIERS = [40, 25, 10, *np.linspace(-0.5, 1.5, 397)]


@pytest.fixture(scope="module")
def operator():
    return DenseOperator(spectrum_matrix(OUTLIERS))


@pytest.mark.parametrize("tol", [0.15, 0.05])
def test_95_percent_intervals_cover_in_200_runs(operator, tol):
    runs = [hessian_trace(operator, tol=tol, max_matvecs=300, seed=seed) for seed in range(200)]
    inside = np.mean([abs(run.value - sum(OUTLIERS)) <= 1.96 * run.stderr for run in runs])
    assert all(run.converged and run.stderr <= tol * run.value for run in runs)
    assert inside >= 0.91  # 0.95 less 2.6 standard deviations of 200 runs
    assert np.median([run.stderr / abs(run.value - sum(OUTLIERS)) for run in runs]) < 2.5, "an error bar too long says nothing either"


def test_probes_orthogonal_to_the_eigenvectors_need_fewer_products():
    values = [40, 25, 10, *np.linspace(-0.05, 0.15, 397)]
    operator = DenseOperator(spectrum_matrix(values))
    pairs = top_eigenpairs(operator, k=3, tol=1e-2, multiplicities=False)
    plain = hessian_trace(operator, tol=0.05, max_matvecs=390, seed=1)
    deflated = [hessian_trace(operator, tol=0.01, seed=seed, eigenpairs=pairs) for seed in range(30)]
    assert plain.method == "hutchinson" and plain.matvecs > 100
    assert deflated[0].method == "deflated hutchinson" and max(d.matvecs for d in deflated) + pairs.matvecs < 0.5 * plain.matvecs
    assert np.sqrt(np.mean([(d.value - sum(values)) ** 2 for d in deflated])) < 0.01 * sum(values)


def test_deflation_is_unbiased_for_any_orthonormal_vectors(operator):
    poor = top_eigenpairs(operator, k=4, max_matvecs=4, multiplicities=False)
    assert not poor.converged
    runs = [hessian_trace(operator, tol=0.05, seed=seed, eigenpairs=poor) for seed in range(50)]
    error = np.mean([run.value for run in runs]) - sum(OUTLIERS)
    assert abs(error) < 4 * np.mean([run.stderr for run in runs]) / 50**0.5


def test_a_small_space_is_summed_exactly():
    for n in (1, 3, 16):
        found = hessian_trace(DenseOperator(spectrum_matrix(range(1, n + 1))))
        assert found.method == "exact" and found.matvecs == n and found.converged
        assert abs(found.value - n * (n + 1) / 2) <= found.stderr < 1e-12 * n**3


def test_a_trace_of_zero_ends():
    values = [*range(1, 501), *range(-500, 0)]
    found = hessian_trace(DenseOperator(spectrum_matrix(values)), max_matvecs=60)
    assert not found.converged and found.matvecs == 60 and abs(found.value) < 4 * found.stderr
    zero = hessian_trace(DenseOperator(torch.zeros(100, 100)))
    assert zero.converged and zero.value == 0 and zero.stderr == 0
    exact = hessian_trace(DenseOperator(spectrum_matrix([*range(1, 51), *range(-50, 0)])))
    assert exact.method == "exact" and exact.converged and abs(exact.value) <= exact.stderr


@pytest.mark.parametrize("kind", NETWORKS)
def test_networks_against_their_dense_trace(kind):
    problem = network(kind)
    trace = float(dense_hessian(*problem).trace())
    objective = Objective(*problem)
    if kind == "mlp":
        exact = hessian_trace(objective)
        assert exact.method == "exact" and abs(exact.value - trace) <= exact.stderr + 1e-12
    rough = hessian_trace(objective, max_matvecs=40, seed=1)
    assert rough.method == "hutchinson" and rough.matvecs == rough.cost.hvps == 40 and abs(rough.value - trace) < 4 * rough.stderr
    same = hessian_trace(Objective(*problem, dtype=torch.float32), max_matvecs=40, seed=1)
    assert np.isclose(same.value, rough.value, rtol=1e-4)  # the same probes


def test_same_seed_same_bits_of_the_trace(operator):
    first, torch_state = hessian_trace(operator, seed=3), torch.get_rng_state()
    torch.rand(1)
    second = hessian_trace(operator, seed=3)
    assert np.array_equal(first.samples, second.samples) and not np.array_equal(first.samples, hessian_trace(operator, seed=4).samples)
    torch.set_rng_state(torch_state)


def test_wrong_arguments_of_the_trace_are_named(operator):
    with pytest.raises(ValueError, match="tol must be positive"):
        hessian_trace(operator, tol=-1)
    with pytest.raises(ValueError, match="max_matvecs"):
        hessian_trace(operator, max_matvecs=1)
    with pytest.raises(ValueError, match="length 5, the operator has size 400"):
        hessian_trace(operator, eigenpairs=top_eigenpairs(DenseOperator(torch.eye(5))))
