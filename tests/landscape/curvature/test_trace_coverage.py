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

METHODS = ("deflated", "hutchinson", "hutch++", "xtrace")
OUTLIERS = [40, 25, 10, *np.linspace(-0.5, 1.5, 397)]
SPECTRA = {
    "flat": np.linspace(0.5, 1.5, 120),
    "one outlier": np.array([60, *np.linspace(-0.5, 1.5, 119)]),
    "indefinite": np.linspace(-1, 1.4, 120),
    "near zero": np.linspace(-1, 1.02, 120),
    "decaying": 1 / np.arange(1, 121) ** 1.2,
}


@pytest.fixture(scope="module")
def operator():
    return DenseOperator(spectrum_matrix(OUTLIERS))


def covered(runs, truth):
    return np.mean([abs(run.value - truth) <= 1.96 * run.stderr for run in runs])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "name", ["one outlier", *(pytest.param(n, marks=pytest.mark.slow) for n in ("flat", "near zero", "indefinite", "decaying"))]
)
def test_95_percent_intervals_cover_in_200_runs(name, method):
    """With a stop at the first small error, and with products that give out before."""
    values = SPECTRA[name]
    operator = DenseOperator(spectrum_matrix(values))
    runs = [hessian_trace(operator, tol=0.1, method=method, max_matvecs=40, seed=seed) for seed in range(200)]
    assert {run.method for run in runs} == {method} and all(run.matvecs <= 40 for run in runs)
    assert all(run.converged == (run.stderr <= 0.1 * abs(run.value)) for run in runs)
    assert covered(runs, values.sum()) >= 0.92  # 0.95 less two standard deviations of 200 runs
    errors = [abs(run.value - values.sum()) for run in runs]
    assert np.sqrt(np.mean([run.stderr**2 for run in runs])) < 3 * np.sqrt(np.mean(np.square(errors))), "too long a bar says nothing either"
    assert abs(np.mean([run.value for run in runs]) - values.sum()) < 4 * np.std(errors) / 200**0.5 + 0.25 * np.mean(errors)


@pytest.mark.parametrize("tol", [0.5, 0.05])
def test_intervals_cover_where_outliers_are_left_in_and_looked_at_often(operator, tol):
    runs = [hessian_trace(operator, tol=tol, method="hutchinson", max_matvecs=300, seed=seed) for seed in range(200)]
    assert all(run.converged and run.stderr <= tol * run.value for run in runs)
    assert covered(runs, sum(OUTLIERS)) >= 0.92


def test_intervals_cover_with_a_basis_from_eigenvalues(operator):
    pairs = top_eigenpairs(operator, k=3, tol=1e-3, multiplicities=False)
    assert pairs.basis is not None and len(pairs.basis) > 3
    runs = [hessian_trace(operator, tol=0.03, seed=seed, eigenpairs=pairs) for seed in range(200)]
    assert covered(runs, sum(OUTLIERS)) >= 0.92 and all(run.method == "deflated" for run in runs)
    assert np.mean([run.matvecs for run in runs]) < np.mean([hessian_trace(operator, tol=0.03, seed=s).matvecs for s in range(20)])


def test_the_basis_of_the_eigenvalues_costs_no_product():
    values = [40, 25, 10, *np.linspace(-0.05, 0.15, 397)]
    operator = DenseOperator(spectrum_matrix(values))
    pairs = top_eigenpairs(operator, k=3, tol=1e-2, multiplicities=False)
    bare = dataclasses.replace(pairs, basis=None, projected=None)  # as from a file
    plain = hessian_trace(operator, tol=0.05, max_matvecs=390, seed=1, method="hutchinson")
    for given in (pairs, bare):
        deflated = [hessian_trace(operator, tol=0.02, seed=seed, eigenpairs=given) for seed in range(30)]
        assert deflated[0].matvecs == len(deflated[0].samples) == 16
        assert plain.matvecs > 100 and deflated[0].matvecs + pairs.matvecs < 0.5 * plain.matvecs
        assert np.sqrt(np.mean([(d.value - sum(values)) ** 2 for d in deflated])) < 0.01 * sum(values)


def test_deflation_is_unbiased_for_any_orthonormal_vectors(operator):
    poor = top_eigenpairs(operator, k=4, max_matvecs=4, multiplicities=False)
    assert not poor.converged
    runs = [hessian_trace(operator, tol=0.05, seed=seed, eigenpairs=poor) for seed in range(50)]
    error = np.mean([run.value for run in runs]) - sum(OUTLIERS)
    assert abs(error) < 4 * np.mean([run.stderr for run in runs]) / 50**0.5


def test_every_cheaper_method_beats_hutchinson_at_the_same_products():
    """Root mean square errors at 60 products on a spectrum such as networks have: a few outliers and a decaying rest."""
    values = np.array([30, 15, 12, 8, 6, 4, 3, 2, *(1 / np.arange(1, 393) ** 0.8)])
    operator = DenseOperator(spectrum_matrix(values))
    rms = {}
    for method in METHODS:
        runs = [hessian_trace(operator, tol=1e-9, method=method, max_matvecs=60, seed=seed) for seed in range(30)]
        rms[method] = np.sqrt(np.mean([(run.value - values.sum()) ** 2 for run in runs]))
        assert not any(run.converged for run in runs) and all(58 <= run.matvecs <= 60 for run in runs)
    assert max(rms["deflated"], rms["hutch++"], rms["xtrace"]) < 0.4 * rms["hutchinson"]
    assert rms["deflated"] < 1.3 * min(rms.values())


@pytest.mark.parametrize("method", METHODS)
def test_an_operator_of_low_rank_is_known_exactly_once_its_range_is(method):
    values = np.array([5, 4, -3, 2, 1, *[0] * 200])
    found = hessian_trace(DenseOperator(spectrum_matrix(values)), method=method, tol=1e-6, max_matvecs=60, seed=2)
    if method != "hutchinson":
        assert found.converged and found.matvecs <= 48
        assert abs(found.value - 9) < 1e-9
    assert abs(found.value - 9) <= 4 * found.stderr + 1e-9


def test_a_diagonal_operator_needs_no_basis():
    found = hessian_trace(DenseOperator(torch.diag(torch.arange(1.0, 301, dtype=torch.float64))), tol=1e-3)
    assert found.matvecs == 16 and found.converged and abs(found.value - 45150) < 1e-6


@pytest.mark.parametrize("method", [None, *METHODS])
def test_a_small_space_is_summed_exactly(method):
    for n in (1, 3, 16):
        found = hessian_trace(DenseOperator(spectrum_matrix(range(1, n + 1))), method=method)
        assert found.method == "exact" and found.matvecs == n and found.converged
        assert abs(found.value - n * (n + 1) / 2) <= found.stderr < 1e-12 * n**3


@pytest.mark.parametrize("method", METHODS)
def test_traces_of_zero_end(method):
    values = [*range(1, 251), *range(-250, 0)]
    found = hessian_trace(DenseOperator(spectrum_matrix(values)), max_matvecs=60, method=method)
    assert not found.converged and 58 <= found.matvecs <= 60 and abs(found.value) < 4 * found.stderr
    zero = hessian_trace(DenseOperator(torch.zeros(100, 100)), method=method)
    assert zero.converged and zero.value == 0 and zero.stderr == 0
    exact = hessian_trace(DenseOperator(spectrum_matrix([*range(1, 51), *range(-50, 0)])), method=method)
    assert exact.method == "exact" and exact.converged and abs(exact.value) <= exact.stderr
    few = hessian_trace(DenseOperator(spectrum_matrix(values)), max_matvecs=3, method=method)
    assert not few.converged and few.matvecs <= 3 and few.stderr > 0


@pytest.mark.parametrize("kind", [pytest.param(k, marks=pytest.mark.slow) if k in ("attention", "recurrent") else k for k in NETWORKS])
def test_networks_against_their_dense_trace(kind):
    problem = network(kind)
    trace = float(dense_hessian(*problem).trace())
    objective = Objective(*problem)
    if kind == "mlp":
        exact = hessian_trace(objective, tol=1e-3)
        assert exact.converged and abs(exact.value - trace) <= 4 * exact.stderr + 1e-12
    pairs = top_eigenpairs(objective, k=2, tol=1e-2)
    for method in METHODS if kind in ("mlp", "cnn") else METHODS[:1]:
        rough = hessian_trace(objective, tol=1e-6, method=method, max_matvecs=40, seed=1)
        assert rough.method == method and rough.matvecs == rough.cost.hvps >= 38 and abs(rough.value - trace) < 4 * rough.stderr
        same = hessian_trace(Objective(*problem, dtype=torch.float32), tol=1e-6, method=method, max_matvecs=40, seed=1)
        assert np.isclose(same.value, rough.value, rtol=1e-2)  # the same probes
    reused = hessian_trace(objective, tol=1e-6, max_matvecs=40, seed=1, eigenpairs=pairs)
    assert reused.matvecs == reused.cost.hvps == 40 and abs(reused.value - trace) < 4 * reused.stderr


@pytest.mark.parametrize("method", METHODS)
def test_same_seed_same_bits_of_the_trace(operator, method):
    first, torch_state = hessian_trace(operator, seed=3, method=method), torch.get_rng_state()
    torch.rand(1)
    second = hessian_trace(operator, seed=3, method=method)
    other = hessian_trace(operator, seed=4, method=method)
    assert np.array_equal(first.samples, second.samples) and first.stderr == second.stderr and first.value != other.value
    torch.set_rng_state(torch_state)


def test_wrong_arguments_of_the_trace_are_named(operator):
    with pytest.raises(ValueError, match="tol must be positive"):
        hessian_trace(operator, tol=-1)
    with pytest.raises(ValueError, match="max_matvecs"):
        hessian_trace(operator, max_matvecs=1)
    with pytest.raises(ValueError, match=r"method must be None or one of .* got 'hutch'"):
        hessian_trace(operator, method="hutch")
    pairs = top_eigenpairs(DenseOperator(torch.eye(5)))
    with pytest.raises(ValueError, match="length 5, the operator has size 400"):
        hessian_trace(operator, eigenpairs=pairs)
    with pytest.raises(ValueError, match="eigenpairs is for method 'deflated'"):
        hessian_trace(operator, method="xtrace", eigenpairs=pairs)


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
    pairs = dataclasses.replace(pairs, point=None, basis=None, projected=None) if from_file else pairs
    assert hessian_trace(Objective(*problem), eigenpairs=pairs, tol=1e-6, max_matvecs=20).matvecs == 20
    with pytest.raises(ValueError, match=rf"another operator \(other {what}"):
        hessian_trace(changed(problem, what), eigenpairs=pairs)


def test_eigenpairs_of_another_point_are_refused():
    objective = Objective(*network("mlp"))
    elsewhere = {name: 2 * p for name, p in objective.parameters.items()}
    there, here = HessianOperator(objective, elsewhere), HessianOperator(objective)
    with pytest.raises(ValueError, match=r"other point"):
        hessian_trace(there, eigenpairs=top_eigenpairs(here, k=3))
    assert hessian_trace(there, eigenpairs=top_eigenpairs(there, k=3), tol=1e-6, max_matvecs=20).matvecs == 20


def test_eigenpairs_of_another_operator_of_the_same_loss_are_refused():
    """What is written down about them is the same; the first products tell."""
    objective = Objective(*network("mlp"))
    pairs = top_eigenpairs(objective, k=3)

    class Shifted(HessianOperator):
        def matmat(self, vectors):
            return super().matmat(vectors) + 0.1 * vectors

    with pytest.raises(ValueError, match="another operator of the same loss"):
        hessian_trace(Shifted(objective), eigenpairs=pairs, tol=1e-6, max_matvecs=20)


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_vectors_that_cannot_be_shown_to_belong_do_no_harm(operator, scale):
    """Eigenpairs of some other matrix, and vectors of another length than one, which then cost a product each."""
    foreign = top_eigenpairs(DenseOperator(spectrum_matrix([100, 90, 80, *[1.0] * 397], seed=9)), k=3, multiplicities=False)
    foreign = dataclasses.replace(foreign, vectors=scale * foreign.vectors)
    runs = [hessian_trace(operator, tol=0.5, seed=seed, eigenpairs=foreign) for seed in range(30)]
    assert runs[0].matvecs == len(runs[0].samples) + 3
    error = np.mean([run.value for run in runs]) - sum(OUTLIERS)
    assert abs(error) < 4 * np.mean([run.stderr for run in runs]) / 30**0.5
    problem = network("mlp")
    short = top_eigenpairs(Objective(*problem, dtype=torch.float32), k=3)
    assert abs(hessian_trace(Objective(*problem), eigenpairs=short).value - float(dense_hessian(*problem).trace())) < 0.2


@pytest.mark.parametrize("method", ["deflated", "hutchinson", "hutch++", "xtrace"])
@pytest.mark.parametrize("scale", [1e30, 1e-30])
def test_float32_of_any_scale(method, scale):
    spectrum = np.concatenate([[5.0, -4.0, 3.0], np.linspace(0, 1, 57)])
    matrix = spectrum_matrix(spectrum).float()
    one, scaled = (hessian_trace(DenseOperator(m), method=method, max_matvecs=50) for m in (matrix, matrix * scale))
    assert scaled.value / scale == pytest.approx(one.value, rel=1e-3) and scaled.stderr / scale == pytest.approx(one.stderr, rel=1e-2)
    assert scaled.converged == one.converged and scaled.matvecs == one.matvecs
