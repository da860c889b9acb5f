"""Stopping in the middle and going on from a file gives the bits of the run that was never stopped."""

import io
from functools import partial

import pytest
import torch
from torch import Tensor, nn

import sam_core

BASES = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=1e-3, nesterov=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01),
}


def net(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3))


def train(model: nn.Module, opt: sam_core.SharpnessAware, steps: range, shards: bool) -> list[Tensor]:
    losses = []
    for t in steps:
        generator = torch.Generator().manual_seed(t)
        x, y = torch.randn(8, 4, generator=generator), torch.randint(0, 3, (8,), generator=generator)

        def closure(x: Tensor = x, y: Tensor = y) -> Tensor:
            opt.zero_grad()
            loss = nn.functional.cross_entropy(model(x), y)
            loss.backward()
            return loss

        if shards:
            losses.append(opt.step([partial(closure, x[i::2], y[i::2]) for i in range(2)]))
        else:
            losses.append(opt.step(closure))
    return losses


MEMBERS = [*((name, {}) for name in sam_core.methods()), ("sampa", {"per_shard": True}), ("sam", {"schedule": "warm"})]


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize(("name", "options"), MEMBERS, ids=lambda v: str(v))
@pytest.mark.parametrize("cut", [1, 3])
def test_resume_is_bit_exact(name: str, options: dict, base: str, cut: int) -> None:
    def build(seed: int) -> tuple[nn.Module, sam_core.SharpnessAware]:
        model = net(seed)
        own = {k: sam_core.WarmUp(6) if v == "warm" else v for k, v in options.items()}
        return model, sam_core.make(name, BASES[base](model.parameters()), model=model, **own)

    shards = name == "msam" or bool(options.get("per_shard"))
    model, opt = build(0)
    whole = train(model, opt, range(7), shards)

    first, first_opt = build(0)
    train(first, first_opt, range(cut), shards)
    first_opt.rho = first_opt.rho  # settable
    file = io.BytesIO()
    torch.save({"model": first.state_dict(), "opt": first_opt.state_dict()}, file)
    file.seek(0)
    second, second_opt = build(5)
    train(second, second_opt, range(2), shards)  # a wrong past, which loading replaces
    checkpoint = torch.load(file, weights_only=True)
    second.load_state_dict(checkpoint["model"])
    second_opt.load_state_dict(checkpoint["opt"])
    rest = train(second, second_opt, range(cut, 7), shards)

    assert all(torch.equal(a, b) for a, b in zip(whole[cut:], rest, strict=True))
    for key, value in model.state_dict().items():
        assert torch.equal(value, second.state_dict()[key]), key
    assert (opt.steps, opt.gradients_computed) == (second_opt.steps, second_opt.gradients_computed)
    assert second_opt.param_groups is second_opt.base.param_groups and second_opt.state is second_opt.base.state


def test_no_weight_copies_in_the_state() -> None:
    model = net(0)
    opt = sam_core.SAM(torch.optim.SGD(model.parameters(), lr=0.1))
    train(model, opt, range(2), False)
    state = opt.state_dict()
    assert all(not state[part]["carried"] for part in ("ascent", "combine", "schedule", "memory"))


def test_states_that_do_not_fit_change_nothing() -> None:
    model = net(0)
    opt = sam_core.VaSSO(torch.optim.SGD(model.parameters(), lr=0.1))
    train(model, opt, range(1), False)
    with pytest.raises(ValueError, match="bare optimizer"):
        opt.load_state_dict(opt.base.state_dict())
    other = sam_core.SAM(torch.optim.SGD(model.parameters(), lr=0.1))
    with pytest.raises(ValueError, match="'PNorm'.*'Smoothed'"):
        opt.load_state_dict(other.state_dict())
    wide = nn.Linear(2, 2)
    small = sam_core.VaSSO(torch.optim.SGD(wide.parameters(), lr=0.1))
    with pytest.raises(ValueError, match=r"average\[0\] has shape \(6, 4\)"):
        small.load_state_dict(opt.state_dict())
    assert small.steps == 0 and not small.ascent.carried
