"""The same numbers as curvlinops and PyHessian on the same network, and none of their mistakes that change numbers."""

import copy
import warnings

import numpy as np
import pytest
import torch
from oracles import dense_hessian, finite_difference_product, top_by_magnitude
from problems import network
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from landscape.curvature import HessianOperator, hessian_trace, top_eigenpairs
from landscape.objective import Objective

with warnings.catch_warnings():  # what they import is deprecated
    warnings.simplefilter("ignore")
    curvlinops = pytest.importorskip("curvlinops")
    pyhessian = pytest.importorskip("pyhessian")


def test_products_are_those_of_curvlinops() -> None:
    problem = network("cnn")
    (x, y), model = problem.data, problem.model.eval()
    batches = [(x[:5], y[:5]), (x[5:10], y[5:10]), (x[10:], y[10:])]  # the last one is shorter
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = curvlinops.HessianLinearOperator(model, torch.nn.CrossEntropyLoss(), list(model.parameters()), batches)
        v = torch.randn(theirs.shape[0], generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        expected = theirs @ v
    product = HessianOperator(Objective(model, cross_entropy, batches)).matvec(v)
    torch.testing.assert_close(product, expected, rtol=1e-10, atol=1e-12)


def test_products_with_layer_norm_are_differences_of_gradients() -> None:
    # curvlinops 3.0.1 is wrong here, by as much as the product is large: forward mode through the backward pass of a layer norm
    problem = network("mlp")
    v = torch.randn(91, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    product = HessianOperator(Objective(*problem)).matvec(v)
    torch.testing.assert_close(product, finite_difference_product(*problem, v), rtol=1e-6, atol=1e-7)


def test_eigenvalues_and_trace_are_those_of_pyhessian_on_one_batch() -> None:
    problem = network("mlp", examples=40)
    torch.manual_seed(0)
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.set_default_dtype(torch.float64)
        try:
            peer = pyhessian.hessian(copy.deepcopy(problem.model), torch.nn.CrossEntropyLoss(), data=problem.data, cuda=False)
            values = peer.eigenvalues(maxIter=2000, tol=1e-9, top_n=2)[0]
            samples = peer.trace(maxIter=200, tol=0)
        finally:
            torch.set_default_dtype(torch.float32)
    ours = Objective(*problem, batch_size=7)
    np.testing.assert_allclose(top_eigenpairs(ours, 2, tol=1e-8).values, values, rtol=1e-4)
    trace = hessian_trace(ours, tol=0.01)
    spread = np.hypot(trace.stderr, np.std(samples) / len(samples) ** 0.5)
    assert abs(trace.value - np.mean(samples)) < 4 * spread


def test_numbers_do_not_grow_with_the_number_of_batches_nor_tilt_with_a_short_last_one() -> None:
    problem = network("cnn", examples=13)
    exact = top_by_magnitude(dense_hessian(*problem), 3)
    x, y = problem.data
    for size in (13, 4):
        loader = DataLoader(TensorDataset(x, y), batch_size=size)
        found = top_eigenpairs(Objective(problem.model, problem.loss, loader), 3, tol=1e-9)
        np.testing.assert_allclose(found.values, exact, rtol=1e-8)


def test_the_defaults_are_right_and_a_converged_value_has_no_ghosts() -> None:
    problem = network("mlp", examples=40)
    exact = top_by_magnitude(dense_hessian(*problem), 12)
    found = top_eigenpairs(Objective(*problem), 12)
    assert found.converged
    np.testing.assert_allclose(found.values, exact, atol=1e-3 * abs(exact[0]))


def test_products_on_a_piecewise_linear_network_are_exact_where_differences_are_not() -> None:
    torch.manual_seed(1)
    model = torch.nn.Sequential(
        torch.nn.Linear(6, 20), torch.nn.ReLU(), torch.nn.Linear(20, 20), torch.nn.ReLU(), torch.nn.Linear(20, 3)
    ).double()
    data = torch.randn(30, 6, dtype=torch.float64), torch.randint(0, 3, (30,))
    hessian = dense_hessian(model, cross_entropy, data)
    v = torch.randn(len(hessian), dtype=torch.float64)
    operator = HessianOperator(Objective(model, cross_entropy, data))
    assert float((operator.matvec(v) - hessian @ v).norm() / (hessian @ v).norm()) < 1e-12
