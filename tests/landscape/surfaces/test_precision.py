"""Surfaces in bfloat16 against full precision: how far they are off is measured, holds elsewhere, and is refused where it is too far."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from problems import network
from torch import Tensor, nn
from torch.nn import functional as F

from landscape.objective import Objective
from landscape.results import store
from landscape.stateless import undisturbed
from landscape.surfaces import Plane, loss_surface, random_plane
from landscape.surfaces.points import Options, evaluator, ways

X, Y = (-1, 1, 9), (-1, 1, 9)


def trained(kind: str) -> tuple[Objective, Plane]:
    problem = network(kind, dtype=torch.float32, examples=24)
    optimizer = torch.optim.SGD(problem.model.parameters(), lr=0.1, momentum=0.9)
    for _ in range(25):
        optimizer.zero_grad()
        problem.loss(problem.model(problem.data[0]), problem.data[1]).backward()
        optimizer.step()
    objective = Objective(problem.model.eval(), problem.loss, problem.data, batch_size=10)
    return objective, random_plane(objective)


@pytest.mark.parametrize("kind", ["mlp", "cnn"])
def test_the_bound_holds_on_the_whole_grid(kind: str) -> None:
    objective, plane = trained(kind)
    full, low = (loss_surface(objective, plane, X, Y, precision=p) for p in (None, "bf16"))
    off = np.abs(low.loss / full.loss - 1)
    assert np.median(off) > 1e-5  # another precision indeed
    assert np.mean(off <= low.plane["precision_bound"]) >= 0.95
    assert low.plane["precision_error"] <= off.max() * 1.001 and low.plane["precision_bound"] == 2.5 * low.plane["precision_error"]
    assert "precision" not in full.plane and low.cost.forwards > 81


@pytest.mark.parametrize("kind", ["mlp", "cnn"])
def test_every_way_is_near_and_the_plain_one_is_autocast(kind: str) -> None:
    objective, plane = trained(kind)
    with undisturbed(objective.device):
        for index, batch in objective.batches.seeded():
            exact = evaluator(objective, plane, 2, "plain")(batch, index, [(0.3, -0.4)]).loss
            with torch.autocast("cpu", torch.bfloat16):
                outputs = torch.func.functional_call(objective.model, plane.at(0.3, -0.4), (batch[0],))
            by_hand = F.cross_entropy(outputs.float(), batch[1]).double()
            options = Options(low=torch.bfloat16)
            for way in ways(objective, batch, options):
                found = evaluator(objective, plane, 2, way, options)(batch, index, [(0.3, -0.4)]).loss
                assert not torch.equal(found, exact), way
                torch.testing.assert_close(found, exact, rtol=0.03, atol=0)
                if way == "plain":
                    assert torch.equal(found[0], by_hand)


def shifted(loss: Any = F.mse_loss, bias: float = 1000.0) -> tuple[Objective, Plane]:
    """A loss of the last digits of its outputs, which bfloat16 does not have."""
    torch.manual_seed(0)
    model, x = nn.Linear(4, 2), torch.randn(12, 4)
    nn.init.constant_(model.bias, bias)
    objective = Objective(model, loss, (x, bias + torch.randn(12, 2)), takes="outputs", batch_size=4)
    return objective, random_plane(objective)


def test_what_is_too_far_off_is_refused_before_the_work(tmp_path: Path) -> None:
    calls = []

    def loss(outputs: Tensor, target: Tensor) -> Tensor:
        calls.append(1)
        return F.mse_loss(outputs, target)

    objective, plane = shifted(loss)
    with pytest.raises(
        ValueError, match=r"precision='bf16' changes the loss at \(.*\) by .* %.* at most 5 % are allowed: leave precision out"
    ):
        loss_surface(objective, plane, X, Y, precision="bf16", out=tmp_path / "run.h5")
    assert len(calls) < 81 and not (tmp_path / "run.h5").exists()


def test_what_turns_out_too_far_off_leaves_nothing_behind(tmp_path: Path) -> None:
    """A narrow valley away from corners and middle: found when its losses are there."""
    torch.manual_seed(0)
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, 1.0)
    x = torch.full((8, 1), 1.0)

    def loss(outputs: Tensor, target: Tensor) -> Tensor:
        return ((outputs - 1.2505) ** 2).mean()

    objective = Objective(model, loss, (x, x), takes="outputs", batch_size=4)
    plane = Plane(objective.parameters, ({"weight": torch.full((1, 1), 0.99)},))
    with pytest.raises(ValueError, match=r"changes the loss at \(0.25, 0\)"):
        loss_surface(objective, plane, (-1, 1, 17), None, precision="bf16", out=tmp_path / "run.h5", save_every=0)
    assert store.groups(tmp_path / "run.h5") == []
    assert loss_surface(objective, plane, (-1, 1, 17), None, out=tmp_path / "run.h5").loss.min() < 1e-3


def test_it_is_another_surface_and_goes_on_as_it_began(tmp_path: Path) -> None:
    objective, plane = trained("mlp")
    path = tmp_path / "run.h5"
    low = loss_surface(objective, plane, X, Y, precision="bf16", out=path)
    with pytest.raises(ValueError, match="holds another surface 'surface': the precisions differ"):
        loss_surface(objective, plane, X, Y, out=path)
    again = loss_surface(objective, plane, X, Y, precision="bf16", out=path)
    assert np.array_equal(again.loss, low.loss) and again.plane["precision_bound"] == low.plane["precision_bound"]


def test_where_there_is_no_lower_precision() -> None:
    problem = network("cnn")
    objective = Objective(*problem)
    plane = random_plane(objective)
    with pytest.raises(ValueError, match="precision='bf16' lowers float32, and the objective computes in float64"):
        loss_surface(objective, plane, X, Y, precision="bf16")
    with pytest.raises(ValueError, match="precision must be None or 'bf16', got 'fp8'"):
        loss_surface(objective, plane, X, Y, precision="fp8")
    single = Objective(*network("cnn", dtype=torch.float32))
    with pytest.raises(ValueError, match="is there for statistics='keep' only"):
        loss_surface(single, random_plane(single), X, Y, precision="bf16", statistics="recompute")
