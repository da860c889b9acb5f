"""Permutations against networks that were permuted on purpose: the function stays, and the way back is found."""

import copy
import itertools

import numpy as np
import pytest
import torch
from problems import network
from torch import Tensor, nn
from torch.nn import functional as F

import sam_core
from landscape.objective import Objective
from landscape.surfaces import aligned, linear_path
from landscape.surfaces.alignment import channels_for, matching
from landscape.surfaces.weights import Weights, weights_of

X, Y = torch.randn(40, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(40) % 10


class Plain(nn.Module):
    """Convolution, flattened into linear layers, with what the networks of sam_core lack: concatenation, slices, layer norm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.other = nn.Conv2d(1, 5, 3), nn.Conv2d(1, 4, 3)
        self.hidden, self.norm, self.out = nn.Linear(7 * 36, 6), nn.LayerNorm(6), nn.Linear(6, 10)

    def forward(self, x: Tensor) -> Tensor:
        both = torch.cat([torch.relu(self.conv(x)), self.other(x)], 1)
        return self.out(self.norm(F.gelu(self.hidden(both[:, 2:].flatten(1)))))


class Tied(nn.Module):
    """Two layers share a weight that the pass meets first in the one that was defined second; batch norm is of a kind of its own."""

    class Norm(nn.BatchNorm1d):
        pass

    def __init__(self) -> None:
        super().__init__()
        self.second, self.first, self.norm = nn.Linear(6, 6), nn.Linear(6, 6), Tied.Norm(6)
        self.second.weight = self.first.weight
        self.into, self.out = nn.Linear(64, 6), nn.Linear(6, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(torch.tanh(self.first(self.into(x.flatten(1)))))
        return self.out(torch.tanh(self.second(x)))


MODELS = {
    "tied": Tied,
    "mlp": lambda: sam_core.models.make("mlp", 10, 1, image_size=8, seed=1),
    "small_cnn": lambda: sam_core.models.make("small_cnn", 10, 1, width=6, seed=1),
    "resnet8": lambda: sam_core.models.make("resnet8", 10, 1, width=4, seed=1),
    "resnet8-conv": lambda: sam_core.models.make("resnet8", 10, 1, width=4, shortcut="conv", seed=1),
    "plain": Plain,
}


def trained_looking(kind: str) -> Objective:
    """Return a network whose norm layers are those of no fresh one."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = MODELS[kind]()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.LayerNorm):
                module.weight.data.uniform_(0.5, 1.5)
                module.bias.data.uniform_(-0.5, 0.5)
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                module.running_mean.uniform_(-0.3, 0.3)
                module.running_var.uniform_(0.5, 2)
    return Objective(model.double(), F.cross_entropy, (X.double(), Y))


def permuted(objective: Objective, seed: int = 0) -> Weights:
    channels = channels_for(objective)
    to, draw = np.arange(channels.units), np.random.default_rng(seed)
    for units in channels.classes:
        to[units] = draw.permutation(units)
    own = weights_of(objective, objective.model, "own")
    return Weights(channels.permuted(own.parameters, to), channels.permuted(own.statistics, to))


@pytest.mark.parametrize("kind", MODELS)
def test_a_permuted_network_is_the_same_function_and_aligns_back(kind: str) -> None:
    objective = trained_looking(kind)
    state = copy.deepcopy(objective.model.state_dict())
    other = permuted(objective)
    moved = copy.deepcopy(objective.model)
    missing = moved.load_state_dict(other.parameters | other.statistics, strict=False)
    assert not missing.unexpected_keys
    changed = [n for n, p in objective.parameters.items() if not torch.equal(p, other.parameters[n])]
    assert len(changed) > len(objective.names) / 2
    with torch.no_grad():
        torch.testing.assert_close(moved.eval()(X.double()), objective.model.eval()(X.double()), rtol=1e-6, atol=1e-9)
    back = aligned(objective, objective.model, moved)
    for name, p in objective.parameters.items():
        assert torch.equal(back.parameters[name], p), name
    for name, s in back.statistics.items():
        assert torch.equal(s, state[name]), name
    straight = linear_path(objective, objective.model, moved, 9)
    bent_back = linear_path(objective, objective.model, moved, 9, align=True)
    assert straight.curve["distance"] > 1 and np.ptp(straight.loss) > 1e-3
    assert abs(bent_back.barrier) < 1e-10 and bent_back.curve["distance"] == 0 and bent_back.curve["aligned"]
    assert all(torch.equal(v, objective.model.state_dict()[k]) for k, v in state.items())


def test_the_matching_is_the_best_of_all_permutations() -> None:
    model = nn.Sequential(nn.Linear(3, 4, bias=False), nn.Tanh(), nn.Linear(4, 2)).double()
    objective = Objective(model, F.mse_loss, (torch.randn(5, 3).double(), torch.randn(5, 2).double()))
    g = torch.Generator().manual_seed(2)
    a, b = ({n: torch.randn(p.shape, generator=g, dtype=torch.float64) for n, p in objective.parameters.items()} for _ in range(2))
    back = aligned(objective, a, b)

    def similarity(order: tuple[int, ...]) -> float:
        moved = {"0.weight": b["0.weight"][list(order)], "2.weight": b["2.weight"][:, list(order)]}
        return sum(float((a[n] * m).sum()) for n, m in moved.items())

    best = max(itertools.permutations(range(4)), key=similarity)
    assert torch.equal(back.parameters["0.weight"], b["0.weight"][list(best)])
    assert torch.equal(back.parameters["2.weight"], b["2.weight"][:, list(best)]) and torch.equal(back.parameters["2.bias"], b["2.bias"])


def test_residual_streams_are_permuted_as_one() -> None:
    objective = trained_looking("resnet8")
    channels = channels_for(objective)
    sizes = sorted(len(c) for c in channels.classes)
    # Inside the three blocks 4, 8, 16; the stream of the first stage is padded by 4 and then by 8 units, which are its own classes.
    assert sizes == sorted([4, 8, 16, 4, 4, 8])
    again = matching(channels, objective.parameters, objective.parameters, seed=1)
    assert np.array_equal(again, np.arange(channels.units))


class Unknown(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(64, 6), nn.Linear(6, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x.flatten(1)).cumsum(1))


class Branching(Unknown):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if x.sum() > 0 else self.b(self.a(x.flatten(1)))


class MeanOfChannels(nn.Module):
    """As many channels as rows and columns: shapes do not tell which was averaged."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.out = nn.Conv2d(1, 8, 3, padding=1), nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.conv(x).mean(1).flatten(1))


def weighing(model: nn.Sequential) -> nn.Sequential:
    """Return the network with a hook that tells its units apart."""
    model[2].register_forward_hook(lambda module, given, out: out * torch.linspace(0, 1, out.shape[1]))
    return model


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (MeanOfChannels(), "reduces over units"),
        (nn.Sequential(nn.Flatten(), nn.Linear(64, 6), nn.MaxPool1d(3, 1, 1), nn.Linear(6, 10)), "pools over units"),
        (nn.Sequential(nn.Flatten(), nn.utils.parametrizations.weight_norm(nn.Linear(64, 6)), nn.Linear(6, 10)), "computed from others"),
        (weighing(nn.Sequential(nn.Flatten(), nn.Linear(64, 6), nn.ReLU(), nn.Linear(6, 10))), "its function changes where units"),
        (Unknown(), "cumsum.*is unknown. Understood are linear"),
        (Branching(), "its graph cannot be read"),
        (nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), "none of its units can be permuted"),
        (nn.Sequential(nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3, groups=2), nn.Flatten(), nn.Linear(64, 10)), "has groups"),
        (sam_core.models.make("vit_tiny", 10, 1, image_size=8), "cannot be aligned"),
    ],
)
def test_models_that_are_not_understood_are_refused(model: nn.Module, words: str) -> None:
    objective = Objective(model, F.cross_entropy, (X, Y))
    with pytest.raises(ValueError, match=words):
        linear_path(objective, model, copy.deepcopy(model), align=True)


def test_frozen_units_are_refused() -> None:
    objective = Objective(MODELS["mlp"](), F.cross_entropy, (X, Y), params=["1.*", "5.*"])
    with pytest.raises(ValueError, match=r"does not vary '3.weight'.*params='all'"):
        channels_for(objective)
    with pytest.raises(ValueError, match="inputs are one tensor"):
        channels_for(Objective(network("mlp").model, lambda model, batch: model(batch[0]).sum(), network("mlp").data))
