"""Every way to evaluate points agrees with the plain loop, and the choice among them changes nothing."""

import copy
import random

import pytest
import torch
from problems import NETWORKS, network
from torch import Tensor, nn
from torch.nn import functional as F

from landscape.objective import Objective
from landscape.stateless import undisturbed
from landscape.surfaces import loss_surface, random_plane
from landscape.surfaces.points import evaluator, fastest, ways
from landscape.surfaces.together import chain_of
from sam_core import models

POINTS = [(x / 3, y / 2 - 1) for x in range(-3, 4) for y in range(4)]


class Written(nn.Module):
    """A chain in words of its own: a frozen layer, one without bias, functions, dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.three = nn.Linear(12, 7), nn.Linear(7, 6, bias=False), nn.Linear(6, 3)
        self.one.requires_grad_(False)
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.flatten(x, 1)
        x = F.gelu(self.one(x), approximate="tanh")
        x = self.drop(self.two(x)).tanh()
        return self.three(F.leaky_relu(x, 0.3))


def written() -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    return Written(), torch.randn(11, 3, 4), torch.randint(0, 3, (11,))


def agree(objective: Objective, dimensions: int = 2, tolerance: float = 1e-10) -> list[str]:
    """Check every way, and return their names."""
    plane = random_plane(objective, seed=3)
    points = POINTS if dimensions == 2 else [(x, 0.0) for x, _ in POINTS]
    with undisturbed(objective.device):
        for index, batch in objective.batches.seeded():
            expected, right, _ = evaluator(objective, plane, dimensions, "plain")(batch, index, points)
            for way in ways(objective, batch):
                losses, rights, _ = evaluator(objective, plane, dimensions, way)(batch, index, points)
                torch.testing.assert_close(losses, expected, rtol=tolerance, atol=tolerance * 1e-2)
                assert (right is None) == (rights is None)
                if right is not None:
                    assert torch.equal(right, rights)
    return [*ways(objective, batch)]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@pytest.mark.parametrize("kind", [*NETWORKS, "written", "resnet20", "vit_tiny"])
def test_every_way_gives_the_losses_of_the_plain_loop(kind: str, dtype: torch.dtype, tolerance: float) -> None:
    if kind == "written":
        model, x, y = written()
        objective = Objective(model.to(dtype), F.cross_entropy, (x.to(dtype), y), batch_size=4)
    elif kind in NETWORKS:
        objective = Objective(*network(kind, dtype=dtype), batch_size=5)
    else:
        torch.manual_seed(0)
        net = models.make(kind, 10, 3, image_size=32).to(dtype)
        objective = Objective(net, F.cross_entropy, (torch.randn(3, 3, 32, 32, dtype=dtype), torch.arange(3)), batch_size=2)
    found = agree(objective, tolerance=tolerance)
    expected = {"cnn": "channels_last", "resnet20": "channels_last, overwriting", "written": "together"}.get(kind, "plain")
    assert expected in found


def test_a_line_other_losses_and_regression() -> None:
    model, x, y = written()
    model, x = model.double(), x.double()
    assert "together" in agree(Objective(model, F.cross_entropy, (x, y), batch_size=4), dimensions=1)
    smoothed = nn.CrossEntropyLoss(label_smoothing=0.1, weight=torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64))
    assert "together" in agree(Objective(model, smoothed, (x, y), batch_size=4))
    assert "together" in agree(Objective(model, F.mse_loss, (x, torch.randn(11, 3, dtype=torch.float64)), batch_size=4))
    summed = Objective(model, lambda outputs, target: F.cross_entropy(outputs, target, reduction="sum"), (x, y), reduction="sum")
    assert "together" in agree(summed)


@pytest.mark.parametrize(
    "model",
    [
        nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 3)),
        nn.Sequential(nn.Linear(4, 4), nn.Softmax(1), nn.Linear(4, 3)),
        nn.Sequential(nn.Tanh(), nn.Linear(4, 3)),
        nn.Sequential(nn.Linear(4, 4), nn.Flatten(0), nn.Linear(44, 3)),
    ],
    ids=["layer norm", "softmax", "not linear first", "across examples"],
)
def test_what_is_no_chain_is_left_to_the_loop(model: nn.Module) -> None:
    data = (torch.randn(11, 4), torch.arange(11) % 3)
    assert chain_of(Objective(model, F.cross_entropy, data)) is None


def test_hooks_are_part_of_the_model() -> None:
    model, x, y = written()
    model.two.register_forward_hook(lambda module, given, output: output * 2)
    assert ways(Objective(model, F.cross_entropy, (x, y)), (x, y)).keys() == {"plain"}


def test_a_way_that_is_wrong_is_never_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x, y = written()
    objective = Objective(model, F.cross_entropy, (x, y))
    plane = random_plane(objective)
    with undisturbed(objective.device):
        way, seconds = fastest(objective, plane, 2, (x, y), POINTS)
        assert set(seconds) == {"plain", "together", "together, sigmoids"} and (
            way != "plain" or seconds["plain"] < min(seconds.values()) * 1.01
        )
        layers = chain_of(objective)
        assert layers is not None
        monkeypatch.setattr("landscape.surfaces.points.chain_of", lambda of: [*layers[:1], *layers[2:]])  # a function is lost
        assert fastest(objective, plane, 2, (x, y), POINTS)[0] == "plain"


def test_recomputed_statistics_are_those_of_a_training_pass_at_every_point() -> None:
    problem = network("cnn")
    objective = Objective(*problem)  # one batch: its statistics, with the unbiased variance
    plane = random_plane(objective, seed=1)
    found = loss_surface(objective, plane, (-1, 1, 3), (-1, 1, 4), statistics="recompute")
    for j, b in enumerate(found.y):
        for i, a in enumerate(found.x):
            moved = copy.deepcopy(problem.model).train()
            with torch.no_grad():
                for name, p in moved.named_parameters():
                    p.copy_(plane.origin[name] + float(a) * plane.directions[0][name] + float(b) * plane.directions[1][name])
                for module in moved.modules():
                    if isinstance(module, nn.BatchNorm2d):
                        module.momentum = None
                        module.reset_running_stats()
                moved(problem.data[0])
                expected = problem.loss(moved.eval()(problem.data[0]), problem.data[1])
            assert found.loss[j, i] == pytest.approx(float(expected), rel=1e-10)
    assert found.cost.forwards == 24
    assert abs(found.loss - loss_surface(objective, plane, (-1, 1, 3), (-1, 1, 4)).loss).max() > 1e-3
    with pytest.raises(ValueError, match="has none"):
        loss_surface(Objective(*network("mlp")), random_plane(Objective(*network("mlp"))), statistics="recompute")


class Counting(nn.Module):
    """Counts its calls in a buffer, in place."""

    def __init__(self, layers: nn.Module) -> None:
        super().__init__()
        self.layers = layers
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.layers(x)


@pytest.mark.parametrize("kind", ["chain", "convolution"])
def test_looking_for_ways_runs_the_model_without_writing_into_its_buffers(kind: str) -> None:
    images = kind == "convolution"
    layers = nn.Sequential(nn.Conv2d(3, 4, 2), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 3)) if images else nn.Linear(12, 3)
    model = Counting(layers)
    x, y = torch.randn(8, 3, 2, 2) if images else torch.randn(8, 12), torch.randint(0, 3, (8,))
    objective = Objective(model, F.cross_entropy, (x, y))
    ways(objective, (x, y))
    loss_surface(objective, random_plane(objective), (-1, 1, 2), (-1, 1, 2))
    assert float(model.calls) == 0


def test_examples_that_cross_entropy_ignores_are_left_out_of_the_mean() -> None:
    model, x, y = written()
    y[6:9] = -100  # none in the first batch: the ways are not compared there
    assert "together" in agree(Objective(model.double(), F.cross_entropy, (x.double(), y), batch_size=4))


@pytest.mark.parametrize("rows", [1, 5])
def test_a_chain_that_takes_several_rows_an_example_is_evaluated_as_it_is(rows: int) -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2)).double(), torch.randn(20, rows, 3, dtype=torch.float64)
    assert agree(Objective(model, F.mse_loss, (x, x[..., :2]), batch_size=6)) == ["plain"]


def looked_at(outputs: Tensor, target: Tensor) -> Tensor:
    loss = F.cross_entropy(outputs, target)
    return loss if loss.item() < 1 else 2 * loss


def chosen_examples(outputs: Tensor, target: Tensor) -> Tensor:
    loss = F.cross_entropy(outputs, target, reduction="none")
    return loss[loss > 0.1].mean()


def random_shift(outputs: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(outputs + 0.1 * torch.randn_like(outputs), target)


@pytest.mark.parametrize("loss", [looked_at, chosen_examples, random_shift])
def test_losses_that_cannot_be_taken_at_many_points_at_once_are_taken_at_one(loss) -> None:
    model, x, y = written()
    objective = Objective(model.double(), loss, (x.double(), y), batch_size=4)
    plane = random_plane(objective, seed=3)
    surface = loss_surface(objective, plane, (-1, 1, 15), (-1, 1, 15))
    assert surface.plane["way"] == "plain"
    assert abs(surface.loss[3, 11] - objective.loss(plane.at(surface.x[11], surface.y[3]))) < 1e-12


class Branches(nn.Module):
    """Reads some tensors twice, keeps views of others, and normalises in place: what may be overwritten is not obvious."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.three = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
        self.norm, self.last, self.same = nn.BatchNorm2d(4), nn.Linear(4, 3), nn.Identity()
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        a = self.one(x)
        b = self.relu(a) + a  # a is read twice
        c = self.same(self.norm(self.two(b)))
        view = c[:, :, ::2]  # and c through a view
        d = F.relu(c)
        e = self.three(d) + b.mean((2, 3), keepdim=True)  # a smaller tensor is added
        f = torch.add(self.relu(e), d)
        return self.last((f.mean((2, 3)) + view.mean((2, 3))).relu() + b.amax((2, 3)))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_only_what_nothing_else_reads_is_overwritten(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = Branches().to(dtype)
    objective = Objective(model, F.cross_entropy, (torch.randn(6, 3, 4, 4, dtype=dtype), torch.arange(6) % 3), batch_size=4)
    plane = random_plane(objective, seed=3)
    assert [*ways(objective, (torch.randn(2, 3, 4, 4, dtype=dtype), torch.zeros(2)))] == [
        "channels_last, overwriting",
        "rewritten",
        "plain",
    ]
    with undisturbed(objective.device):
        for index, batch in objective.batches.seeded():
            bits = [evaluator(objective, plane, 2, way)(batch, index, POINTS) for way in ("channels_last", "channels_last, overwriting")]
            assert all(torch.equal(*pair) for pair in zip(*(b[:2] for b in bits), strict=True))


def test_tanh_by_sigmoids_is_left_where_small_numbers_count() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2)), 1e-6 * torch.randn(64, 4)
    torch.nn.init.zeros_(model[0].bias)
    with torch.no_grad():
        model[2].weight.mul_(1e6)  # tanh(1e-6) is off by a tenth that way
    objective = Objective(model, F.mse_loss, (x, torch.randn(64, 2)))
    with undisturbed(objective.device):
        way, seconds = fastest(objective, random_plane(objective), 2, next(iter(objective.batches)), POINTS)
    assert way in ("together", "plain") and set(seconds) == {"together", "plain"}


class Strange(nn.Module):
    """A convolutional network whose middle is the test's own."""

    def __init__(self, middle) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one, self.two, self.norm, self.last = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.Linear(4, 3)
        self.middle = (middle,)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.middle[0](self, x).mean((2, 3)))


def another_name(net: nn.Module, x: Tensor) -> Tensor:
    a = net.one(x)
    b = a
    b += net.two(F.relu(a.clone()))
    return F.relu(b) + a  # a is b


def another_name_of_no_layer(net: nn.Module, x: Tensor) -> Tensor:
    a = net.one(x).sigmoid()
    b = a
    b += net.two(x.mean(1, keepdim=True).expand(-1, 4, -1, -1))
    return b.relu() + a


def drawn_by_python(net: nn.Module, x: Tensor) -> Tensor:
    a = net.one(x)
    return a * (1 + random.random()) + F.relu(net.two(a))


def drawn_without_inputs(net: nn.Module, x: Tensor) -> Tensor:
    return F.relu(net.one(x) + torch.randn(4, 1, 1, dtype=torch.float64))


def used_twice(net: nn.Module, x: Tensor) -> Tensor:
    a = net.two(net.one(x)).relu()
    b = net.two(net.two(a) + a)
    return b.relu() + b


def in_halves(net: nn.Module, x: Tensor) -> Tensor:
    a, b = net.one(x).chunk(2, 1)
    return torch.cat([F.relu(a) + b, b], 1)


def counts(net: nn.Module, x: Tensor) -> Tensor:
    net.calls = getattr(net, "calls", 0) + 1
    return F.relu(net.norm(net.one(x)))


@pytest.mark.parametrize(
    "middle", [another_name, another_name_of_no_layer, drawn_by_python, drawn_without_inputs, used_twice, in_halves, counts]
)
def test_strange_networks_are_the_same_in_every_way_and_on_every_batch(middle) -> None:
    model = Strange(middle)
    torch.manual_seed(0)
    data = torch.randn(8, 3, 5, 5, dtype=torch.float64), torch.tensor([0, 1, 2, -100, 0, 1, 2, 2])
    objective = Objective(model, F.cross_entropy, data, batch_size=4)
    plane, built = random_plane(objective), {}
    with undisturbed(objective.device):
        for index, batch in objective.batches.seeded():
            built = built or {way: build(plane, 2) for way, build in ways(objective, batch).items()}  # traced where batch 0 draws
            expected = built["plain"](batch, index, POINTS[:3]).loss
            for way, run in built.items():
                torch.testing.assert_close(run(batch, index, POINTS[:3]).loss, expected, rtol=1e-10, atol=0, msg=way)
    assert not hasattr(model, "calls")


def doubled(net: nn.Module, x: Tensor) -> Tensor:
    return net.one(x.mul_(2))


def test_a_network_that_writes_into_its_inputs_is_refused_with_the_data_as_they_were() -> None:
    x = torch.randn(8, 3, 5, 5, dtype=torch.float64)
    before = x.clone()
    objective = Objective(Strange(doubled), F.cross_entropy, (x, torch.arange(8) % 3), batch_size=4)
    with pytest.raises(ValueError, match="Strange writes into its inputs, so every pass would see other data"):
        loss_surface(objective, random_plane(objective), (-1, 1, 3), None)
    assert torch.equal(x, before)


def test_hooks_run_in_every_pass_and_meet_tensors_only() -> None:
    met: list[str] = []
    model = Strange(lambda net, x: net.block(x))
    model.block = nn.Sequential(model.one, nn.ReLU())
    model.block.register_forward_hook(lambda module, inputs, output: met.append(type(output).__name__))
    objective = Objective(model, F.cross_entropy, (torch.randn(8, 3, 5, 5).double(), torch.arange(8) % 3), batch_size=4)
    batch = next(iter(objective.batches))
    plane = random_plane(objective)
    for way in ways(objective, batch):
        met.clear()
        with undisturbed(objective.device):
            evaluator(objective, plane, 2, way)(batch, 0, POINTS[:3])
        assert met == ["Tensor"] * 3, way
