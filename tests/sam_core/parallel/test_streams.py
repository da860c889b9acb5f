"""SAMPa with both gradients at once on one device: stand-ins for the weights change nothing."""

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sam_core
from sam_core import Minibatch
from sam_core.optim.objectives import Bilevel
from sam_core.parallel import StreamedSAMPa

gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


class Odd(nn.Module):
    """Batch norm, tied and frozen weights, an LSTM with its flat copies, a parameter that takes no part."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 6)
        self.tied = nn.Linear(6, 6)
        self.tied.weight = self.first.weight
        self.norm = nn.BatchNorm1d(6)
        self.recurrent = nn.LSTM(6, 6, batch_first=True)
        self.frozen = nn.Linear(6, 6).requires_grad_(False)
        self.unused = nn.Parameter(torch.ones(3))
        self.last = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(torch.tanh(self.tied(torch.tanh(self.first(x)))))
        return self.last(self.recurrent(self.frozen(h)[:, None])[0][:, 0])


def build(kind: str, make: type[sam_core.SAMPa], device: str, dtype: torch.dtype = torch.float64, **options: Any) -> Any:
    torch.manual_seed(0)
    net = Odd().to(device, dtype)
    if kind == "sgd":
        base: torch.optim.Optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-2, nesterov=True)
    else:
        base = torch.optim.AdamW(net.parameters(), lr=0.01, weight_decay=0.1)
    return net, make(base, 0.1, 0.2, model=net, **options)


def batches(net: nn.Module, count: int = 13, size: int = 24) -> list[Minibatch]:
    generator = torch.Generator().manual_seed(1)
    like = next(net.parameters())
    found = []
    for i in range(count):
        n = size if i % 5 < 4 else size // 3  # the last of an epoch is smaller
        x, y = torch.randn(n, 6, generator=generator, dtype=torch.float64), torch.randint(0, 3, (n,), generator=generator)
        found.append(Minibatch(net, x.to(like), y.to(like.device)))
    return found


def train(net: nn.Module, opt: Any) -> list[Tensor]:
    data = batches(net)
    losses = [opt.step(a, b) for a, b in zip(data, data[1:], strict=False)]
    return [torch.stack(losses), *(t.detach().clone() for t in net.state_dict().values())]


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
@pytest.mark.parametrize("options", [{}, {"ascent": sam_core.PNorm(p=math.inf)}, {"max_grad_norm": 0.5}], ids=["plain", "p", "clipped"])
def test_stand_ins_give_the_bits_of_the_sequential_form(kind: str, options: dict[str, Any]) -> None:
    net, opt = build(kind, sam_core.SAMPa, "cpu", **options)
    expected = train(net, opt)
    net, opt = build(kind, StreamedSAMPa, "cpu", way="streams", **options)
    own = list(net.parameters())
    assert all(map(torch.equal, expected, train(net, opt)))
    assert all(p is q for p, q in zip(own, net.parameters(), strict=True))
    assert opt.gradients_computed == 25


def test_weight_decay_that_climbs(kind: str = "sgd") -> None:
    found = []
    for make, more in ((sam_core.SAMPa, {}), (StreamedSAMPa, {"way": "streams"})):
        net, opt = build(kind, make, "cpu", decay_in_ascent=True, **more)
        found.append(train(net, opt))
    assert all(torch.allclose(a, b, rtol=1e-12, atol=1e-14) for a, b in zip(*found, strict=True))


def test_a_state_goes_over_from_the_sequential_form_and_back() -> None:
    net, opt = build("sgd", sam_core.SAMPa, "cpu")
    expected = train(net, opt)
    net, opt = build("sgd", StreamedSAMPa, "cpu", way="streams")
    for i in range(12):
        if i == 5:
            weights, state = net.state_dict(), copy.deepcopy(opt.state_dict())
            net, opt = build("sgd", sam_core.SAMPa, "cpu")
            net.load_state_dict(weights)
            opt.load_state_dict(state)
        data = batches(net)
        opt.step(data[i], data[i + 1])
    assert all(map(torch.equal, expected[1:], net.state_dict().values()))


def test_an_error_in_the_second_pass_leaves_everything_as_it_was() -> None:
    net, opt = build("sgd", StreamedSAMPa, "cpu", way="streams")
    data = batches(net, 4)
    opt.step(data[0], data[1])
    own, before, state = list(net.parameters()), copy.deepcopy(net.state_dict()), copy.deepcopy(opt.state_dict())
    with pytest.raises(RuntimeError):
        opt.step(data[1], Minibatch(net, torch.randn(4, 5, dtype=torch.float64), torch.zeros(4, dtype=torch.int64)))
    assert all(p is q for p, q in zip(own, net.parameters(), strict=True))
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert opt.state_dict()["steps"] == state["steps"]
    opt.step(data[1], data[2])


def test_a_cpu_and_plain_closures_go_the_sequential_way() -> None:
    net, opt = build("sgd", StreamedSAMPa, "cpu")
    assert opt.way == "sequential"
    net, opt = build("sgd", StreamedSAMPa, "cpu", way="streams")

    def closure() -> Tensor:
        opt.zero_grad()
        loss = net(torch.ones(4, 6, dtype=torch.float64)).square().mean()
        loss.backward()
        return loss

    assert opt.step(closure).isfinite()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"way": "both"}, "way must be"),
        ({"way": "graph"}, "CUDA device"),
        ({"same_rng": True}, "same_rng"),
        ({"criterion": Bilevel()}, "one after the other"),
    ],
)
def test_what_does_not_go_together_is_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        build("sgd", StreamedSAMPa, "cpu", **options)


def test_parameters_outside_of_the_model_are_refused() -> None:
    net, extra = nn.Linear(2, 2), nn.Parameter(torch.ones(2))
    with pytest.raises(ValueError, match="not in model"):
        StreamedSAMPa(torch.optim.SGD([*net.parameters(), extra], lr=0.1), model=net)
    with pytest.raises(TypeError, match="model must be the network"):
        StreamedSAMPa(torch.optim.SGD(net.parameters(), lr=0.1))


def test_one_gpu_named_twice_is_for_sampa_alone() -> None:
    assert sam_core.TrainConfig(method="sampa", devices="cuda:0,cuda:0").one_gpu
    with pytest.raises(ValueError, match="no two gradients"):
        sam_core.TrainConfig(method="sam", devices="cuda:0,cuda:0")


@gpu
@pytest.mark.parametrize("way", ["streams", "graph"])
@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_on_a_gpu_the_iterates_are_those_of_the_sequential_form(kind: str, way: str) -> None:
    net, opt = build(kind, sam_core.SAMPa, "cuda")
    expected = train(net, opt)
    net, opt = build(kind, StreamedSAMPa, "cuda", way=way)
    for a, b in zip(expected, train(net, opt), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


@gpu
def test_on_a_gpu_measuring_changes_nothing() -> None:
    net, opt = build("sgd", sam_core.SAMPa, "cuda")
    expected = train(net, opt)
    net, opt = build("sgd", StreamedSAMPa, "cuda")
    for a, b in zip(expected, train(net, opt), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
    assert opt.way == min(opt.seconds, key=opt.seconds.get)


@gpu
def test_trained_from_a_configuration() -> None:
    config = sam_core.TrainConfig(method="sampa", devices="cuda:0,cuda:0", epochs=1, train_examples=300)
    alone = sam_core.TrainConfig(method="sampa", device="cuda:0", epochs=1, train_examples=300)
    a, b = (sam_core.train(c, progress=False).history[-1] for c in (config, alone))
    assert a.train_loss == pytest.approx(b.train_loss, rel=1e-3)
    assert a.train_accuracy == pytest.approx(b.train_accuracy, abs=0.02)
