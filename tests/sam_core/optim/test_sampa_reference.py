"""SAMPa against the recursion written out, with several base optimizers; its y-step in closed form against the general one."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import sam_core
from sam_core.optim.uncommitted import step_without_commit

BASES: dict[str, Callable[[list[Tensor]], torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=0.01),
    "nesterov": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.8, weight_decay=0.01, nesterov=True),
    "dampening": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, dampening=0.3),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.02, amsgrad=True),
    "tensor lr": lambda p: torch.optim.Adam(p, lr=torch.tensor(0.02)),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.5, centered=True),
    "nadam": lambda p: torch.optim.NAdam(p, lr=0.01),
    "adadelta": lambda p: torch.optim.Adadelta(p, lr=1.0),
    "asgd": lambda p: torch.optim.ASGD(p, lr=0.05),
    "rprop": lambda p: torch.optim.Rprop(p, lr=0.05),
}


def problem(dtype: torch.dtype = torch.float64) -> tuple[list[nn.Parameter], Callable[[list[Tensor], int], Tensor]]:
    generator = torch.Generator().manual_seed(0)
    w = [nn.Parameter(torch.randn(s, generator=generator, dtype=dtype)) for s in ((3, 2), (3,))]
    x = torch.randn(9, 4, 2, generator=generator, dtype=dtype)

    def loss(w: list[Tensor], t: int) -> Tensor:
        return torch.tanh(x[t] @ w[0].T + w[1]).sub(0.3).square().sum()

    return w, loss


def gradient(loss: Callable[[list[Tensor], int], Tensor], w: list[Tensor], t: int) -> list[Tensor]:
    w = [p.detach().clone().requires_grad_() for p in w]
    return list(torch.autograd.grad(loss(w, t), w))


def after(base: torch.optim.Optimizer, params: list[Tensor], g: list[Tensor]) -> list[Tensor]:
    """Where a deep copy of the optimizer would go: the reference for a step that commits nothing."""
    twins, twin = copy.deepcopy((params, base))
    for p, x in zip(twins, g, strict=True):
        p.grad = x.clone()
    twin.step()
    return [p.detach() for p in twins]


@pytest.mark.parametrize("name", BASES)
def test_trajectory_with_two_batches_per_step(name: str) -> None:
    w, loss = problem()
    opt = sam_core.SAMPa(BASES[name](w), rho=0.2, lam=0.3)
    reference, _ = problem()
    base = BASES[name](reference)
    g_y = gradient(loss, reference, 0)
    for t in range(7):

        def closure(t: int) -> Callable[[], Tensor]:
            def run() -> Tensor:
                opt.zero_grad()
                value = loss(w, t)
                value.backward()
                return value

            return run

        value = opt.step(closure(t), closure(t + 1))
        length = torch.cat([g.reshape(-1) for g in g_y]).norm()
        g_x = gradient(loss, [p + 0.2 * g / length for p, g in zip(reference, g_y, strict=True)], t)
        y = after(base, reference, g_y)
        g_y = gradient(loss, y, t + 1)
        for p, a, b in zip(reference, g_x, g_y, strict=True):
            p.grad = 0.7 * a + 0.3 * b
        base.step()
        for p, q in zip(w, reference, strict=True):
            torch.testing.assert_close(p, q, rtol=1e-11, atol=1e-13)
        for a, b in zip(opt.y_gradient, g_y, strict=True):
            assert a is not None
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-13)
        torch.testing.assert_close(value, loss(y, t + 1), rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", BASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_y_step_is_the_bits_of_the_base_step_and_commits_nothing(name: str, dtype: torch.dtype) -> None:
    w, loss = problem(dtype)
    base = BASES[name](w)
    calls = []
    base.register_step_post_hook(lambda *_: calls.append(1))
    for t in range(4):  # t = 0: there is no state yet
        g = gradient(loss, w, t)
        expected = after(base, w, g)
        calls.clear()
        home, state = [p.detach().clone() for p in w], copy.deepcopy(base.state_dict())
        ids = [id(v) for entry in base.state.values() for v in entry.values() if isinstance(v, Tensor)]
        with torch.no_grad():
            step_without_commit(base, list(w), g)
        for p, e in zip(w, expected, strict=True):
            assert torch.equal(p, e) and p.grad is None
        now = base.state_dict()
        torch.testing.assert_close(now["state"], state["state"], rtol=0, atol=0)
        assert now["param_groups"] == state["param_groups"] and not calls
        assert ids == [id(v) for entry in base.state.values() for v in entry.values() if isinstance(v, Tensor)]
        with torch.no_grad():
            for p, h in zip(w, home, strict=True):
                p.copy_(h)
        for p, x in zip(w, g, strict=True):
            p.grad = x
        base.step()
        for p in w:
            p.grad = None


def test_sampa_composed_with_other_ascents_and_with_shards() -> None:
    w, loss = problem()
    opt = sam_core.SAMPa(torch.optim.SGD(w, lr=0.1), rho=0.2, lam=0.25, ascent=sam_core.PNorm(p=4), per_shard=True)
    assert opt.rho == 0.2
    reference, _ = problem()

    def closure(t: int) -> Callable[[], Tensor]:
        def run() -> Tensor:
            opt.zero_grad()
            value = loss(w, t)
            value.backward()
            return value

        return run

    x = [p.detach().clone() for p in reference]
    g_y = [gradient(loss, x, t) for t in (0, 1)]
    share = (0.25, 0.75)
    for t in range(4):
        opt.step([closure(0), closure(1)], weights=[1, 3])
        eps = [sam_core.PNorm(0.2, 4).perturbation(g, x) for g in g_y]
        g_x = [gradient(loss, [a + b for a, b in zip(x, e, strict=True)], i) for i, e in enumerate(eps)]
        y = [a - 0.1 * sum(s * g[k] for s, g in zip(share, g_y, strict=True)) for k, a in enumerate(x)]
        g_y = [gradient(loss, y, i) for i in (0, 1)]
        x = [a - 0.1 * sum(s * (0.75 * g[k] + 0.25 * h[k]) for s, g, h in zip(share, g_x, g_y, strict=True)) for k, a in enumerate(x)]
        for p, a in zip(w, x, strict=True):
            torch.testing.assert_close(p.detach(), a, rtol=1e-12, atol=1e-14)
        assert opt.gradients_computed == 3 + 2 * t
    with pytest.raises(ValueError, match="same number of shards"):
        opt.step([closure(0)])


def test_two_call_style_is_refused_with_advice() -> None:
    w, loss = problem()
    opt = sam_core.SAMPa(torch.optim.SGD(w, lr=0.1))
    loss(list(w), 0).backward()
    for misuse in (opt.first_step, lambda: opt.perturb().__enter__()):
        with pytest.raises(RuntimeError, match=r"opt.step\(closure, next_closure\)"):
            misuse()
