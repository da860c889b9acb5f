"""Methods under DistributedDataParallel, in 2 and 4 processes, against one process and against loops written out."""

import io
import itertools
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import family
import processes
import pytest
import torch
from family import Member
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

import sam_core
from sam_core import ranks

pytestmark = pytest.mark.distributed

# One of each order of passes: in 4 processes too, and with each setting of the wrapper.
KINDS = ("sam", "gsam", "wsam", "fsam", "looksam, k=2", "msam, pieces", "sam, pieces", "sampa", "sampa, pieces", "optsam", "mesa")
FEW = ("sam", "sampa")
SETTINGS: dict[str, dict[str, Any]] = {
    "bucket views": {"gradient_as_bucket_view": True},
    "static graph": {"static_graph": True},
    "unused": {"find_unused_parameters": True},
}
LOCAL = {
    "sam": Member("sam"),
    "asam": Member("asam"),
    "gsam": Member("gsam"),
    "wsam": Member("wsam"),
    "wsam, clipped": Member("wsam", {"max_grad_norm": 0.05}),
    "interval, k=2": Member("interval", {"k": 2}),
    "sam, pieces": Member("sam", pieces=2),
    "msam, pieces": Member("msam", pieces=2),
}


class Forked(nn.Module):
    """Takes one of two ways, as it is told; its batch norm sees the inputs themselves, and some parameters nobody uses."""

    def __init__(self) -> None:
        super().__init__()
        self.never = nn.Linear(3, 2).double()  # in the group with weight decay
        nn.init.ones_(self.never.weight)
        nn.init.ones_(self.never.bias)
        self.norm = nn.BatchNorm1d(5).double()
        self.left, self.right = family.network(1), family.network(2)
        self.lefts: Iterator[bool] = itertools.repeat(True)

    def forward(self, x: Tensor) -> Tensor:
        return (self.left if next(self.lefts) else self.right)(self.norm(x))


WAYS: dict[str, Callable[[int, bool], bool]] = {  # (rank, perturbed) -> left
    "by rank": lambda rank, perturbed: rank == 0,
    "by pass": lambda rank, perturbed: not perturbed,
}


def forked(rank: int, world: int, way: str, scope: str, method: str) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the weights after each step, and the running statistics at the end."""
    model, member = Forked(), Member(method)
    model.lefts = itertools.cycle(WAYS[way](rank, perturbed) for perturbed in (False, True))
    wrapped = DistributedDataParallel(model, find_unused_parameters=True)
    opt = family.wrapped(wrapped, member, scope=scope)
    rows = family.advance(wrapped, opt, member, range(family.STEPS), rank, world)
    return rows, dict(model.norm.named_buffers())


def overflow(rank: int, world: int, scope: str) -> tuple[list[float], Tensor]:
    """Return the loss scales of steps of which the second overflows on the last rank alone, and the weights."""
    model, member = family.network(), Member("sam")
    wrapped = DistributedDataParallel(model)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=100)
    opt = family.wrapped(wrapped, member, scope=scope, scaler=scaler)
    scales = []
    for step in range(3):
        x, y = (part[rank::world] for part in family.batch(step))
        huge = step == 1 and rank == world - 1

        def closure(x: Tensor = x, y: Tensor = y, huge: bool = huge) -> Tensor:
            opt.zero_grad()
            loss = F.cross_entropy(wrapped(x), y) * (float("inf") if huge else 1.0)
            scaler.scale(loss).backward()
            return loss

        opt.step(closure)
        scaler.update()
        scales.append(scaler.get_scale())
    return scales, family.weights(model)


def averaged(rank: int, world: int) -> dict[str, Any]:
    """Return what the functions of `ranks` make of tensors that differ by rank."""
    tensors = [torch.full((2, 3), rank + 1.0), torch.full((5,), 10.0 * rank, dtype=torch.float64), torch.full((), rank + 2.0)]
    tensors.append(torch.arange(6.0).reshape(2, 3).T * rank)  # not contiguous
    ranks.mean_(tensors)
    return {"mean": tensors, "taking part": ranks.taking_part([rank == 0, False, True], torch.device("cpu"))}


def resumed(rank: int, world: int) -> list[Tensor]:
    """Return the iterates of a run, and of one that goes on from its saved state."""
    member = Member("sampa")
    models = [DistributedDataParallel(family.network(), gradient_as_bucket_view=True) for _ in range(2)]
    opts = [family.wrapped(model, member) for model in models]
    family.advance(models[0], opts[0], member, range(2), rank, world)
    file = io.BytesIO()
    torch.save({"model": models[0].state_dict(), "opt": opts[0].state_dict()}, file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    models[1].load_state_dict(state["model"])
    opts[1].load_state_dict(state["opt"])
    return [family.advance(model, opt, member, range(2, 4), rank, world) for model, opt in zip(models, opts, strict=True)]


def work(rank: int, world: int) -> dict[str, Any]:
    def run(member: Member, settings: dict[str, Any] | None = None, **options: Any) -> Tensor:
        model = DistributedDataParallel(family.network(), **settings or {})
        return family.advance(model, family.wrapped(model, member, **options), member, range(family.STEPS), rank, world)

    runs: dict[str, Callable[[], Any]] = {}
    for name in family.MEMBERS if world == 2 else KINDS:
        runs[name] = lambda name=name: run(family.MEMBERS[name])
    for setting, settings in SETTINGS.items():
        for name in KINDS if world == 2 else FEW:
            runs[f"{name}, {setting}"] = lambda name=name, settings=settings: run(family.MEMBERS[name], settings)
        runs[f"local, {setting}"] = lambda settings=settings: run(LOCAL["gsam"], settings, scope="local")
    for name, member in LOCAL.items():
        runs[f"local {name}"] = lambda member=member: run(member, scope="local")
    for scope in ("global", "local"):
        runs[f"overflow {scope}"] = lambda scope=scope: overflow(rank, world, scope)
        for method in ("sam", "gsam"):
            for way in WAYS:
                runs[f"{way} {scope} {method}"] = lambda w=way, s=scope, m=method: forked(rank, world, w, s, m)
    runs["averaged"] = lambda: averaged(rank, world)
    runs["resumed"] = lambda: resumed(rank, world)
    for name, options in (("fsam", {}), ("looksam", {}), ("sampa", {}), ("aesam", {})):
        runs[f"refused {name}"] = lambda name=name, options=options: run(Member(name, options), scope="local")
    runs["refused second order"] = lambda: run(Member("sam", {"second_order": True}))
    return {name: family.attempt(one) for name, one in runs.items()}


@pytest.fixture(scope="module")
def of_world(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], list[dict[str, Any]]]:
    return cache(lambda world: processes.together(world, work, tmp_path_factory.mktemp("ranks"), limit=240))


@pytest.fixture(params=[2, pytest.param(4, marks=pytest.mark.slow)])
def results(request: pytest.FixtureRequest, of_world: Callable[[int], list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """What each rank of 2, and of 4, has found."""
    return of_world(request.param)


def agree(results: list[dict[str, Any]], name: str, expected: Tensor) -> None:
    for result in results:
        assert isinstance(result[name], Tensor), result[name]
        torch.testing.assert_close(result[name], expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("results", "name"), [*((2, name) for name in family.MEMBERS), *((4, name) for name in KINDS)], indirect=["results"]
)
def test_global_scope_is_one_process(results: list[dict[str, Any]], name: str) -> None:
    agree(results, name, family.alone(name))


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize(("results", "name"), [*((2, name) for name in KINDS), *((4, name) for name in FEW)], indirect=["results"])
def test_settings_of_the_wrapper_change_nothing(results: list[dict[str, Any]], name: str, setting: str) -> None:
    agree(results, f"{name}, {setting}", family.alone(name))


# -- written out


def climb(method: str, names: list[str], params: list[Tensor], gradient: list[Tensor]) -> list[Tensor]:
    """Return eps of SAM or ASAM with the defaults of the method."""
    rho = {"asam": 0.5}.get(method, 0.05)
    pairs = zip(names, params, strict=True)
    sizes = [w.abs() + 0.01 if method == "asam" and "bias" not in name else torch.ones_like(w) for name, w in pairs]
    length = torch.cat([(t * g).reshape(-1) for t, g in zip(sizes, gradient, strict=True)]).norm()
    return [rho * t * t * g / length for t, g in zip(sizes, gradient, strict=True)]


def gradient_at(model: nn.Module, batch: sam_core.Minibatch, eps: list[Tensor] | None = None) -> list[Tensor]:
    """Return the gradient at w, or at w + eps; zeros where a parameter took no part."""
    params = list(model.parameters())
    before = [p.detach().clone() for p in params]
    with torch.no_grad():
        for p, e in zip(params, eps or [torch.zeros_like(p) for p in params], strict=True):
            p.add_(e)
    found = torch.autograd.grad(batch.loss(batch.outputs()), params, allow_unused=True)
    with torch.no_grad():
        for p, b in zip(params, before, strict=True):
            p.copy_(b)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(params, found, strict=True)]


def mean(rows: list[list[Tensor]]) -> list[Tensor]:
    return [torch.stack(column).mean(0) for column in zip(*rows, strict=True)]


def written_out(member: Member, world: int, scope: str = "local", way: str | None = None) -> Tensor:
    """Return the iterates of a loop over ranks, shards and passes in one process."""
    model = family.network() if way is None else Forked()
    names, params = [name for name, _ in model.named_parameters()], list(model.parameters())
    base = family.wrapped(model, Member("none")).base
    rows = []

    def gradient(shards: list[tuple[int, Any]], eps: list[Tensor] | None = None) -> list[Tensor]:
        found = []
        for rank, shard in shards:
            if isinstance(model, Forked) and way is not None:
                model.lefts = itertools.repeat(WAYS[way](rank, eps is not None))
            found.append(gradient_at(model, shard, eps))
        return mean(found)

    for step in range(family.STEPS):
        shards = [[(rank, s) for s in family.closures(model, step, member.pieces, rank, world)] for rank in range(world)]
        everything = [pair for own in shards for pair in own]
        together = [everything] if scope == "global" else [[pair] for pair in everything] if member.method == "msam" else shards
        downhill, drifts = [], []
        for climbing in together:
            g = gradient(climbing)
            if member.method == "interval" and step % 2:
                downhill.append(g)
                continue
            s = gradient(climbing, climb(member.method, names, params, g))
            if member.method == "gsam":
                flat, other = (torch.cat([x.reshape(-1) for x in v]) for v in (s, g))
                along = flat @ other / (flat @ flat)
                s = [a - 0.4 * (b - along * a) for a, b in zip(s, g, strict=True)]
            if member.method == "wsam":
                drifts.append([9.0 * (a - b) for a, b in zip(s, g, strict=True)])
                s = g
            downhill.append(s)
        update = mean(downhill)
        drift = mean(drifts) if drifts else [torch.zeros_like(p) for p in params]
        if "max_grad_norm" in member.options:
            length = torch.cat([(a + b).reshape(-1) for a, b in zip(update, drift, strict=True)]).norm()
            share = min(1.0, member.options["max_grad_norm"] / (float(length) + 1e-6))
            update, drift = [a * share for a in update], [b * share for b in drift]
        for name, p, g in zip(names, params, update, strict=True):
            p.grad = None if name.startswith("never") else g
        base.step()
        with torch.no_grad():
            for p, d in zip(params, drift, strict=True):
                p.sub_(0.2 * d)
        rows.append(family.weights(model))
    return torch.stack(rows)


@pytest.mark.parametrize("name", LOCAL)
def test_local_scope_is_a_loop_over_ranks(results: list[dict[str, Any]], name: str) -> None:
    agree(results, f"local {name}", written_out(LOCAL[name], len(results)))


def test_local_scope_is_msam_with_a_rank_as_a_shard(results: list[dict[str, Any]]) -> None:
    model, world = family.network(), len(results)
    opt = family.wrapped(model, Member("msam"))
    for step in range(family.STEPS):
        opt.step([family.closures(model, step, 1, rank, world)[0] for rank in range(world)])
    agree([{"last": result["local sam"][-1]} for result in results], "last", family.weights(model))


def test_local_scope_with_settings_of_the_wrapper(results: list[dict[str, Any]]) -> None:
    for setting in ("bucket views", "unused"):
        agree(results, f"local, {setting}", written_out(LOCAL["gsam"], len(results)))
    assert "static_graph=True" in results[0]["local, static graph"]


@pytest.mark.parametrize("method", ["sam", "gsam"])
@pytest.mark.parametrize("scope", ["global", "local"])
@pytest.mark.parametrize("way", WAYS)
def test_parameters_that_take_no_part_in_a_pass_or_on_a_rank(results: list[dict[str, Any]], way: str, scope: str, method: str) -> None:
    """What no rank uses is not even decayed."""
    assert not isinstance(results[0][f"{way} {scope} {method}"], str), results[0][f"{way} {scope} {method}"]
    expected = written_out(Member(method), len(results), scope, way)
    agree([{"weights": result[f"{way} {scope} {method}"][0]} for result in results], "weights", expected)


@pytest.mark.parametrize("method", ["sam", "gsam"])
@pytest.mark.parametrize("scope", ["global", "local"])
def test_running_statistics_are_those_of_rank_0_and_move_once_per_step(results: list[dict[str, Any]], scope: str, method: str) -> None:
    """The layer sees the inputs. Each forward pass begins with rank 0's statistics, and moves them by the rank's own batch."""
    world = len(results)
    kept = torch.zeros(5, dtype=torch.float64)
    for step in range(family.STEPS):
        before, kept = kept, 0.9 * kept + 0.1 * family.batch(step)[0][0::world].mean(0)
    for rank, result in enumerate(results):
        _, statistics = result[f"by rank {scope} {method}"]
        assert int(statistics["num_batches_tracked"]) == family.STEPS
        own = 0.9 * before + 0.1 * family.batch(family.STEPS - 1)[0][rank::world].mean(0)
        torch.testing.assert_close(statistics["running_mean"], own, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("scope", ["global", "local"])
def test_what_one_rank_must_skip_all_skip(results: list[dict[str, Any]], scope: str) -> None:
    scales, expected = results[0][f"overflow {scope}"]
    assert scales == [4.0, 2.0, 2.0]
    for result in results:
        assert result[f"overflow {scope}"][0] == scales
        torch.testing.assert_close(result[f"overflow {scope}"][1], expected, rtol=0, atol=0)


# -- the ground


def test_averages_and_who_takes_part(results: list[dict[str, Any]]) -> None:
    world = len(results)
    middle = (world - 1) / 2
    for result in results:
        full, wide, single, turned = result["averaged"]["mean"]
        assert torch.equal(full, torch.full((2, 3), middle + 1)) and torch.equal(single, torch.tensor(middle + 2))
        assert torch.equal(wide, torch.full((5,), 10 * middle, dtype=torch.float64))
        assert torch.equal(turned, torch.arange(6.0).reshape(2, 3).T * middle)
        assert result["averaged"]["taking part"] == [True, False, True]


def test_a_saved_run_goes_on(results: list[dict[str, Any]]) -> None:
    """To the last bit but one: the wrapper sums in another order before it has seen a backward pass."""
    for result in results:
        torch.testing.assert_close(*result["resumed"], rtol=1e-14, atol=1e-15)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("fsam", "Friendly carries something"),
        ("looksam", "Look carries something"),
        ("sampa", "SAMPa carries grad f"),
        ("aesam", "decides by the gradient"),
        ("second order", "differentiates twice"),
    ],
)
def test_what_ranks_cannot_agree_on_is_refused(results: list[dict[str, Any]], name: str, message: str) -> None:
    assert results[0][f"refused {name}"].startswith("ValueError") and message in results[0][f"refused {name}"]


def test_local_scope_without_data_parallel_is_refused() -> None:
    with pytest.raises(ValueError, match='scope="local" needs model='):
        family.wrapped(family.network(), Member("sam"), scope="local")


def test_buckets_keep_kinds_apart_and_stay_small() -> None:
    tensors = [torch.zeros(n, dtype=t) for n, t in ((4, torch.float32), (3, torch.float64), (4, torch.float32), (9, torch.float32))]
    sizes = [[(x.numel(), x.dtype) for x in bucket] for bucket in ranks.buckets(tensors, limit=32)]
    assert sizes == [[(4, torch.float32)] * 2, [(9, torch.float32)], [(3, torch.float64)]]
