"""Traces against sums of known eigenvalues; error bars against the errors of 200 runs."""

import copy
import dataclasses

import numpy as np
import pytest
import torch
from oracles import dense_hessian
from problems import NETWORKS, network, spectrum_matrix

from landscape.curvature import DenseOperator, HessianOperator, hessian_trace, top_eigenpairs
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


def changed(problem, what):
    """The same objective but for one thing."""
    model, loss, (x, y) = problem
    if what == "weights":
        model = copy.deepcopy(model)
        with torch.no_grad():
            next(model.parameters()).mul_(2)
    if what == "loss":
        return Objective(model, lambda o, t: loss(o, t) + o.square().mean(), (x, y))
    return Objective(model, loss, (x + 1, y) if what == "data" else (x, y))


@pytest.mark.parametrize("what", ["weights", "data", "loss"])
@pytest.mark.parametrize("from_file", [False, True])
def test_eigenpairs_of_another_operator_are_refused(what, from_file):
    problem = network("mlp")
    pairs = top_eigenpairs(Objective(*problem), k=3)
    pairs = dataclasses.replace(pairs, point=None) if from_file else pairs
    assert hessian_trace(Objective(*problem), eigenpairs=pairs, max_matvecs=20).matvecs == 20
    with pytest.raises(ValueError, match=rf"another operator \(other {what}"):
        hessian_trace(changed(problem, what), eigenpairs=pairs)


def test_eigenpairs_of_another_point_are_refused():
    objective = Objective(*network("mlp"))
    elsewhere = {name: 2 * p for name, p in objective.parameters.items()}
    there, here = HessianOperator(objective, elsewhere), HessianOperator(objective)
    with pytest.raises(ValueError, match=r"other point"):
        hessian_trace(there, eigenpairs=top_eigenpairs(here, k=3))
    assert hessian_trace(there, eigenpairs=top_eigenpairs(there, k=3), max_matvecs=20).matvecs == 20


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_vectors_that_cannot_be_shown_to_belong_do_no_harm(operator, scale):
    """Eigenpairs of some other matrix, and vectors of another length than one, which then cost a product each."""
    foreign = top_eigenpairs(DenseOperator(spectrum_matrix([100, 90, 80, *[1.0] * 397], seed=9)), k=3, multiplicities=False)
    foreign = dataclasses.replace(foreign, vectors=scale * foreign.vectors)
    runs = [hessian_trace(operator, tol=0.05, seed=seed, eigenpairs=foreign) for seed in range(30)]
    assert runs[0].matvecs == len(runs[0].samples) + 3
    error = np.mean([run.value for run in runs]) - sum(OUTLIERS)
    assert abs(error) < 4 * np.mean([run.stderr for run in runs]) / 30**0.5
    problem = network("mlp")
    short = top_eigenpairs(Objective(*problem, dtype=torch.float32), k=3)
    assert abs(hessian_trace(Objective(*problem), eigenpairs=short).value - float(dense_hessian(*problem).trace())) < 0.2
