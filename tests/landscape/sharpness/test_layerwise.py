"""Shards computed layer by layer against the loop; networks whose layers cannot be told apart go other ways."""

import math
import operator
from collections.abc import Callable

import numpy as np
import pytest
import torch
from problems import network
from torch import Tensor, nn
from torch.nn import functional as F

from landscape.objective import Objective
from landscape.sharpness import fisher_trace, gradient_norm, m_sharpness, shards, worst_case
from landscape.sharpness.layerwise import layers_of
from landscape.sharpness.m_sharpness import climbed
from sam_core.optim.ascent import PNorm


class Residual(nn.Module):
    """Convolutions with and without normalisation, groups, strides, shortcuts, pools, and two layers that share a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True))
        self.second, self.norm = nn.Conv2d(4, 4, 3, padding=1, groups=2, bias=False), nn.BatchNorm2d(4, affine=False)
        self.shortcut = nn.Conv2d(4, 6, 1, stride=2)
        self.third, self.last_norm = nn.Conv2d(4, 6, 3, stride=2, padding=1), nn.GroupNorm(2, 6)
        self.before = nn.BatchNorm2d(6)  # behind a sum
        self.hidden, self.layer_norm, self.head = nn.Linear(6, 6), nn.LayerNorm(6), nn.Linear(6, 6, bias=False)
        self.head.weight = self.hidden.weight

    def forward(self, x: Tensor) -> Tensor:
        x = F.dropout(self.first(x), 0.5, self.training)
        y = torch.tanh(self.norm(self.second(x)))
        y = self.last_norm(self.third(y))
        y += self.shortcut(x)
        y = F.avg_pool2d(self.before(y), 2)
        y = y.view(y.size(0), 6, -1).mean(-1)
        return self.head(self.layer_norm(F.softplus(self.hidden(y))))


def residual(dtype: torch.dtype = torch.float64, examples: int = 13) -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Residual().to(dtype).eval()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.uniform_(-0.3, 0.3)
                module.running_var.uniform_(0.5, 2)
                if module.affine:
                    nn.init.uniform_(module.weight, 0.5, 1.5)
        model.shortcut.bias.requires_grad_(False)
        return model, (torch.randn(examples, 2, 8, 8, dtype=dtype), torch.randint(0, 6, (examples,)))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@pytest.mark.parametrize("m", [1, 5])
def test_the_loop_gives_the_same(dtype: torch.dtype, tolerance: float, m: int) -> None:
    model, data = residual(dtype)
    objective = Objective(model, nn.CrossEntropyLoss(label_smoothing=0.1), data)
    assert layers_of(objective) is not None
    measures: list[Callable[[bool], object]] = [
        lambda v: m_sharpness(objective, 0.2, m, vectorize=v),
        lambda v: m_sharpness(objective, 0.2, m, p=math.inf, adaptive=True, vectorize=v),
        lambda v: m_sharpness(objective, 0.2, m, p=3.0, steps=3, restarts=1, vectorize=v),
        lambda v: worst_case(objective, 0.05, m + 1, steps=4, vectorize=v),
        lambda v: gradient_norm(objective, m=m, p=1, vectorize=v),
        lambda v: fisher_trace(objective, labels="data", vectorize=v),
    ]
    for measure in measures:
        together, loop = measure(True), measure(False)
        np.testing.assert_allclose(together.per_shard, loop.per_shard, rtol=tolerance, atol=tolerance)
    ways = {way.kind for way in shards._found[objective].values()}
    assert ways == {"layers"}


def test_the_transforms_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "layers_of", lambda objective: None)
    model, data = residual()
    objective = Objective(model, F.cross_entropy, data)
    together, loop = (m_sharpness(objective, 0.2, 5, vectorize=v) for v in (True, False))
    np.testing.assert_allclose(together.per_shard, loop.per_shard, rtol=1e-10)
    assert {way.kind for way in shards._found[objective].values()} == {"vmap"}


def test_all_shards_at_once_climb_as_each_does_in_training() -> None:
    g = torch.Generator().manual_seed(0)
    gradients, weights = torch.randn(5, 40, generator=g), torch.randn(40, generator=g)
    gradients *= torch.tensor([1.0, 1e-30, 1e25, 0.0, 1.0]).unsqueeze(1)
    gradients[4, 3] = math.nan
    for ascent in (PNorm(0.3), PNorm(0.3, adaptive=True), PNorm(0.3, math.inf), PNorm(0.0)):
        expected = [weights + ascent.perturbation([row], [weights])[0] for row in gradients]
        found = climbed(ascent, gradients.clone(), weights)
        np.testing.assert_allclose(found, torch.stack(expected), rtol=1e-6, atol=1e-7)


def test_ignored_labels_and_squares() -> None:
    problem = network("mlp", examples=12)
    x, y = problem.data
    some = torch.where(torch.arange(12) % 3 == 0, -100, y)
    for loss, target in ((F.cross_entropy, some), (nn.MSELoss(), F.one_hot(y, 3).double()), (F.mse_loss, F.one_hot(y, 3).double())):
        objective = Objective(problem.model, loss, (x, target))
        together, loop = (m_sharpness(objective, 0.2, 3, vectorize=v) for v in (True, False))
        np.testing.assert_allclose(together.per_shard, loop.per_shard, rtol=1e-10)
        assert layers_of(objective) is not None


class Mixing(nn.Module):
    """A linear layer, and something that looks at all examples of a batch."""

    def __init__(self, what: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.layer, self.what = nn.Linear(5, 3).double(), what

    def forward(self, x: Tensor) -> Tensor:
        return self.what(self.layer(x))


@pytest.mark.parametrize(
    "what",
    [
        lambda x: x - x.mean(0),
        lambda x: x / x.shape[0],
        lambda x: x * x.size(0),
        lambda x: x + torch.flatten(x, 0)[:3],
        lambda x: x.view(-1, x.shape[0]).view(x.shape[0], -1),
        lambda x: x.cumsum(0),
        lambda x: x * 2 if x.sum() > 0 else x,
    ],
)
def test_what_looks_at_the_batch_is_left_to_other_ways(what: Callable[[Tensor], Tensor]) -> None:
    x, y = torch.randn(12, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64), torch.arange(12) % 3
    objective = Objective(Mixing(what), F.cross_entropy, (x, y))
    expected = m_sharpness(objective, 0.2, 3, vectorize=False)
    found = m_sharpness(objective, 0.2, 3)
    np.testing.assert_allclose(found.per_shard, expected.per_shard, rtol=1e-9)
    assert "layers" not in {way.kind for way in shards._found[objective].values()}


def doubled(layer: nn.Linear) -> nn.Linear:
    layer.forward = lambda x: 2 * F.linear(x, layer.weight, layer.bias)  # type: ignore[method-assign]
    return layer


def written(what: Callable[[Tensor], object]) -> Callable[[Tensor], Tensor]:
    """Return x behind something that has written into its memory."""

    def read_again(x: Tensor) -> Tensor:
        what(x)
        return x * x

    return read_again


@pytest.mark.parametrize(
    "what",
    [
        written(lambda x: F.relu(x, inplace=True)),
        written(lambda x: F.relu(x, True)),
        written(nn.ReLU(inplace=True)),
        written(lambda x: operator.iadd(x, 1.0)),
        written(lambda x: operator.itruediv(x.view(-1, 3), 2.0)),
        written(lambda x: operator.imul(torch.flatten(x, 1), 2.0)),
    ],
)
def test_what_is_overwritten_and_read_again_is_left_to_other_ways(what: Callable[[Tensor], Tensor]) -> None:
    """Without a trial against the loop, too."""
    x, y = torch.randn(12, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64), torch.arange(12) % 3
    objective = Objective(Mixing(what), F.cross_entropy, (x, y))
    loop, together = (m_sharpness(objective, 0.2, 4, vectorize=v) for v in (False, True))
    np.testing.assert_allclose(together.per_shard, loop.per_shard, rtol=1e-9)
    assert {way.kind for way in shards._found[objective].values()} == {"vmap"}


def test_what_is_overwritten_and_not_read_again_goes_layer_by_layer() -> None:
    def network(x: Tensor) -> Tensor:
        y = x * 2
        y += x
        y /= 3
        return F.relu(y, inplace=True)

    x, y = torch.randn(12, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64), torch.arange(12) % 3
    objective = Objective(Mixing(network), F.cross_entropy, (x, y))
    loop, together = (m_sharpness(objective, 0.2, 4, vectorize=v) for v in (False, True))
    np.testing.assert_allclose(together.per_shard, loop.per_shard, rtol=1e-10)
    assert {way.kind for way in shards._found[objective].values()} == {"layers"}


def test_images_viewed_as_rows_are_measured_though_a_faster_form_cannot_view_them() -> None:
    class Viewing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.convolution, self.head = nn.Conv2d(2, 3, 3), nn.Linear(3 * 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.sin(self.convolution(x)).view(x.size(0), -1))

    g = torch.Generator().manual_seed(0)
    objective = Objective(Viewing(), F.cross_entropy, (torch.randn(24, 2, 4, 4, generator=g), torch.arange(24) % 3))
    loop, found = m_sharpness(objective, 0.2, 1, vectorize=False), m_sharpness(objective, 0.2, 1)
    np.testing.assert_allclose(found.per_shard, loop.per_shard, rtol=1e-5, atol=1e-6)


def test_hooks_own_losses_batch_statistics_and_other_layers_have_no_known_layers() -> None:
    model, data = residual()
    assert layers_of(Objective(model, lambda o, t: F.cross_entropy(o, t), data)) is None
    assert layers_of(Objective(model, nn.CrossEntropyLoss(reduction="sum"), data, reduction="sum")) is None
    assert layers_of(Objective(model, F.cross_entropy, data, batch_norm="batch")) is None
    for kind in ("attention", "recurrent"):
        assert layers_of(Objective(*network(kind))) is None
    other = nn.Sequential(doubled(nn.Linear(5, 4)), nn.Linear(4, 3))
    assert layers_of(Objective(other, F.cross_entropy, (torch.zeros(6, 5), torch.zeros(6, dtype=torch.long)))) is None
    model.hidden.register_forward_hook(lambda module, inputs, output: 2 * output)
    assert layers_of(Objective(model, F.cross_entropy, data)) is None
