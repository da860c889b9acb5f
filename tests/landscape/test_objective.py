"""Objective against plain loops over the data, and the rule that a model comes back as it was."""

import copy
import functools
import math
import random

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import landscape
from landscape.curvature import HessianOperator
from landscape.objective import NonFiniteLossError, Objective, tensors_sha256
from landscape.provenance import differing
from landscape.results.types import Provenance


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


class Writing(nn.Module):
    """Writes its buffers wherever it is evaluated, in all three ways, and draws random numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("mean", torch.zeros(3))
        self.register_buffer("last", torch.zeros(2))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.mean.data.mul_(0.9).add_(0.1 * x.detach().mean(0))
        self.last = self.last + 1
        return self.layer(F.dropout(x - self.mean, 0.5)) * self.calls * self.last


MEASURES = {
    "loss": lambda o: o.loss(),
    "gradient": lambda o: o.flatten(o.gradient()[1]).tolist(),
    "eigenvalues": lambda o: landscape.top_eigenpairs(o, k=1, tol=1e-6).values.tolist(),
    "trace": lambda o: landscape.hessian_trace(o).value,
    "m_sharpness": lambda o: landscape.m_sharpness(o, m=2).value,
    "surface": lambda o: landscape.loss_surface(o, landscape.random_plane(o), (-1, 1, 3), None).loss.tolist(),
    "accuracy": lambda o: o.evaluate().accuracy.item(),
}


@pytest.mark.parametrize("measure", MEASURES)
def test_a_model_that_writes_buffers_and_draws_has_one_value_and_stays_as_it_was(measure: str) -> None:
    g = torch.Generator().manual_seed(0)
    net, x, y = Writing(), torch.randn(10, 3, generator=g), torch.arange(10) % 2
    before, rng = state_of(net), random_states()
    objective = Objective(net, F.cross_entropy, (x, y), batch_size=4)
    first = MEASURES[measure](objective)
    assert state_of(net) == before and random_states() == rng
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(99)
        assert MEASURES[measure](objective) == first
        assert MEASURES[measure](Objective(net, F.cross_entropy, (x, y), batch_size=4)) == first
    assert state_of(net) == before


def test_passes_agree_on_a_model_that_writes_buffers_and_draws() -> None:
    """Gradient, surface and Hessian are those of the loss that `loss` returns, draws and all."""
    net, x = Writing().double(), torch.randn(10, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    objective = Objective(net, F.cross_entropy, (x, torch.arange(10) % 2), batch_size=4)
    plane = landscape.random_plane(objective)
    assert landscape.loss_surface(objective, plane, (-1, 1, 3), None).loss[1] == pytest.approx(objective.loss(), rel=1e-12)
    point, h = objective.flatten(objective.parameters), 1e-5
    v = torch.randn(point.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    ends = [objective.unflatten(point + s * h * v) for s in (1, -1)]
    (up, up_gradient), (down, down_gradient) = (objective.gradient(end) for end in ends)
    assert (up - down).item() / 2 / h == pytest.approx(torch.dot(objective.flatten(objective.gradient()[1]), v).item(), rel=1e-6)
    expected = (objective.flatten(up_gradient) - objective.flatten(down_gradient)) / 2 / h
    for budget in (0, None):
        operator = HessianOperator(objective, memory_budget=budget)
        state = random_states()
        for _ in range(2):
            torch.testing.assert_close(operator.matvec(v), expected, rtol=1e-5, atol=1e-7)
        assert random_states() == state


@pytest.mark.parametrize("replace", ["assign", "to"])
def test_frozen_parameters_and_buffers_follow_the_model(model: nn.Module, images, replace: str) -> None:
    """`load_state_dict(assign=True)` and `to` put new tensors in place of those of construction time."""
    model[0].requires_grad_(False)
    other = copy.deepcopy(model)
    with torch.no_grad():
        other[0].weight.add_(0.3)
        other[1].running_mean.add_(0.5)
        other[4].weight.mul_(2)
    objective = Objective(model, F.cross_entropy, images)
    old = objective.loss()
    if replace == "assign":
        model.load_state_dict(copy.deepcopy(other.state_dict()), assign=True)
    else:
        model.double()
        model.load_state_dict(other.state_dict())
        model.float()
    expected = Objective(other, F.cross_entropy, images)
    assert objective.loss() == expected.loss() != old
    plane, there = landscape.random_plane(objective), landscape.random_plane(expected)
    surfaces = [landscape.loss_surface(o, p, (-1, 1, 3), None).loss for o, p in ((objective, plane), (expected, there))]
    assert np.array_equal(*surfaces)
    assert landscape.m_sharpness(objective, m=5).value == landscape.m_sharpness(expected, m=5).value


def test_the_callers_inference_mode_and_autocast_change_nothing(model: nn.Module, images) -> None:
    objective = Objective(model, F.cross_entropy, images, batch_size=5)
    expected = {name: measure(objective) for name, measure in MEASURES.items()}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert {name: measure(objective) for name, measure in MEASURES.items()} == expected
    with torch.inference_mode():
        inside = Objective(model, F.cross_entropy, tuple(t.clone() for t in images), batch_size=5)  # data made in inference mode too
        assert {name: measure(o) for o in (objective, inside) for name, measure in MEASURES.items()} == expected


def test_accuracy_is_never_invented(images) -> None:
    g = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, 6, (4, 6), generator=g)
    lm = nn.Embedding(6, 6)  # as many classes as tokens: outputs (4, 6, 6) would compare without a complaint
    counts, x = torch.randint(0, 5, (9, 1), generator=g), torch.randn(9, 3, generator=g)

    def shifted(outputs: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(outputs.flatten(0, 1), target.flatten())

    def squares(outputs: Tensor, target: Tensor) -> Tensor:
        return F.mse_loss(outputs, target.float())

    def binary(outputs: Tensor, target: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(outputs[:, 0], target.float())

    for net, loss, data in (
        (lm, shifted, (tokens, tokens)),
        (nn.Embedding(6, 7), shifted, (tokens, tokens)),
        (nn.Linear(3, 1), squares, (x, counts)),
        (nn.Linear(3, 5), squares, (x, counts.expand(9, 5).contiguous())),
        (nn.Linear(3, 1), binary, (x, counts[:, 0] % 2)),
    ):
        objective = Objective(net, loss, data, batch_size=2)
        assert math.isnan(objective.evaluate().accuracy)
        assert np.isnan(landscape.loss_surface(objective, landscape.random_plane(objective), (-1, 1, 3), None).accuracy).all()
    pixels = nn.Conv2d(1, 5, 1)
    target = torch.randint(0, 5, (23, 8, 8), generator=g)
    for loss in (F.cross_entropy, nn.CrossEntropyLoss(), functools.partial(F.cross_entropy, label_smoothing=0.1)):
        found = Objective(pixels, loss, (images[0], target), batch_size=5).evaluate().accuracy
        assert found.item() == pytest.approx((pixels(images[0]).argmax(1) == target).double().mean().item())


def test_a_list_of_two_tensors_is_said_to_be_no_data_set(model: nn.Module, images) -> None:
    for loss in (F.cross_entropy, nn.CrossEntropyLoss(), lambda outputs, target: F.cross_entropy(outputs, target)):
        with pytest.raises(TypeError, match=r"a list is a list of batches; give the tuple \(inputs, targets\)"):
            Objective(model, loss, list(images))
    x = torch.randn(4, 3)
    with pytest.raises(TypeError, match=r"give the tuple \(X, Y\) instead of \[X, Y\]"):
        Objective(nn.Linear(3, 3), F.mse_loss, [x, x])
    assert Objective(nn.Linear(3, 3), lambda model, batch: model(batch).square().mean(), [x, x[:3]]).examples == 7


def test_activations_kept_in_containers_do_not_matter(images) -> None:
    class Caching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.kept = cnn(), {"list": [], "pair": None}

        def forward(self, x: Tensor) -> Tensor:
            outputs = self.net(x)
            self.kept = {"list": [*self.kept["list"][:1], outputs], "pair": (outputs, [outputs * 2])}
            return outputs

    net = Caching()
    net(images[0])
    kept = net.kept
    objective = Objective(net, F.cross_entropy, images)
    assert objective.loss() == objective.loss() and objective.gradient()[0] == objective.gradient()[0]
    assert net.kept is kept and len(kept["list"]) == 1


def test_the_data_hash_is_of_what_was_given(model: nn.Module, images) -> None:
    x, y = images
    for data in (images, [(x[:9], y[:9]), (x[9:], y[9:])], DataLoader(TensorDataset(x, y), batch_size=6)):
        hashes = {Objective(model, F.cross_entropy, data, dtype=dtype).batches.sha256 for dtype in (None, torch.float64, torch.bfloat16)}
        assert hashes == {Objective(model, F.cross_entropy, images).batches.sha256}


def test_provenance_tells_questions_apart(model: nn.Module, images) -> None:
    def question(loss=F.cross_entropy, data=images, **options: object) -> Provenance:
        return Objective(model, loss, data, **options).provenance()

    now = question()
    assert differing(now, question()) == differing(now, question(batch_size=3)) == differing(now, question(data=[images])) == []
    assert now.loss_at_parameters == Objective(model, F.cross_entropy, images).loss()
    smooth = question(lambda o, t: F.cross_entropy(o, t, label_smoothing=0.1))
    assert differing(now, smooth) == differing(question(lambda o, t: F.cross_entropy(o, t)), smooth) == ["loss_at_parameters"]
    assert differing(now, question(reduction="sum")) == ["loss_at_parameters"]
    uneven = [(images[0][:3], images[1][:3]), (images[0][3:], images[1][3:])]
    assert differing(now, question(data=uneven, weight=lambda batch: 1.0)) == ["loss_at_parameters"]
    assert differing(now, question(params=["4.*"])) == ["varied_sha256"]
    assert differing(now, question(data=(images[0] + 1, images[1]))) == ["data_sha256"]
    batch = question(batch_norm="batch", batch_size=8)
    assert differing(batch, question(batch_norm="batch", batch_size=6)) == ["batch_size"] and now.batch_size is None
    assert differing(now, Provenance()) and "loss_at_parameters" not in differing(now, batch)
    with torch.no_grad():
        model[1].running_mean.add_(1)
    assert differing(now, question()) == ["parameter_sha256"]


def test_the_fingerprint_is_of_the_model_as_it_is_now_and_costs_nothing(model: nn.Module, images) -> None:
    objective = Objective(model, F.cross_entropy, images)
    meter = objective.meter()
    first = objective.provenance().loss_at_parameters
    with torch.no_grad():
        model[4].bias.add_(torch.arange(5.0))
    assert objective.provenance().loss_at_parameters == objective.loss() != first
    assert meter.cost().forwards == 1  # the one of `loss`
    with torch.no_grad():
        model[4].bias.fill_(math.nan)
    assert math.isnan(objective.provenance().loss_at_parameters)
    assert differing(objective.provenance(), Objective(model, F.cross_entropy, images).provenance()) == []


def test_hooks_are_part_of_the_model(model: nn.Module, images) -> None:
    plain = Objective(model, F.cross_entropy, images).loss()
    model[4].register_forward_hook(lambda module, inputs, outputs: 2 * outputs)
    expected = F.cross_entropy(copy.deepcopy(model).eval()(images[0]), images[1]).item()
    assert Objective(model, F.cross_entropy, images, batch_size=100).loss() == pytest.approx(expected, rel=1e-6) != plain


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_recurrent_networks_have_gradients_on_a_gpu() -> None:
    """In evaluation mode cuDNN's recurrent kernels have none."""

    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm, self.out = nn.LSTM(3, 4, batch_first=True), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.lstm(x)[0][:, -1])

    net, x, y = Recurrent(), torch.randn(10, 5, 3), torch.arange(10) % 2
    cpu, gpu = (Objective(net, F.cross_entropy, (x, y), device=device) for device in ("cpu", "cuda"))
    torch.testing.assert_close(gpu.flatten(gpu.gradient()[1]).cpu(), cpu.flatten(cpu.gradient()[1]), rtol=1e-3, atol=1e-5)
    assert landscape.m_sharpness(gpu, m=3).value == pytest.approx(landscape.m_sharpness(cpu, m=3).value, rel=1e-2)
