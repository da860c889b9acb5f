"""Curvature while a network trains, against dense Hessians of the same moments; training does not notice."""

from pathlib import Path

import numpy as np
import pytest
import torch
from oracles import dense_hessian, top_by_magnitude
from torch import nn
from torch.nn.functional import cross_entropy

import landscape
from landscape import plots
from landscape.cli import main
from landscape.curvature.tracking import CurvatureHook
from sam_core.training import Hook, Trainer

X = torch.randn(60, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
Y = X[:, :3].argmax(1)


class Dense(Hook):
    """The oracle: all eigenvalues after every epoch."""

    def __init__(self) -> None:
        self.values: list[np.ndarray] = []
        self.traces: list[float] = []

    def _look(self, run: Trainer) -> None:
        mode = run.model.training
        hessian = dense_hessian(run.model, cross_entropy, (X, Y))
        run.model.train(mode)
        self.values.append(top_by_magnitude(hessian, 2))
        self.traces.append(float(hessian.trace()))

    def on_start(self, run: Trainer) -> None:
        self._look(run)

    def after_epoch(self, run: Trainer) -> None:
        self._look(run)


def train(*hooks: Hook, epochs: int = 5) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.1), nn.Linear(8, 3)).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    Trainer(model, optimizer, list(zip(X.split(20), Y.split(20), strict=True)), epochs=epochs, hooks=hooks, progress=False).fit()
    return model


def test_every_epoch_has_the_eigenvalues_and_the_trace_of_its_dense_hessian() -> None:
    dense, hook = Dense(), CurvatureHook((X, Y), k=2, tol=1e-6, trace_tol=0.02)
    train(dense, hook)
    found = hook.result()
    assert found.epoch.tolist() == [0, 1, 2, 3, 4, 5]
    np.testing.assert_allclose(found.values, dense.values, rtol=1e-6)
    assert (np.abs(found.trace - dense.traces) <= 4 * found.trace_stderr + 1e-9).all()
    assert found.cost.hvps == pytest.approx(found.matvecs.sum())


def test_training_goes_on_to_the_same_bits() -> None:
    one, other = train(), train(CurvatureHook((X, Y), every=2))
    assert all(map(torch.equal, one.state_dict().values(), other.state_dict().values()))


def test_an_eigenvalue_that_moves_slowly_costs_few_products() -> None:
    hook = CurvatureHook((X, Y), tol=0.05, trace_tol=None)
    train(hook, epochs=10)
    assert np.median(hook.result().matvecs[1:]) <= 4
    assert np.isnan(hook.result().trace).all()


def test_a_hook_goes_on_from_its_state() -> None:
    whole, first = CurvatureHook((X, Y), every=2), CurvatureHook((X, Y), every=2)
    train(whole)
    train(first, epochs=2)
    second = CurvatureHook((X, Y), every=2)
    second.load_state_dict(first.state_dict())
    assert second.result().epoch.tolist() == [0, 2]
    np.testing.assert_array_equal(second.result().values, whole.result().values[:2])


def test_the_command_measures_and_draws(tmp_path: Path) -> None:
    asked = "train --method sgd --epochs 2 --train-examples 64 --test-examples 32 --curvature-every 1 --curvature-examples 20"
    assert main([*asked.split(), "--out", str(tmp_path)]) == 0
    found = landscape.open(tmp_path / "run.h5").curvature
    assert found.epoch.tolist() == [0, 1, 2] and found.provenance.examples == 20
    figure = plots.curvature({"sgd": found})
    figure.savefig(tmp_path / "curvature.png")
    assert plots.curvature({"sgd": found}, backend="plotly").data
    assert main(["report", str(tmp_path / "run.h5"), "--out", str(tmp_path / "report.html")]) == 0
    assert "Curvature while training" in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize(
    ("options", "said"),
    [({"every": 0}, "every must be"), ({"k": 0}, "k must be"), ({"tol": 1.0}, "tol must be"), ({"trace_tol": 0}, "trace_tol")],
)
def test_what_cannot_be_is_refused(options: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        CurvatureHook((X, Y), **options)
