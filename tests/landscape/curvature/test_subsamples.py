"""Spread over parts of the data: against populations whose Hessian is known, and against measurements on the parts by hand."""

from functools import partial

import numpy as np
import pytest
import torch
from problems import network
from torch.utils.data import DataLoader, TensorDataset

import landscape
from landscape.batches import Part
from landscape.curvature import hessian_trace, subsampled, top_eigenpairs
from landscape.objective import Objective
from landscape.results import store
from landscape.sharpness import m_sharpness

COVARIANCE = np.array([4.0, 2.5, 1.0, 0.5, 0.2])


def regression(seed, examples=160):
    """Half the mean squared error of a linear model of normal inputs: on infinitely many of them its Hessian is their covariance."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(examples, 5, generator=g, dtype=torch.float64) * torch.as_tensor(COVARIANCE).sqrt()
    model = torch.nn.Linear(5, 1, bias=False, dtype=torch.float64)
    return Objective(model, lambda outputs, target: 0.5 * (outputs - target).square().mean(), (x, torch.zeros(examples, 1, dtype=x.dtype)))


def dense(objective):
    x = torch.cat([batch[0] for batch in objective.batches])
    values = torch.linalg.eigvalsh(x.T @ x / len(x))
    return np.array([float(values[-1]), float(values.sum())])


@pytest.mark.parametrize(
    "arguments",
    [pytest.param({}, marks=pytest.mark.slow), {"parts": 4}, pytest.param({"leave_out": True}, marks=pytest.mark.slow)],
    ids=["parts", "four parts", "jackknife"],
)
def test_intervals_cover_the_population_in_200_data_sets(arguments):
    truth = np.array([COVARIANCE.max(), COVARIANCE.sum()])
    runs = [subsampled(dense, regression(seed), seed=seed, **arguments) for seed in range(200)]
    covered = np.mean([np.abs(run.values - truth) <= 1.96 * run.stderr for run in runs], 0)
    assert (covered >= 0.92).all(), covered
    errors = np.std([run.values for run in runs], 0)
    assert (np.median([run.stderr for run in runs], 0) < 2 * errors).all(), "an error bar too long says nothing either"
    bias = np.mean([run.values for run in runs], 0) - truth
    assert abs(np.mean([run.bias for run in runs], 0)[0] - bias[0]) < 3 * errors[0] / 200**0.5
    assert np.allclose([run.bias[1] for run in runs], 0, atol=1e-9)  # the trace is linear


def test_eigenvalues_of_fewer_examples_are_larger_and_the_bias_says_so():
    runs = [subsampled(dense, regression(seed, 80), seed=seed) for seed in range(50)]
    assert np.mean([run.per_part[:, 0].mean() - run.values[0] for run in runs]) > 0.2
    assert np.mean([run.bias[0] for run in runs]) > 0.02


@pytest.mark.parametrize("kind", ["tensors", "loader", "list"])
def test_parts_are_measured_as_by_hand(kind):
    model, loss, (x, y) = network("mlp", examples=26)
    data = {"tensors": (x, y), "loader": DataLoader(TensorDataset(x, y), batch_size=7), "list": [(x[:20], y[:20]), (x[20:], y[20:])]}[kind]
    objective = Objective(model, loss, data)
    before = torch.get_rng_state()
    measure = partial(top_eigenpairs, k=2, tol=1e-8, multiplicities=False)
    found = subsampled(measure, objective, parts=4, seed=3)
    dealt = np.array_split(np.random.default_rng(3).permutation(26), 4)
    for positions, values in zip(dealt, found.per_part, strict=True):
        index = torch.from_numpy(np.sort(positions))
        assert np.allclose(measure(Objective(model, loss, (x[index], y[index]))).values, values, rtol=1e-10)
    assert np.allclose(found.values, measure(objective).values) and found.part_sizes.tolist() == [7, 7, 6, 6]
    assert found.measure == "top_eigenpairs" and found.converged and torch.equal(before, torch.get_rng_state())
    assert found.cost.hvps > measure(objective).matvecs


def test_the_trace_of_the_whole_is_the_mean_of_its_parts():
    objective = Objective(*network("mlp", examples=21))
    found = subsampled(partial(hessian_trace, tol=1e-9, method="hutchinson"), objective, parts=5)
    assert abs(found.part_sizes @ found.per_part[:, 0] / 21 - found.values[0]) < 1e-9 and abs(found.bias[0]) < 1e-9


def test_the_error_of_the_measurement_is_part_of_the_error():
    objective = Objective(*network("cnn", examples=24))
    rough = partial(hessian_trace, tol=1e-9, method="hutchinson", max_matvecs=20)
    found = subsampled(rough, objective, parts=4)
    assert not found.converged and found.stderr[0] > rough(objective).stderr and "NOT converged" in found.summary()


def test_batches_of_a_part_are_the_examples_chosen():
    x = torch.arange(10.0)[:, None]
    whole = Objective(torch.nn.Linear(1, 1), lambda o, t: (o - t).square().mean(), [(x[:4], x[:4]), (x[4:5], x[4:5]), (x[5:], x[5:])])
    part = Part(whole.batches, np.array([9, 0, 3, 6]))
    assert [batch[0].flatten().tolist() for batch in part] == [[0, 3], [6, 9]] and part.examples == 4
    assert part.sha256 == Objective(whole.model, torch.nn.functional.mse_loss, (x[[0, 3, 6, 9]], x[[0, 3, 6, 9]])).batches.sha256


def test_parts_with_weights_of_their_own():
    """Tokens instead of examples: parts count by their weight."""
    x, y = torch.randn(12, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64), torch.arange(12) % 3
    objective = Objective(network("mlp").model, torch.nn.functional.cross_entropy, (x, y), weight=lambda batch: 2.0 * len(batch[1]))
    found = subsampled(lambda o: o.loss(), objective, parts=3, name="loss")
    assert found.part_sizes.tolist() == [8, 8, 8] and abs(found.per_part.mean() - objective.loss()) < 1e-12


def test_subsampled_results_are_kept_in_files(tmp_path):
    objective = Objective(*network("mlp"))
    found = subsampled(partial(m_sharpness, rho=0.05, m=2), objective, parts=3)
    landscape.save(tmp_path / "run.h5", found)
    read = landscape.open(tmp_path / "run.h5").subsampled["m_sharpness"]
    assert store.groups(tmp_path / "run.h5") == ["subsampled/m_sharpness"]
    for field in ("values", "stderr", "bias", "per_part", "part_sizes"):
        assert np.array_equal(getattr(read, field), getattr(found, field))
    assert read.summary() == found.summary() and "±" in found.summary() and read.provenance == found.provenance


def test_wrong_arguments_of_subsamples_are_named():
    objective = Objective(*network("mlp"))
    for parts in (2, 14, 2.0):
        with pytest.raises(ValueError, match="parts must be an integer from 3 to 13"):
            subsampled(dense, objective, parts=parts)
    with pytest.raises(TypeError, match="measure must give .* got str"):
        subsampled(lambda o: "large", objective, parts=3)
    with pytest.raises(ValueError, match="gives 13 values on all examples and 5 on part 0"):
        subsampled(lambda o: np.ones(o.examples), objective, parts=3)
    batches = [(torch.randn(4, 1, 6, 6, dtype=torch.float64), torch.tensor([0, 1, 2, 0]))] * 3
    with pytest.raises(ValueError, match="batch_norm is 'batch'"):
        subsampled(lambda o: o.loss(), Objective(*network("cnn")[:2], batches, batch_norm="batch"), parts=3)


def test_the_bias_is_part_of_the_error_bar():
    found = subsampled(lambda objective: 1 / objective.examples, regression(0, 80), parts=8)  # the same on every part
    assert found.bias[0] == pytest.approx(1 / 80) and found.stderr[0] == pytest.approx(1 / 80)
