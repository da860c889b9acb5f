"""SAMPa with both gradients at once on one device: stand-ins for the weights change nothing."""

import copy
import math
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sam_core
from sam_core import Minibatch
from sam_core.optim.objectives import Bilevel
from sam_core.parallel import StreamedSAMPa
from sam_core.parallel.graph import form, surroundings
from sam_core.parallel.streams import Pair

gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


class Odd(nn.Module):
    """Batch norm, tied and frozen weights, an LSTM with its flat copies, a parameter that takes no part."""

    def __init__(self, recurrent: bool = True) -> None:
        super().__init__()
        self.first = nn.Linear(6, 6)
        self.tied = nn.Linear(6, 6)
        self.tied.weight = self.first.weight
        self.norm = nn.BatchNorm1d(6)
        self.recurrent = nn.LSTM(6, 6, batch_first=True) if recurrent else None
        self.frozen = nn.Linear(6, 6).requires_grad_(False)
        self.unused = nn.Parameter(torch.ones(3))
        self.last = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(torch.tanh(self.tied(torch.tanh(self.first(x)))))
        h = self.frozen(h)
        return self.last(h if self.recurrent is None else self.recurrent(h[:, None])[0][:, 0])


def build(kind: str, make: type[sam_core.SAMPa], device: str, recurrent: bool = True, **options: Any) -> Any:
    torch.manual_seed(0)
    net = Odd(recurrent).to(device, torch.float64)
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


class Small(nn.Module):
    """Two layers, of which the first may keep its weights outside of the table of parameters."""

    def __init__(self, outside: bool = False) -> None:
        super().__init__()
        self.body, self.last = nn.Linear(6, 6), nn.Linear(6, 3)
        self.outside = [self.body.weight] if outside else None
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.count = self.count + 1
        return self.last(torch.tanh(x @ (self.outside[0] if self.outside else self.body.weight)))


def small(make: type[sam_core.SAMPa], prepare: Callable[[Small], Any], **options: Any) -> list[Tensor | None]:
    torch.manual_seed(0)
    net = Small().double()
    prepare(net)
    only_last = prepare is leave_the_body_out
    opt = make(torch.optim.SGD(net.last.parameters() if only_last else net.parameters(), lr=0.1), 0.1, 0.2, model=net, **options)
    data = batches(net)
    for a, b in zip(data, data[1:], strict=False):
        opt.step(a, b)
    return [t for p in net.parameters() for t in (p.detach().clone(), p.grad)]


def mask_the_gradient(net: Small) -> None:
    net.body.weight.register_hook(lambda g: g.triu())


def mask_what_is_accumulated(net: Small) -> None:
    def mask(p: Tensor) -> None:
        assert p.grad is not None
        p.grad.triu_()

    net.body.weight.register_post_accumulate_grad_hook(mask)


def leave_the_body_out(net: Small) -> None:
    """It takes gradients all the same."""


@pytest.mark.parametrize("prepare", [mask_the_gradient, mask_what_is_accumulated, leave_the_body_out])
def test_hooks_and_weights_that_are_not_trained_see_what_they_see_in_the_sequential_form(prepare: Callable[[Small], Any]) -> None:
    for a, b in zip(small(sam_core.SAMPa, prepare), small(StreamedSAMPa, prepare, way="streams"), strict=True):
        assert torch.equal(a, b) if a is not None and b is not None else a is b


def test_weights_outside_of_the_modules_are_refused() -> None:
    net = Small(outside=True).double()
    opt = StreamedSAMPa(torch.optim.SGD(net.parameters(), lr=0.1), model=net, way="streams")
    data, before = batches(net, 2), copy.deepcopy(net.state_dict())
    with pytest.raises(ValueError, match="outside of its modules"):
        opt.step(*data)
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items() if name != "count")
    assert all(p.grad is None for p in net.parameters())


def test_measuring_puts_buffers_back_those_that_are_replaced_and_the_copies_too() -> None:
    net, device = Small().double(), torch.device("cpu")
    pair = Pair(net, list(net.parameters()), lambda batch, weights, perturbed: (batch(), []))
    pair.perturbed.take()
    count, states = net.count, torch.get_rng_state()
    with pair.untouched(device):
        pair.side_by_side(*batches(net, 2), None)
        pair.perturbed.copies[0].add_(torch.rand(()))
        assert net.count == 1
    assert net.count is count and count == 0 and pair.perturbed.copies[0] == 0
    assert torch.equal(states, torch.get_rng_state())


FACTOR = torch.ones(())


def by_the_factor(outputs: Tensor, targets: Tensor) -> Tensor:
    return nn.functional.cross_entropy(outputs, targets, reduction="none") * FACTOR


def test_what_a_graph_repeats_must_be_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    net = Small()
    x, y = torch.ones(4, 6), torch.zeros(4, dtype=torch.int64)

    def batch(scale: float = 1.0, by: Tensor | None = None, more: Any = 3, model: nn.Module = net) -> Minibatch:
        def losses(outputs: Tensor, targets: Tensor) -> Tensor:
            return nn.functional.cross_entropy(outputs, targets, by, reduction="none") * scale

        return Minibatch(lambda inputs: model(inputs[0]), (x, more), y, losses)

    assert form(batch()) == form(batch()) and form(Minibatch(net, x, y)) == form(Minibatch(net, x + 1, y))
    others = [
        batch(2.0),
        batch(by=torch.ones(3)),
        batch(more=4),
        batch(model=Small()),
        Minibatch(net, (x, 3), y),
        Minibatch(net, x[:3], y[:3]),
    ]
    losses = [partial(nn.functional.cross_entropy, reduction="none", label_smoothing=s) for s in (0.0, 0.1)]
    others += [Minibatch(net, (x, 3), y, loss) for loss in losses]
    before = form(Minibatch(net, x, y, by_the_factor))
    assert before == form(Minibatch(net, x, y, by_the_factor))
    monkeypatch.setattr(sys.modules[__name__], "FACTOR", torch.zeros(()))
    assert before != form(Minibatch(net, x, y, by_the_factor))
    assert all(form(a) != form(b) for i, a in enumerate([batch(), *others]) for b in others[i:] if a is not b)


def test_a_graph_notices_other_modes_and_other_places() -> None:
    net = Small()
    pair = Pair(net, list(net.parameters()), lambda batch, weights, perturbed: (batch(), []))
    found = [surroundings(pair)]
    assert surroundings(pair) == found[0]
    net.last.eval()
    found.append(surroundings(pair))
    net.body.weight.data = net.body.weight.data.clone()
    found.append(surroundings(pair))
    pair.ahead.weights[0].data = pair.ahead.weights[0].data.clone()
    found.append(surroundings(pair))
    assert all(a != b for i, a in enumerate(found) for b in found[:i])


def test_nothing_is_measured_on_batches_of_different_sizes() -> None:
    net, opt = build("sgd", StreamedSAMPa, "cpu")
    opt.way = None  # as on a GPU
    data = batches(net)
    assert opt.step(data[3], data[4]).isfinite() and opt.way is None


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
    net, opt = build(kind, sam_core.SAMPa, "cuda", recurrent=way != "graph")
    expected = train(net, opt)
    net, opt = build(kind, StreamedSAMPa, "cuda", recurrent=way != "graph", way=way)
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
    assert "graph" not in opt.seconds  # cuDNN's recurrent layers move their weights


@gpu
def test_on_a_gpu_random_numbers_and_the_present_stream_are_fine_after_a_capture_that_failed() -> None:
    net = nn.Sequential(nn.Linear(6, 6), nn.Dropout(0.5), nn.Linear(6, 3)).to("cuda", torch.float64)
    opt = StreamedSAMPa(torch.optim.SGD(net.parameters(), lr=0.1), model=net)
    stream = torch.cuda.current_stream()

    def look(inputs: Tensor) -> Tensor:
        outputs = net(inputs)
        assert outputs.sum().item() < 1e9  # waits for the device
        return outputs

    data = [Minibatch(look, batch.inputs, batch.targets) for batch in batches(net)]
    for a, b in zip(data, data[1:], strict=False):
        assert opt.step(a, b).isfinite()
    assert sorted(opt.seconds) == ["sequential", "streams"]
    assert torch.cuda.current_stream() == stream and torch.rand(3, device="cuda").isfinite().all()


@gpu
def test_trained_from_a_configuration() -> None:
    config = sam_core.TrainConfig(method="sampa", devices="cuda:0,cuda:0", epochs=1, train_examples=300)
    alone = sam_core.TrainConfig(method="sampa", device="cuda:0", epochs=1, train_examples=300)
    a, b = (sam_core.train(c, progress=False).history[-1] for c in (config, alone))
    assert a.train_loss == pytest.approx(b.train_loss, rel=1e-3)
    assert a.train_accuracy == pytest.approx(b.train_accuracy, abs=0.02)
