"""Objectives that are not the same in two passes, each named by what changes; and those that are."""

import random

import pytest
import torch
from problems import network
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, Sampler, TensorDataset

from landscape.curvature import HessianOperator, top_eigenpairs
from landscape.curvature.determinism import NotDeterministicError, check_deterministic
from landscape.objective import Objective


class OwnShuffle(Sampler[int]):
    """Shuffles with a generator that nobody else can reach."""

    def __init__(self, n: int) -> None:
        self.n, self.draw = n, random.Random(0)

    def __iter__(self):
        return iter(self.draw.sample(range(self.n), self.n))

    def __len__(self) -> int:
        return self.n


class Augmented(Dataset):
    def __init__(self, x: Tensor, y: Tensor, generator: torch.Generator | None) -> None:
        self.x, self.y, self.generator = x, y, generator

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        return self.x[i] + 0.1 * torch.randn(self.x.shape[1:], generator=self.generator, dtype=self.x.dtype), self.y[i]

    def __len__(self) -> int:
        return len(self.x)


def test_a_loader_that_shuffles_by_itself_is_told_from_one_that_changes_its_data() -> None:
    model, loss, (x, y) = network("mlp")
    shuffled = DataLoader(TensorDataset(x, y), batch_size=4, sampler=OwnShuffle(13))
    with pytest.raises(NotDeterministicError, match=r"another order.*of 4 batches.*shuffle=False"):
        check_deterministic(Objective(model, loss, shuffled))
    augmented = DataLoader(Augmented(x, y, torch.Generator().manual_seed(0)), batch_size=4)
    with pytest.raises(NotDeterministicError, match=r"data differ between two passes \(4 of 4 batches.*augmentation"):
        check_deterministic(Objective(model, loss, augmented))

    class Growing(list):
        def __iter__(self):
            self.append((x, y))
            return iter(list(super().__iter__()))

    with pytest.raises(NotDeterministicError, match="one gave [0-9]+ batches, the next"):
        check_deterministic(Objective(model, loss, Growing([(x, y)])))


class OwnDropout(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(0)

    def __deepcopy__(self, memo):
        return self

    def forward(self, x: Tensor) -> Tensor:
        return x * (torch.rand(x.shape, generator=self.generator) < 0.5)


class Counting(nn.Module):
    """Keeps a state that is no buffer."""

    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        Counting.calls += 1
        return x * (1 + 0.1 * Counting.calls)


@pytest.mark.parametrize("part", [OwnDropout, Counting])
def test_a_model_that_draws_or_counts_by_itself_is_refused(part: type[nn.Module]) -> None:
    model, loss, data = network("mlp")
    with pytest.raises(NotDeterministicError, match=r"model or loss are not deterministic: batch 0 .* generator of its own"):
        check_deterministic(Objective(nn.Sequential(part(), *model), loss, data, batch_size=5))


def test_a_loss_that_draws_by_itself_is_refused_and_one_that_draws_globally_is_reported() -> None:
    model, _, data = network("mlp")
    own = torch.Generator().manual_seed(0)

    def noisy(outputs: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(outputs + torch.randn(outputs.shape, generator=own), target)

    def dropping(outputs: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(F.dropout(outputs, 0.5), target)

    with pytest.raises(NotDeterministicError, match="model or loss"):
        check_deterministic(Objective(model, noisy, data))
    objective = Objective(model, dropping, data, batch_size=4)
    assert check_deterministic(objective).draws
    assert objective.loss() == pytest.approx(check_deterministic(objective).loss, rel=1e-12)


def test_what_the_objective_places_passes() -> None:
    """Shuffling and augmentation from global generators, or a loader's own: every pass reads the same batches."""
    model, loss, (x, y) = network("mlp")
    for data in (
        (x, y),
        [(x[:5], y[:5]), (x[5:], y[5:])],
        DataLoader(TensorDataset(x, y), batch_size=4, shuffle=True),
        DataLoader(TensorDataset(x, y), batch_size=4, shuffle=True, generator=torch.Generator().manual_seed(1)),
        DataLoader(Augmented(x, y, None), batch_size=4),
    ):
        state = torch.get_rng_state()
        assert not check_deterministic(Objective(model, loss, data)).draws
        with torch.inference_mode():
            assert not check_deterministic(Objective(model, loss, data)).draws
        assert torch.equal(torch.get_rng_state(), state)


def test_two_passes_and_no_more_once_for_an_objective() -> None:
    model, loss, data = network("mlp")
    calls = []

    def counted(outputs: Tensor, target: Tensor) -> Tensor:
        calls.append(len(target))
        return loss(outputs, target)

    objective = Objective(model, counted, data, batch_size=5, takes="outputs")
    found = check_deterministic(objective)
    assert len(calls) == 6
    assert check_deterministic(objective) is found and objective.loss_at_parameters == found.loss
    assert len(calls) == 6
    assert Objective(model, loss, data, batch_size=5).loss_at_parameters == found.loss


def test_every_operator_of_a_sum_is_looked_at() -> None:
    _, loss, (x, y) = network("mlp")
    augmented = DataLoader(Augmented(x, y, torch.Generator().manual_seed(0)), batch_size=4)
    model = network("mlp").model
    total = HessianOperator(Objective(model, loss, (x, y))) + HessianOperator(Objective(model, loss, augmented))
    with pytest.raises(NotDeterministicError, match="augmentation"):
        top_eigenpairs(total, 1)
