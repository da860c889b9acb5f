"""Objective against plain loops over the data, and the rule that a model comes back as it was."""

import copy
import math
import random

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from landscape.objective import NonFiniteLossError, Objective, tensors_sha256


class Tied(nn.Module):
    """Embedding and output share their weight; dropout and layer norm in between."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 6)
        self.norm = nn.LayerNorm(6)
        self.drop = nn.Dropout(0.5)
        self.out = nn.Linear(6, 11, bias=False)
        self.out.weight = self.embed.weight
        self.unused = nn.Parameter(torch.ones(3))

    def forward(self, tokens: Tensor) -> Tensor:
        return self.out(self.drop(self.norm(self.embed(tokens)))).mean(1)


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.layer(a * b)


def cnn() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 5))


@pytest.fixture
def images() -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(1)
    return torch.randn(23, 1, 8, 8, generator=g), torch.randint(0, 5, (23,), generator=g)


@pytest.fixture
def model() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = cnn()
        net(torch.randn(16, 1, 8, 8))  # running statistics that are not the initial ones
    return net


def state_of(model: nn.Module) -> tuple[str, list[bool], list[bool], list[int]]:
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    return (
        tensors_sha256(tensors),
        [p.requires_grad for p in model.parameters()],
        [m.training for m in model.modules()],
        [t.data_ptr() for t in tensors.values()],
    )


def random_states() -> tuple[bytes, object, bytes]:
    return torch.get_rng_state().numpy().tobytes(), random.getstate(), np.random.get_state()[1].tobytes()


@pytest.mark.parametrize("batch_size", [1, 5, 23, 1000])
def test_loss_and_gradient_equal_the_whole_set_at_once_for_any_batch_size(model: nn.Module, images, batch_size: int) -> None:
    x, y = images
    reference = copy.deepcopy(model).double().eval()
    loss = F.cross_entropy(reference(x.double()), y)
    loss.backward()
    objective = Objective(model, F.cross_entropy, images, batch_size=batch_size, dtype=torch.float64)
    value, grads = objective.gradient()
    assert math.isclose(objective.loss(), loss.item(), rel_tol=1e-12)
    assert math.isclose(value.item(), loss.item(), rel_tol=1e-12)
    for name, p in reference.named_parameters():
        torch.testing.assert_close(grads[name], p.grad, rtol=1e-10, atol=1e-13)
    right = (reference(x.double()).argmax(1) == y).double().mean()
    assert math.isclose(objective.evaluate().accuracy.item(), right.item(), rel_tol=1e-12)


def test_sum_reduction_and_batch_lists_weigh_examples_equally(model: nn.Module, images) -> None:
    x, y = images
    uneven = [(x[:16], y[:16]), (x[16:], y[16:])]
    whole = Objective(model, F.cross_entropy, images, dtype=torch.float64).loss()
    summed = Objective(model, nn.CrossEntropyLoss(reduction="sum"), uneven, dtype=torch.float64, reduction="sum").loss()
    listed = Objective(model, F.cross_entropy, uneven, dtype=torch.float64).loss()
    loader = Objective(model, F.cross_entropy, DataLoader(TensorDataset(x, y), batch_size=9), dtype=torch.float64).loss()
    by_model = Objective(model, lambda model, batch: F.cross_entropy(model(batch[0]), batch[1]), images, dtype=torch.float64).loss()
    for other in (summed, listed, loader, by_model):
        assert math.isclose(whole, other, rel_tol=1e-12)


def test_batch_statistics_are_those_of_training_mode(model: nn.Module, images) -> None:
    x, y = images
    expected = F.cross_entropy(copy.deepcopy(model).train()(x), y).item()
    before = state_of(model)
    objective = Objective(model, F.cross_entropy, images, batch_norm="batch", batch_size=1000)
    assert math.isclose(objective.loss(), expected, rel_tol=1e-6)
    assert state_of(model) == before
    assert not math.isclose(Objective(model, F.cross_entropy, images).loss(), expected, rel_tol=1e-3)


@pytest.mark.parametrize("training", [True, False])
def test_model_and_random_state_come_back_unchanged(images, training: bool) -> None:
    net = Tied().train(training)
    net.norm.weight.requires_grad_(False)
    tokens = torch.arange(20).reshape(10, 2) % 11
    loader = DataLoader(TensorDataset(tokens, torch.arange(10)), batch_size=3, shuffle=True, generator=torch.Generator().manual_seed(3))
    before, rng, own = state_of(net), random_states(), loader.generator.get_state()
    objective = Objective(net, F.cross_entropy, loader, dtype=torch.float64)
    objective.loss()
    objective.gradient()
    objective.provenance()
    with pytest.raises(RuntimeError, match="stop here"):
        Objective(net, lambda model, batch: stop(model, batch), loader).loss()
    assert state_of(net) == before
    assert random_states() == rng
    assert torch.equal(loader.generator.get_state(), own)


def stop(model: nn.Module, batch: object) -> Tensor:
    raise RuntimeError("stop here")


def test_shuffled_loader_gives_the_same_batches_in_every_pass(images) -> None:
    x, y = images
    loader = DataLoader(TensorDataset(x, y), batch_size=4, shuffle=True)
    objective = Objective(cnn(), F.cross_entropy, loader)
    first, second = ([b[1].tolist() for b in objective.batches] for _ in range(2))
    assert first == second
    assert sum(first, []) != y.tolist()
    torch.rand(5)
    assert [b[1].tolist() for b in objective.batches] == first


def test_tied_weights_count_once_and_both_uses_move() -> None:
    net = Tied()
    tokens, target = torch.arange(20).reshape(10, 2) % 11, torch.arange(10)
    objective = Objective(net, F.cross_entropy, (tokens, target), dtype=torch.float64)
    assert objective.size == sum(p.numel() for p in net.parameters())
    moved = copy.deepcopy(net).double().eval()
    with torch.no_grad():
        moved.embed.weight.mul_(1.5)
    params = objective.parameters
    params["embed.weight"] = params["embed.weight"] * 1.5
    assert math.isclose(objective.loss(params), F.cross_entropy(moved(tokens), target).item(), rel_tol=1e-12)
    _, grads = objective.gradient()
    assert not grads["unused"].any() and grads["embed.weight"].any()


def test_objective_sees_later_training(model: nn.Module, images) -> None:
    objective = Objective(model, F.cross_entropy, images)
    before = objective.loss()
    with torch.no_grad():
        model[4].bias.add_(torch.arange(5.0))
    assert objective.loss() != before


def test_a_loss_with_class_weights_follows_the_dtype(model: nn.Module, images) -> None:
    weighted = nn.CrossEntropyLoss(weight=torch.arange(1.0, 6.0))
    double = Objective(model, weighted, images, dtype=torch.float64, batch_size=100).loss()
    assert math.isclose(double, Objective(model, weighted, images, batch_size=100).loss(), rel_tol=1e-5)
    assert weighted.weight.dtype == torch.float32


def test_two_inputs_and_dictionaries(images) -> None:
    net = TwoInputs()
    a, b, y = torch.randn(7, 4), torch.randn(7, 4), torch.arange(7) % 3
    expected = F.cross_entropy(net(a, b), y).item()
    for data in (((a, b), y), ({"a": a, "b": b}, y)):
        assert math.isclose(Objective(net, F.cross_entropy, data, batch_size=3).loss(), expected, rel_tol=1e-6)

    def dict_loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        return F.cross_entropy(model(batch["a"], batch["b"]), batch["labels"])

    objective = Objective(net, dict_loss, {"a": a, "b": b, "labels": y}, batch_size=3)
    assert math.isclose(objective.loss(), expected, rel_tol=1e-6)
    assert math.isnan(objective.evaluate().accuracy)


def test_vectors_and_names_agree(model: nn.Module, images) -> None:
    objective = Objective(model, F.cross_entropy, images)
    params = objective.parameters
    vector = objective.flatten(params)
    assert vector.shape == (objective.size,)
    back = objective.unflatten(vector)
    assert all(torch.equal(back[name], params[name]) for name in objective.names)


def test_only_the_chosen_parameters_vary(model: nn.Module, images) -> None:
    model[0].requires_grad_(False)
    assert Objective(model, F.cross_entropy, images).names == ["1.weight", "1.bias", "4.weight", "4.bias"]
    assert Objective(model, F.cross_entropy, images, params="all").names[0] == "0.weight"
    assert Objective(model, F.cross_entropy, images, params=["4.*"]).names == ["4.weight", "4.bias"]
    with pytest.raises(ValueError, match=r"no parameter matches \['fc.weight'\]"):
        Objective(model, F.cross_entropy, images, params=["fc.weight"])
    with pytest.raises(ValueError, match="params='all'"):
        Objective(model.requires_grad_(False), F.cross_entropy, images)


def test_cached_activations_and_wrappers_do_not_matter(images) -> None:
    class Caching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = cnn()

        def forward(self, x: Tensor) -> Tensor:
            self.last = self.net(x)
            return self.last

    net = Caching()
    net(images[0])
    kept = net.last
    objective = Objective(nn.DataParallel(net), F.cross_entropy, images)
    objective.loss()
    assert net.last is kept and objective.names[0] == "net.0.weight"


def test_non_finite_losses_say_where(model: nn.Module, images) -> None:
    x, y = images
    x = x.clone()
    x[12] = math.nan
    with pytest.raises(NonFiniteLossError, match="batch 2 .*data hold NaN"):
        Objective(model, F.cross_entropy, (x, y), batch_size=5).loss()
    with torch.no_grad():
        model[4].weight[0, 0] = math.inf
    with pytest.raises(NonFiniteLossError, match="parameter '4.weight'"):
        Objective(model, F.cross_entropy, images).gradient()


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"model": 3}, TypeError, "model must be a torch.nn.Module, got int"),
        ({"loss": 3}, TypeError, "loss must be callable"),
        ({"data": iter([])}, TypeError, "only once"),
        ({"data": []}, ValueError, "empty"),
        ({"data": (torch.zeros(0, 1, 8, 8), torch.zeros(0, dtype=torch.long))}, ValueError, "empty"),
        ({"data": (torch.zeros(3, 1, 8, 8), torch.zeros(4, dtype=torch.long))}, ValueError, r"same number of examples.*\[3, 4\]"),
        ({"loss": nn.CrossEntropyLoss(reduction="none")}, ValueError, "one number per batch"),
        ({"batch_size": 0}, ValueError, "batch_size must be a positive integer, got 0"),
        ({"batch_norm": "train"}, ValueError, "batch_norm must be one of 'eval', 'batch', got 'train'"),
        ({"dtype": torch.int32}, ValueError, "floating"),
    ],
)
def test_wrong_input_says_what_is_wrong(model: nn.Module, images, change: dict, error: type, words: str) -> None:
    given = {"model": model, "loss": F.cross_entropy, "data": images} | change
    with pytest.raises(error, match=words):
        Objective(given.pop("model"), given.pop("loss"), given.pop("data"), **given).loss()


def test_data_hash_does_not_depend_on_batches(model: nn.Module, images) -> None:
    x, y = images
    whole = Objective(model, F.cross_entropy, images).provenance()
    cut = Objective(model, F.cross_entropy, [(x[:3], y[:3]), (x[3:], y[3:])]).provenance()
    other = Objective(model, F.cross_entropy, (x, y.flip(0))).provenance()
    assert whole.data_sha256 == cut.data_sha256 != other.data_sha256
    assert whole.parameter_sha256 == other.parameter_sha256


def test_shards_run_across_batch_borders(model: nn.Module, images) -> None:
    x, y = images
    for batches in (images, [(x[:4], y[:4]), (x[4:15], y[4:15]), (x[15:], y[15:])]):
        shards = list(Objective(model, F.cross_entropy, batches).batches.shards(5))
        assert [len(s[1]) for s in shards] == [5, 5, 5, 5, 3]
        assert torch.equal(torch.cat([s[1] for s in shards]), y)
        assert torch.equal(torch.cat([s[0] for s in shards]), x)


def test_cost_counts_passes_over_the_data(model: nn.Module, images) -> None:
    objective = Objective(model, F.cross_entropy, images, batch_size=5)
    meter = objective.meter()
    objective.loss()
    objective.gradient()
    objective.gradient()
    cost = meter.cost()
    assert (cost.forwards, cost.gradients, cost.hvps) == (1, 2, 0) and cost.seconds > 0
