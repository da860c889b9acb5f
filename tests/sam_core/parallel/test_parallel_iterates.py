"""SAMPa in 2 and 4 processes against SAMPa in one: the same iterates, the same checkpoint."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import together
from torch import Tensor, nn

import sam_core
from sam_core import models, parallel

STEPS = 200
CASES: dict[str, dict[str, Any]] = {
    "sgd": {"base": "sgd", "lam": 0.2},
    "zero": {"base": "sgd", "lam": 0.0},
    "one": {"base": "sgd", "lam": 1.0},
    "nesterov": {"base": "nesterov", "lam": 0.2},
    "adamw": {"base": "adamw", "lam": 0.2},
    "resnet": {"base": "sgd", "lam": 0.2, "net": "resnet", "steps": 10},
    "clipped": {"base": "sgd", "lam": 0.2, "options": {"max_grad_norm": 0.1}},
    "decay": {"base": "sgd", "lam": 0.2, "options": {"decay_in_ascent": True}},
    "patient": {"base": "sgd", "lam": 0.2, "parallel": {"overlap": False}},
}


def network(case: dict[str, Any]) -> nn.Module:
    torch.manual_seed(0)
    if case.get("net") == "resnet":
        return models.make("resnet8", 10, 3, width=4).double()
    net = nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 12), nn.Tanh(), nn.Linear(12, 3)).double()
    net.unused = nn.Parameter(torch.ones(3, dtype=torch.float64))
    return net


def optimizer(case: dict[str, Any], net: nn.Module) -> torch.optim.Optimizer:
    if case["base"] == "adamw":
        return torch.optim.AdamW(net.parameters(), lr=0.01, weight_decay=0.1)
    return torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-3, nesterov=case["base"] == "nesterov")


def batches(case: dict[str, Any], steps: int) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    size = (3, 8, 8) if case.get("net") == "resnet" else (6,)
    return [(torch.randn(12, *size, generator=generator, dtype=torch.float64), torch.arange(12) % 3) for _ in range(steps + 1)]


def closure_for(net: nn.Module, x: Tensor, y: Tensor) -> Callable[[], Tensor]:
    def closure() -> Tensor:
        net.zero_grad()
        loss = nn.functional.cross_entropy(net(x), y)
        loss.backward()
        return loss

    return closure


def alone(name: str, pieces: int) -> dict[str, Any]:
    case = CASES[name]
    net = network(case)
    steps = case.get("steps", STEPS)
    opt = sam_core.SAMPa(optimizer(case, net), rho=0.1, lam=case["lam"], model=net, **case.get("options", {}))
    losses = []
    data = [
        [closure_for(net, *part) for part in zip(x.tensor_split(pieces), y.tensor_split(pieces), strict=True)]
        for x, y in batches(case, steps)
    ]
    for here, there in zip(data, data[1:], strict=False):
        losses.append(opt.step(here, there))
    found = {"weights": [p.detach() for p in net.parameters()], "losses": torch.stack(losses), "state": opt.state_dict()}
    return {**found, "buffers": list(net.buffers())}


def work(rank: int, world: int) -> dict[str, Any]:
    roles = parallel.start()
    results: dict[str, Any] = {}
    for name, case in CASES.items():
        net = network(case)
        steps = case.get("steps", STEPS)
        opt = parallel.ParallelSAMPa(
            optimizer(case, net), rho=0.1, lam=case["lam"], roles=roles, model=net, **case.get("options", {}), **case.get("parallel", {})
        )
        data = [closure_for(net, roles.part(x), roles.part(y)) for x, y in batches(case, steps)]
        losses = [opt.step(here, there) for here, there in zip(data, data[1:], strict=False)]
        opt.share_buffers()
        results[name] = {
            "weights": [p.detach() for p in net.parameters()],
            "losses": torch.stack(losses),
            "state": opt.state_dict(),
            "buffers": [b.clone() for b in net.buffers()],
        }
    return results


@pytest.mark.distributed
@pytest.mark.parametrize("world", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_iterates_of_one_process(world: int, tmp_path: Path) -> None:
    found = together(world, work, tmp_path)
    for name in CASES:
        reference = alone(name, world // 2)
        for rank in range(world):
            result = found[rank][name]
            for p, q in zip(result["weights"], reference["weights"], strict=True):
                torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-12)
            torch.testing.assert_close(result["losses"], reference["losses"], rtol=1e-10, atol=1e-12)
            assert all(torch.equal(p, q) for p, q in zip(result["weights"], found[0][name]["weights"], strict=True))
            assert all(torch.equal(p, q) for p, q in zip(result["buffers"], found[0][name]["buffers"], strict=True))
            if world == 2:  # else each process normalises its own part of a batch
                for p, q in zip(result["buffers"], reference["buffers"], strict=True):
                    torch.testing.assert_close(p, q, rtol=1e-10, atol=1e-12)
            assert result["state"].keys() == reference["state"].keys()
