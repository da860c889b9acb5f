"""Gradient traces against gradients computed by hand, and training with the hook against training without: the same bits."""

import copy
import random

import numpy as np
import pytest
import torch
from problems import Vector
from torch import Tensor, nn
from torch.nn import functional as F

import sam_core
from landscape.objective import tensors_sha256
from landscape.traces import GradientTraceHook
from sam_core.training import Hook, Trainer


def net() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = [nn.Conv2d(1, 3, 3, bias=False), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Dropout(0.2), nn.Linear(48, 4)]
        return nn.Sequential(*layers)


def batches(count: int = 5) -> list[tuple[Tensor, Tensor]]:
    g = torch.Generator().manual_seed(1)
    return [(torch.randn(8, 1, 6, 6, generator=g), torch.randint(0, 4, (8,), generator=g)) for _ in range(count)]


def trainer(hooks: list[Hook], epochs: int = 2, dropout: bool = True, method: str = "sampa") -> Trainer:
    model = net()
    if not dropout:
        model[4].p = 0.0
    base = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    return Trainer(model, sam_core.make(method, base, rho=0.1, model=model), batches(), epochs=epochs, hooks=hooks, progress=False)


def states() -> tuple[bytes, object, bytes]:
    return torch.get_rng_state().numpy().tobytes(), random.getstate(), np.random.get_state()[1].tobytes()


def fit(hooks: list[Hook], **options: object) -> Trainer:
    run = trainer(hooks, **options)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        run.fit()
        run.end = states()
    return run


class Watch(Hook):
    """Computes the same by hand: a deep copy of the model at x, the optimizer's own gradient at y, both at every step."""

    def __init__(self) -> None:
        self.rows: dict[int, tuple[list[Tensor], list[Tensor]]] = {}

    def before_step(self, run: Trainer) -> None:
        if run.step:
            other = copy.deepcopy(run.model)
            F.cross_entropy(other(run.batch[0]), run.batch[1]).backward()
            self.rows[run.step] = [p.grad for p in other.parameters()], [g.clone() for g in run.optimizer.y_gradient]


def test_cosines_and_distances_are_those_of_the_gradients() -> None:
    hook, watch = GradientTraceHook(every=3), Watch()
    fit([watch, hook], dropout=False)
    trace = hook.result()
    assert trace.step.tolist() == [3, 6, 9] and trace.layers == ("0", "1", "5")
    for t, step in enumerate(trace.step):
        x, y = watch.rows[step]
        for cosine, distance, parts in (
            (trace.cosine[t], trace.distance[t], slice(0, 5)),
            (trace.layer_cosine[t, 1], trace.layer_distance[t, 1], slice(1, 3)),
            (trace.layer_cosine[t, 2], trace.layer_distance[t, 2], slice(3, 5)),
        ):
            a, b = (torch.cat([g.double().reshape(-1) for g in gs[parts]]) for gs in (x, y))
            assert cosine == pytest.approx(F.cosine_similarity(a, b, dim=0).item(), abs=1e-6)
            assert distance == pytest.approx((a - b).norm().item(), rel=1e-5)
        assert trace.norm_x[t] == pytest.approx(torch.cat([g.reshape(-1) for g in x]).norm().item(), rel=1e-5)
        assert trace.norm_y[t] == pytest.approx(torch.cat([g.reshape(-1) for g in y]).norm().item(), rel=1e-5)
    assert trace.cosine.min() > 0.3 and trace.cosine.max() < 1  # related, but not the same gradient
    assert trace.cost.gradients == pytest.approx(3 / 5) and trace.provenance.model == "Sequential"


def test_a_quadratic_has_its_closed_form() -> None:
    """f = |w|^2 / 2 with SGD: y_t = x_{t-1} - lr g_y, and both gradients are the points themselves."""
    model = Vector(torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64))
    data = [(torch.zeros(2, 3), torch.zeros(2, 3))] * 4
    rho, lam, lr = 0.1, 0.2, 0.3
    x = y = model.w.detach().numpy().copy()
    expected = []
    for _ in range(4):
        expected.append((x @ y / np.linalg.norm(x) / np.linalg.norm(y), np.linalg.norm(x - y)))
        perturbed, y = x + rho * y / np.linalg.norm(y), x - lr * y
        x = x - lr * (1 - lam) * perturbed - lr * lam * y
    hook = GradientTraceHook(every=1)
    optimizer = sam_core.SAMPa(torch.optim.SGD(model.parameters(), lr=lr), rho=rho, lam=lam, model=model)
    Trainer(model, optimizer, data, epochs=1, loss=lambda o, t: 0.5 * ((o - t) ** 2).sum(1).mean(), hooks=[hook], progress=False).fit()
    trace = hook.result()
    np.testing.assert_allclose(trace.cosine, [c for c, _ in expected[1:]], rtol=1e-12)
    np.testing.assert_allclose(trace.distance, [d for _, d in expected[1:]], rtol=1e-9)
    assert trace.layers == ("w",)


def test_training_goes_on_to_the_same_bits() -> None:
    """Weights, statistics, momentum and random streams, with dropout and batch norm in the net."""
    plain, traced = fit([]), fit([GradientTraceHook(every=1)])
    for run in (plain, traced):
        run.all = dict(run.model.named_parameters()) | dict(run.model.named_buffers())
    assert tensors_sha256(plain.all) == tensors_sha256(traced.all)
    assert plain.end == traced.end and plain.history[-1].train_loss == traced.history[-1].train_loss
    momenta = [[s["momentum_buffer"] for s in run.optimizer.base.state.values()] for run in (plain, traced)]
    assert all(torch.equal(a, b) for a, b in zip(*momenta, strict=True))


def test_gradients_and_buffers_come_back_when_the_loss_raises() -> None:
    class Raise(Hook):
        def before_step(self, run: Trainer) -> None:
            if run.step == 2:
                run.kept = [torch.ones_like(p) for p in run.model.parameters()]
                for p, g in zip(run.model.parameters(), run.kept, strict=True):
                    p.grad = g
                run.before = tensors_sha256(dict(run.model.named_buffers()))
                run.loss = failing

    def failing(outputs: Tensor, targets: Tensor) -> Tensor:
        raise RuntimeError("stop here")

    run = trainer([Raise(), GradientTraceHook(every=1)])
    with pytest.raises(RuntimeError, match="stop here"):
        run.fit()
    assert all(p.grad is g for p, g in zip(run.model.parameters(), run.kept, strict=True))
    assert tensors_sha256(dict(run.model.named_buffers())) == run.before


def test_a_continued_trace_is_the_whole_trace() -> None:
    whole = GradientTraceHook(every=2)
    fit([whole])
    first, second = GradientTraceHook(every=2), GradientTraceHook(every=2)
    saved = {}

    def keep(run: Trainer) -> None:
        if run.step == 5:
            saved.update(copy.deepcopy({"training": run.state_dict(), "model": run.model.state_dict()}))

    run = trainer([first])
    with torch.random.fork_rng():
        torch.manual_seed(3)
        run.fit(keep)
    again = trainer([second])
    again.model.load_state_dict(saved["model"])
    with torch.random.fork_rng():
        again.load_state_dict(saved["training"])
        again.fit()
    a, b = whole.result(), second.result()
    assert a.step.tolist() == b.step.tolist() == [2, 4, 6, 8]
    for name in ("cosine", "distance", "norm_x", "norm_y", "layer_cosine", "layer_distance"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
    assert a.cost.gradients == pytest.approx(b.cost.gradients)


def test_methods_without_a_second_gradient_are_refused() -> None:
    with pytest.raises(ValueError, match="train with SAMPa"):
        trainer([GradientTraceHook()], method="sam").fit()
    with pytest.raises(ValueError, match="every must be a positive integer.*got 0"):
        GradientTraceHook(every=0)


def test_nothing_measured_is_an_empty_trace() -> None:
    trace = GradientTraceHook().result()
    assert len(trace.step) == len(trace.cosine) == 0 and trace.layer_cosine.shape == (0, 0) and "no steps" in repr(trace)
