"""What can go wrong between two processes, and wrappers inside a role: against SAMPa in one process."""

import copy
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import together
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

import sam_core
from sam_core import parallel

pytestmark = pytest.mark.distributed


class Odd(nn.Module):
    """Has weights of two dtypes, some in channels_last, an empty one, one that nobody uses, and one that every second batch uses."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.convolution = nn.Conv2d(3, 4, 3).to(torch.float64, memory_format=torch.channels_last)
        self.single = nn.Linear(4, 4)
        self.last = nn.Linear(4, 3).double()
        self.empty = nn.Parameter(torch.empty(0, 3, dtype=torch.float64))
        self.unused = nn.Parameter(torch.ones(2, 2, dtype=torch.float64))
        self.sometimes = nn.Parameter(torch.ones(4, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        h = self.convolution(x).tanh().mean((2, 3))
        h = self.single(h.float()).double() + self.empty.sum()
        return self.last(h * self.sometimes if x[0, 0, 0, 0] > 0 else h)


def batches(count: int, size: int = 6) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    rows = [torch.randn(size, 3, 5, 5, generator=generator, dtype=torch.float64) for _ in range(count)]
    return [(x, torch.arange(size) % 3) for x in rows]


def closure_for(net: nn.Module, x: Tensor, y: Tensor, scaler: Any = None) -> Callable[[], Tensor]:
    def closure() -> Tensor:
        net.zero_grad()
        loss = F.cross_entropy(net(x), y)
        (loss if scaler is None else scaler.scale(loss)).backward()
        return loss

    return closure


def sgd(params: Any) -> torch.optim.SGD:
    return torch.optim.SGD(params, lr=0.05, momentum=0.9, weight_decay=5e-3)


def weights(net: nn.Module) -> list[Tensor]:
    return [(p.full_tensor() if isinstance(p, DTensor) else p).detach().clone() for p in net.parameters()]


def odd(roles: parallel.Roles | None, overlap: bool = True) -> list[Tensor]:
    net = Odd()
    options: dict[str, Any] = {"model": net, "max_grad_norm": 0.3}
    opt = (
        sam_core.SAMPa(sgd(net.parameters()), **options)
        if roles is None
        else parallel.ParallelSAMPa(sgd(net.parameters()), roles=roles, overlap=overlap, compare_every=1, **options)
    )
    data = [closure_for(net, *batch) for batch in batches(13)]
    for t, (here, there) in enumerate(zip(data, data[1:], strict=False)):
        if t in (0, 4, 6):
            net.single.requires_grad_(t == 4)
        if t == 8:
            torch.manual_seed(0 if roles is None else roles.rank)
            net.extra = nn.Linear(4, 4).double()
            net.last = nn.Sequential(net.extra, net.last)
            opt.add_param_group({"params": list(net.extra.parameters()), "lr": 0.01})
        opt.step(here, there)
    hooks = [len(getattr(p, "_post_accumulate_grad_hooks", None) or ()) for p in net.parameters()]
    assert max(hooks) == (roles is not None), "hooks of an earlier exchange are left"
    carried = [(p, g) for p, g in zip(opt.parameters(), opt.y_gradient, strict=True) if g is not None]
    assert roles is None or all(g.stride() == p.stride() for p, g in carried), "sums would run in another order than in one process"
    return weights(net)


def pieces(roles: parallel.Roles | None) -> list[Tensor]:
    """Gradient accumulation: batches in three pieces of different sizes."""
    net = Odd()
    opt = sam_core.SAMPa(sgd(net.parameters()), model=net)
    if roles is not None:
        opt = parallel.ParallelSAMPa(sgd(net.parameters()), roles=roles, model=net)
    sizes = [1, 2, 3]
    data = [[closure_for(net, *part) for part in zip(x.split(sizes), y.split(sizes), strict=True)] for x, y in batches(7)]
    for here, there in zip(data, data[1:], strict=False):
        opt.step(here, there, weights=sizes, next_weights=sizes)
    return weights(net)


def scaled(roles: parallel.Roles | None) -> list[Tensor]:
    """Mixed precision, with a loss scale that overflows in the fourth step."""
    net = Odd()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**4, growth_interval=2)
    opt = sam_core.SAMPa(sgd(net.parameters()), model=net, scaler=scaler)
    if roles is not None:
        opt = parallel.ParallelSAMPa(sgd(net.parameters()), roles=roles, model=net, scaler=scaler)
    data = batches(8)
    data[4][0][:] = float("inf")
    closures = [closure_for(net, *batch, scaler) for batch in data]
    scales = []
    for here, there in zip(closures, closures[1:], strict=False):
        opt.step(here, there)
        scaler.update()
        scales.append(scaler.get_scale())
    return [*weights(net), torch.tensor(scales)]


def failing(roles: parallel.Roles, overlap: bool) -> dict[str, Any]:
    """One rank's closure raises, in the middle of the overlapped exchange or before it; then all go on."""
    net = Odd()
    opt = parallel.ParallelSAMPa(sgd(net.parameters()), roles=roles, model=net, overlap=overlap)
    data = [closure_for(net, *batch) for batch in batches(6)]
    said: list[str] = []

    def break_after(closure: Callable[[], Tensor]) -> Callable[[], Tensor]:
        def broken() -> Tensor:
            closure()
            raise ZeroDivisionError("after backward")

        return broken

    def break_before() -> Tensor:
        raise ZeroDivisionError("before backward")

    before = weights(net)
    for rank, broken in ((0, break_before), (1, break_before), (0, break_after(data[0])), (1, break_after(data[1]))):
        try:
            opt.step(*([broken] * 2 if roles.rank == rank else data[:2]))
        except (ZeroDivisionError, parallel.RankLostError) as error:
            said.append(f"{type(error).__name__}: {error}")
        assert all(torch.equal(p, q) for p, q in zip(before, weights(net), strict=True))
        assert opt.y_gradient == [] and opt.gradients_computed == 0
    for here, there in zip(data, data[1:], strict=False):
        opt.step(here, there)
    return {"said": said, "weights": weights(net)}


def refused(roles: parallel.Roles) -> dict[str, str]:
    found: dict[str, str] = {}

    def look(name: str, work: Callable[[], Any]) -> None:
        try:
            work()
        except (RuntimeError, TypeError, ValueError, OSError) as error:
            found[name] = f"{type(error).__name__}: {error}"

    net = Odd()
    opt = parallel.ParallelSAMPa(sgd(net.parameters()), roles=roles, model=net, compare_every=1)
    x, y = batches(1)[0]

    def twice() -> Tensor:
        net.zero_grad()
        loss = F.cross_entropy(net(x), y)
        loss.backward(retain_graph=True)
        loss.backward()
        return loss

    look("twice", lambda: opt.step(twice))
    data = torch.Generator().manual_seed(roles.rank)  # as a DataLoader draws from the global generator of its process
    here = sam_core.Minibatch(net, torch.randn(6, 3, 5, 5, generator=data, dtype=torch.float64), y)
    look("batches", lambda: opt.step(here))
    opt = parallel.ParallelSAMPa(sgd(net.parameters()), roles=roles, model=net, compare_every=1)
    with torch.no_grad():
        net.last.bias += roles.rank
    look("weights", lambda: opt.step(closure_for(net, x, y)))
    look("pickle", lambda: torch.save(opt, io.BytesIO()))
    look("rng", lambda: parallel.ParallelSAMPa(sgd(net.parameters()), roles=roles, same_rng=True))
    return found


def copied(roles: parallel.Roles) -> list[Tensor]:
    """A deep copy goes its own way; a state_dict loads into SAMPa, and one of SAMPa here."""
    net = Odd()
    opt: sam_core.SAMPa = parallel.ParallelSAMPa(sgd(net.parameters()), roles=roles, model=net)
    data = batches(9)
    for t in range(8):
        if t == 3:
            net, opt = copy.deepcopy((net, opt))
        if t in (5, 6):
            state = io.BytesIO()
            torch.save(opt.state_dict(), state)
            base = sgd(net.parameters())
            opt = sam_core.SAMPa(base, model=net) if t == 5 else parallel.ParallelSAMPa(base, roles=roles, model=net)
            state.seek(0)
            opt.load_state_dict(torch.load(state, weights_only=True))
        opt.step(closure_for(net, *data[t]), closure_for(net, *data[t + 1]))
    return weights(net)


def plain(count: int) -> list[Tensor]:
    net = Odd()
    opt = sam_core.SAMPa(sgd(net.parameters()), model=net)
    data = [closure_for(net, *batch) for batch in batches(count)]
    for here, there in zip(data, data[1:], strict=False):
        opt.step(here, there)
    return weights(net)


class Surrounded(nn.Module):
    """A network that does not train all it consists of."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.first = nn.Linear(75, 4).double().requires_grad_(False)
        self.last = nn.Linear(4, 3).double()
        self.register_buffer("draw", torch.randn(4, dtype=torch.float64))
        self.register_buffer("table", torch.randint(1, 5, (4,)).to(torch.int16))

    def forward(self, x: Tensor) -> Tensor:
        return self.last((self.first(x) * self.table + self.draw).tanh())


def surrounded(roles: parallel.Roles | None) -> list[Tensor]:
    """What is not trained differs between the processes at the beginning."""
    net = Surrounded(0 if roles is None else roles.rank)
    base, options = sgd(net.last.parameters()), {"model": net}
    opt = sam_core.SAMPa(base, **options) if roles is None else parallel.ParallelSAMPa(base, roles=roles, **options)
    data = [closure_for(net, x.flatten(1), y) for x, y in batches(5)]
    for here, there in zip(data, data[1:], strict=False):
        opt.step(here, there)
    return [*weights(net), *net.buffers()]


def unlike(roles: parallel.Roles) -> dict[str, str]:
    """Processes that have different models, and a gradient that cannot travel; all go on."""
    found: dict[str, str] = {}
    for name in ("width", "depth", "dtype", "frozen", "sparse"):
        net = nn.Sequential(nn.Linear(4, 5 if name == "width" and roles.rank else 4), nn.Linear(4, 3))
        if name == "depth" and roles.rank:
            net.append(nn.Linear(3, 3))
        if name == "dtype" and roles.rank:
            net.double()
        if name == "frozen" and roles.rank:
            net[0].requires_grad_(False)
        if name == "sparse":
            net = nn.Sequential(nn.Embedding(5, 4, sparse=roles.rank == 1), nn.Flatten(), nn.Linear(8, 3))
        try:
            opt = parallel.ParallelSAMPa(sgd(net.parameters()), roles=roles, model=net)
            opt.step(closure_for(net, torch.ones(3, 2, dtype=torch.int64), torch.arange(3)))
        except (RuntimeError, ValueError, OSError) as error:
            found[name] = f"{type(error).__name__}: {error}"
    return found


def work(rank: int, world: int) -> dict[str, Any]:
    roles = parallel.start()
    return {
        "surrounded": surrounded(roles), "unlike": unlike(roles),
        "odd": odd(roles), "odd, patient": odd(roles, overlap=False), "pieces": pieces(roles), "scaled": scaled(roles),
        "failing": failing(roles, True), "failing, patient": failing(roles, False), "copied": copied(roles), "refused": refused(roles),
    }  # fmt: skip


def same(found: list[Tensor], reference: list[Tensor], other: list[Tensor]) -> None:
    for p, q, r in zip(found, reference, other, strict=True):
        assert torch.equal(p, r)
        torch.testing.assert_close(p, q, **({} if p.dtype == torch.float32 else {"rtol": 1e-6, "atol": 1e-7}))


def test_two_processes_with_everything_odd(tmp_path: Path) -> None:
    one, two = together(2, work, tmp_path)
    for name, reference in (
        ("odd", odd(None)),
        ("odd, patient", odd(None)),
        ("pieces", pieces(None)),
        ("scaled", scaled(None)),
        ("surrounded", surrounded(None)),
    ):
        same(one[name], reference, two[name])
    same(one["copied"], plain(9), two["copied"])
    for name in ("failing", "failing, patient"):
        same(one[name]["weights"], plain(6), two[name]["weights"])
    for found in (one["unlike"], two["unlike"]):
        for name in ("width", "depth", "dtype", "frozen"):
            assert found[name].startswith("ReplicasDifferError: rank 1 (y) and rank 0 (x~) have different models"), found[name]
    assert "ValueError" in two["unlike"]["sparse"] and "use sparse=False" in two["unlike"]["sparse"]
    assert "rank 1 (y) raised an error, and the step was undone" in one["unlike"]["sparse"]
    own = ["ZeroDivisionError: before backward"] * 2 + ["ZeroDivisionError: after backward"] * 2
    told = [f"RankLostError: rank {r} ({n}) raised an error, and the step was undone, noticed by rank" for r, n in ((0, "x~"), (1, "y"))]
    for rank, found in enumerate((one, two)):
        for i, said in [*enumerate(found["failing"]["said"]), *enumerate(found["failing, patient"]["said"])]:
            assert said.startswith(own[i] if i % 2 == rank else told[i % 2]), said
        assert "several backward passes, or clipping" in found["refused"]["twice"]
        assert "rank 1 (y) and rank 0 (x~) were given different batches in step 1" in found["refused"]["batches"]
        assert "the weights of rank 1 (y) differ from those of rank 0 (x~) after step 1" in found["refused"]["weights"]
        assert "save optimizer.state_dict()" in found["refused"]["pickle"]
        assert "same_rng=True" in found["refused"]["rng"]


def wrapped(rank: int, world: int) -> dict[str, list[Tensor]]:
    roles = parallel.start()
    found = {}
    wrappers: dict[str, Callable[[nn.Module], nn.Module]] = {
        "ddp": lambda net: DistributedDataParallel(net, process_group=roles.data_group),
        "fsdp": lambda net: fully_shard(net, mesh=roles.mesh["data"]),
    }
    for name, wrap in wrappers.items():
        net = wrap(small(rank if name == "ddp" else roles.role))
        opt = parallel.ParallelSAMPa(sgd(net.parameters()), roles=roles, model=net, max_grad_norm=0.5, compare_every=1)
        data = [closure_for(net, roles.part(x.flatten(1)), roles.part(y)) for x, y in batches(7)]
        for here, there in zip(data, data[1:], strict=False):
            opt.step(here, there)
        opt.share_buffers()
        found[name] = [*weights(net), *(b.clone() for b in net.buffers())]
    return found


def small(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(75, 5), nn.Tanh(), nn.Linear(5, 3)).double()


def test_wrappers_inside_a_role(tmp_path: Path) -> None:
    net = small()
    opt = sam_core.SAMPa(sgd(net.parameters()), model=net, max_grad_norm=0.5)
    data = [[closure_for(net, *part) for part in zip(x.flatten(1).tensor_split(2), y.tensor_split(2), strict=True)] for x, y in batches(7)]
    for here, there in zip(data, data[1:], strict=False):
        opt.step(here, there)
    for found in together(4, wrapped, tmp_path):
        for name in found:
            for p, q in zip(found[name], weights(net), strict=True):
                torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-12, msg=lambda text, name=name: f"{name}: {text}")
