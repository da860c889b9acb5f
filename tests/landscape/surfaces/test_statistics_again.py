"""Running statistics computed again at points, against PyTorch's own cumulative averages over the same batches in a copied model."""

import copy
import random

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from landscape.objective import Objective
from landscape.surfaces import Plane, loss_surface, random_plane


class Twice(nn.Module):
    """One normalisation, used twice in a pass."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.norm, self.last = nn.Linear(6, 5), nn.Linear(5, 5), nn.BatchNorm1d(5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(self.norm(self.two(torch.relu(self.norm(self.one(x)))))))


def averaged(model: nn.Module, plane: Plane, x: float, y: float, batches: list[list[Tensor]]) -> float:
    moved = copy.deepcopy(model).train()
    with torch.no_grad():
        for name, p in moved.named_parameters():
            p.copy_(plane.origin[name] + x * plane.directions[0][name] + y * plane.directions[1][name])
        for module in moved.modules():
            if isinstance(module, nn.BatchNorm1d):
                module.reset_running_stats()
                module.momentum = None
        for inputs, _ in batches:
            moved(inputs)
        moved.eval()
        return float(sum(F.cross_entropy(moved(inputs), target) for inputs, target in batches)) / len(batches)


@pytest.mark.parametrize("kind", ["in order", "shuffled by a generator", "workers that stay"])
def test_statistics_of_a_norm_used_twice_are_averages_over_the_batches_that_the_loss_sees(kind: str) -> None:
    torch.manual_seed(0)
    model, data = Twice().double(), TensorDataset(torch.randn(24, 6, dtype=torch.float64) + 1, torch.arange(24) % 3)
    loader: DataLoader = DataLoader(data, 8)
    if kind == "shuffled by a generator":
        loader = DataLoader(data, 8, shuffle=True, generator=torch.Generator().manual_seed(4))
    elif kind == "workers that stay":
        loader = DataLoader(data, 8, num_workers=1, persistent_workers=True)
    objective = Objective(model, F.cross_entropy, loader)
    plane = random_plane(objective, seed=1)
    surface = loss_surface(objective, plane, (-1, 1, 2), (0, 1, 2), statistics="recompute")
    batches = list(objective.batches)
    expected = [[averaged(model, plane, float(x), float(y), batches) for x in surface.x] for y in surface.y]
    np.testing.assert_allclose(surface.loss, expected, rtol=1e-10)


class Noisy(nn.Module):
    """Adds noise from Python's or NumPy's global generator, in evaluation mode too."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.source, self.last = source, nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(x + (random.random() if self.source == "python" else float(np.random.rand())))


@pytest.mark.parametrize("source", ["python", "numpy"])
def test_a_model_draws_the_same_numbers_at_every_point_from_any_generator(source: str) -> None:
    torch.manual_seed(0)
    objective = Objective(
        Noisy(source).double(), F.cross_entropy, (torch.randn(9, 6, dtype=torch.float64), torch.arange(9) % 3), batch_size=4
    )
    plane = random_plane(objective, seed=1)
    surface = loss_surface(objective, plane, (-1, 1, 3), (-1, 1, 2))
    expected = [[objective.loss(plane.at(float(x), float(y))) for x in surface.x] for y in surface.y]
    np.testing.assert_allclose(surface.loss, expected, rtol=1e-12)
