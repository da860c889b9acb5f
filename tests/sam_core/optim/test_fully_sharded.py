"""Methods on parameters sharded by fully_shard, in 2 and 4 processes, against one process with the whole model."""

import io
from collections.abc import Callable
from functools import cache
from typing import Any

import family
import processes
import pytest
import torch
from family import Member
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor import DTensor, Partial
from torch.distributed.tensor.debug import CommDebugMode
from torch.nn import functional as F

from sam_core import ranks
from sam_core.optim import vectors

pytestmark = pytest.mark.distributed

FEW = ("sam, p=1", "asam", "msam, pieces", "gsam", "randsam", "sampa, adam")
HYBRID = ("gsam", "randsam")
MIXED = ("asam", "fsam", "vasso", "gsam", "sampa", "sam, p=3")
ORDERS = (1.0, 2.0, 3.0, float("inf"))


def layered(model: nn.Module) -> nn.Module:
    """Shard every layer by itself: the whole copy of one goes before that of the next comes."""
    for layer in model:
        if list(layer.parameters()):
            fully_shard(layer)
    return fully_shard(model)


def mixed(model: nn.Module) -> nn.Module:
    """Leave the parameters of a layer whole on every rank."""
    return fully_shard(model, ignored_params=set(model[2].parameters()))


def hybrid(model: nn.Module) -> nn.Module:
    """Shard over pairs of ranks, with a copy in every pair."""
    return fully_shard(model, mesh=init_device_mesh("cpu", (2, 2), mesh_dim_names=("copy", "shard")))


def measured(rank: int, world: int) -> dict[str, Any]:
    """Return losses within perturb(), after it and between, where forward passes leave whole copies behind."""
    model = fully_shard(family.network())
    opt = family.wrapped(model, Member("sam"))
    x, y = family.batch(0)

    def loss() -> float:
        with torch.no_grad():
            return float(F.cross_entropy(model(x), y))

    before = family.weights(model)
    F.cross_entropy(model(x), y).backward()
    losses = [loss()]
    with opt.perturb():
        losses.append(loss())
    losses.append(loss())
    ranks.reshard(model)
    return {"losses": losses, "home": torch.equal(before, family.weights(model))}


def interrupted(rank: int, world: int) -> bool:
    """Say whether the weights are to the bit what they were, after a closure that raised at w + eps."""
    model = fully_shard(family.network())
    opt, member = family.wrapped(model, Member("sam")), Member("sam")
    family.advance(model, opt, member, range(1), rank, world)
    before = family.weights(model)
    batch = family.closures(model, 1, 1, rank, world)[0]
    calls: list[None] = []

    def closure() -> Tensor:
        calls.append(None)
        loss = batch()
        if len(calls) == 2:
            raise KeyboardInterrupt
        return loss

    try:
        opt.step(closure)
    except KeyboardInterrupt:
        return torch.equal(before, family.weights(model))
    return False


def resumed(rank: int, world: int, name: str) -> dict[str, Any]:
    """Say whether a run goes on from its saved state to the bit, and what was carried is cut like the parameters."""
    member = family.MEMBERS[name]
    models = [fully_shard(family.network()) for _ in range(2)]
    opts = [family.wrapped(model, member) for model in models]
    family.advance(models[0], opts[0], member, range(2), rank, world)
    file = io.BytesIO()
    torch.save({"model": models[0].state_dict(), "opt": opts[0].state_dict()}, file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    models[1].load_state_dict(state["model"])
    opts[1].load_state_dict(state["opt"])
    rows = [family.advance(model, opt, member, range(2, 4), rank, world) for model, opt in zip(models, opts, strict=True)]
    local: list[bool] = []
    for opt in opts:
        kept = [(p, v) for part in opt._parts().values() for table in part.carried.values() for p, v in table.items()]
        kept += [(p, v) for p, entry in opt.base.state.items() for v in entry.values() if isinstance(v, Tensor) and v.dim()]
        kept += list(zip(*opt._home._shelf, strict=True))
        local += [isinstance(v, DTensor) and v.to_local().shape == p.to_local().shape for p, v in kept]
    return {"same": torch.equal(*rows), "local": all(local), "kept": len(local)}


def messages(rank: int, world: int, name: str) -> list[str]:
    """Return what kinds of messages a step sends, beside those of forward and backward: here the gradients are given."""
    model = fully_shard(family.network())
    opt = family.wrapped(model, family.MEMBERS[name])
    params = list(model.parameters())
    family.closures(model, 0, 1, rank, world)[0]()
    given = [p.grad for p in params]

    def closure() -> Tensor:
        for p, g in zip(params, given, strict=True):
            p.grad = g.clone()
        return torch.zeros(())

    opt.zero_grad()
    with CommDebugMode() as seen:
        opt.step(closure)
        opt.step(closure)
    return sorted({str(kind) for kind, count in seen.get_comm_counts().items() if count})


def numbers(rank: int, world: int) -> dict[str, Any]:
    """Return norms, inner products and counts of sharded tensors, and those of the whole ones."""
    g = torch.Generator().manual_seed(0)
    whole = [torch.randn(shape, generator=g, dtype=torch.float64) for shape in ((7, 3), (1, 5), (3,))]
    mesh = init_device_mesh("cpu", (world,))
    like = [torch.distributed.tensor.zeros(x.shape, device_mesh=mesh, placements=[torch.distributed.tensor.Shard(0)]) for x in whole]
    cut = [ranks.placed(x, z.double()) for x, z in zip(whole, like, strict=True)]
    result: dict[str, Any] = {}
    for name, xs in (("cut", cut), ("mixed", [cut[0], *whole[1:]]), ("whole", whole)):
        values = [vectors.norm(xs), vectors.dot(xs, [2 * x for x in xs]), *(vectors.pure_norm(xs, ord) for ord in ORDERS)]
        result[name] = torch.stack([*values, vectors.count([x > 0 for x in xs])])
    summand = DTensor.from_local(whole[0], mesh, [Partial()])
    result["summand"] = family.attempt(lambda: vectors.norm([summand]))
    return result


def work(rank: int, world: int) -> dict[str, Any]:
    def run(name: str, shard: Callable[[nn.Module], nn.Module] = fully_shard, data: tuple[int, int] = (rank, world)) -> Tensor:
        model, member = shard(family.network()), family.MEMBERS[name]
        return family.advance(model, family.wrapped(model, member), member, range(family.STEPS), *data)

    def old() -> object:
        model = FullyShardedDataParallel(family.network(), use_orig_params=True, device_id=torch.device("cpu"))
        return family.wrapped(model, Member("sam"))

    runs: dict[str, Callable[[], Any]] = {}
    for name in family.MEMBERS if world == 2 else FEW:
        runs[name] = lambda name=name: run(name)
    runs["layered"] = lambda: run("sampa", layered)
    if world == 4:
        for name in HYBRID:
            runs[f"hybrid {name}"] = lambda name=name: run(name, hybrid)
    else:
        for name in MIXED:  # nobody averages the gradients of what is left whole: all ranks have the same examples
            runs[f"mixed {name}"] = lambda name=name: run(name, mixed, (0, 1))
        for name in ("sam", "gsam", "fsam", "looksam, k=2", "sampa"):
            runs[f"messages {name}"] = lambda name=name: messages(rank, world, name)
            runs[f"resumed {name}"] = lambda name=name: resumed(rank, world, name)
        runs["measured"] = lambda: measured(rank, world)
        runs["interrupted"] = lambda: interrupted(rank, world)
        runs["refused local"] = lambda: family.wrapped(fully_shard(family.network()), Member("sam"), scope="local")
        runs["refused second order"] = lambda: family.wrapped(fully_shard(family.network()), Member("sam"), second_order=True)
        runs["refused flat"] = old
    runs["numbers"] = lambda: numbers(rank, world)
    return {name: family.attempt(one) for name, one in runs.items()}


@pytest.fixture(scope="module")
def of_world(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], list[dict[str, Any]]]:
    return cache(lambda world: processes.together(world, work, tmp_path_factory.mktemp("ranks"), limit=240))


@pytest.fixture(params=[2, pytest.param(4, marks=pytest.mark.slow)])
def results(request: pytest.FixtureRequest, of_world: Callable[[int], list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """What each rank of 2, and of 4, has found."""
    return of_world(request.param)


in_two = pytest.mark.parametrize("results", [2], indirect=True)


def found(results: list[dict[str, Any]], name: str) -> list[Any]:
    assert not isinstance(results[0][name], str), results[0][name]
    return [result[name] for result in results]


def agree(results: list[dict[str, Any]], name: str, expected: Tensor) -> None:
    for iterates in found(results, name):
        torch.testing.assert_close(iterates, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("results", "name"),
    [*((2, n) for n in family.MEMBERS), *(pytest.param(4, n, marks=pytest.mark.slow) for n in FEW)],
    indirect=["results"],
)
def test_iterates_are_those_of_one_process(results: list[dict[str, Any]], name: str) -> None:
    agree(results, name, family.alone(name))


def test_layers_sharded_one_by_one(results: list[dict[str, Any]]) -> None:
    agree(results, "layered", family.alone("sampa"))


@pytest.mark.parametrize("results", [4], indirect=True)
@pytest.mark.parametrize("name", HYBRID)
def test_copies_of_shards_count_once(results: list[dict[str, Any]], name: str) -> None:
    agree(results, f"hybrid {name}", family.alone(name))


@in_two
@pytest.mark.parametrize("name", MIXED)
def test_some_parameters_whole(results: list[dict[str, Any]], name: str) -> None:
    agree(results, f"mixed {name}", family.alone(name))


@pytest.mark.parametrize("kind", ["cut", "mixed"])
def test_norms_and_products_are_those_of_whole_tensors(results: list[dict[str, Any]], kind: str) -> None:
    """In 4 processes, some ranks hold nothing of a tensor."""
    for result in found(results, "numbers"):
        torch.testing.assert_close(result[kind], result["whole"], rtol=1e-14, atol=0)
        assert result["summand"].startswith("ValueError") and "sum over ranks that was not taken" in result["summand"]


@in_two
@pytest.mark.parametrize("name", ["sam", "gsam", "fsam", "looksam, k=2", "sampa"])
def test_nothing_is_gathered_for_the_optimizer(results: list[dict[str, Any]], name: str) -> None:
    """A step sends sums of numbers, and keeps no tensor but shards; a run goes on from a saved state to the bit."""
    for kinds in found(results, f"messages {name}"):
        assert kinds and all("all_reduce" in kind or "allreduce" in kind for kind in kinds), kinds
    for outcome in found(results, f"resumed {name}"):
        assert outcome["same"] and outcome["local"] and outcome["kept"] >= 12


@in_two
def test_losses_within_and_after_perturb(results: list[dict[str, Any]]) -> None:
    model = family.network()
    opt = family.wrapped(model, Member("sam"))
    x, y = family.batch(0)
    here = F.cross_entropy(model(x), y)
    here.backward()
    with opt.perturb():
        there = F.cross_entropy(model(x), y)
    for outcome in found(results, "measured"):
        assert outcome["losses"] == pytest.approx([here.item(), there.item(), here.item()], rel=1e-12)
        assert outcome["home"]


@in_two
def test_an_exception_leaves_the_weights(results: list[dict[str, Any]]) -> None:
    assert found(results, "interrupted") == [True, True]


@in_two
@pytest.mark.parametrize(
    ("what", "message"),
    [("local", "needs model="), ("second order", "fully_shard cannot"), ("flat", "use torch.distributed.fsdp.fully_shard")],
)
def test_what_cannot_be_right_is_refused(results: list[dict[str, Any]], what: str, message: str) -> None:
    assert results[0][f"refused {what}"].startswith("ValueError") and message in results[0][f"refused {what}"]
