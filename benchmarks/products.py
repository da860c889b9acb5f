"""What one product costs in each of its forms, in gradients of the same network in its fastest form.

    python benchmarks/products.py [--quick] [--rounds 5] [--net resnet8] [--images 512] [--out DIR]

Contenders in the same run, one CPU thread, random images of the size of CIFAR's in batches as `Objective` cuts them:

* Hessian: graphs rebuilt or kept, the model plain, rewritten, with channels last; forward over reverse mode; `torch.func.linearize`
* Gauss-Newton and Monte-Carlo Fisher, and the block of one layer, in the form that is chosen
* several vectors at once against one after the other, for this network and for a small one
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from contenders import RESULTS, Contender, Target, interleaved, machine, save, table
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from landscape.curvature import GGNOperator, HessianOperator, MonteCarloFisherOperator
from landscape.curvature.forms import timed
from landscape.fastforms import channels_last
from landscape.objective import Objective
from sam_core import models
from sam_core.allocator import reuse_freed_memory

CPU = torch.device("cpu")


def gradient(objective: Objective, form: Any) -> Callable[[], object]:
    """Return the bare gradient in a form: forward, backward, nothing else."""
    held = objective.held()
    params = {n: (channels_last(p) if form == "channels_last" else p).clone().requires_grad_() for n, p in objective.parameters.items()}

    def run() -> None:
        for batch in objective.batches:
            torch.autograd.grad(objective.batch_loss(params, batch, held, form), list(params.values()))

    return run


def functional_products(objective: Objective, vector: Tensor, linear: bool) -> Callable[[], object]:
    """Return products by `torch.func`: linearize (built once for each batch), or forward over reverse mode."""
    held, params = objective.held(), objective.parameters
    tangents = objective.unflatten(vector)
    batches = list(objective.batches)
    of_batch = [torch.func.grad(lambda p, b=batch: objective.batch_loss(p, b, held)) for batch in batches]
    if linear:
        maps = [torch.func.linearize(g, params)[1] for g in of_batch]
        return lambda: [f(tangents) for f in maps]
    return lambda: [torch.func.jvp(g, (params,), (tangents,)) for g in of_batch]


def single(options: argparse.Namespace) -> tuple[dict[str, Any], list[str], list[Target]]:
    net = models.make(options.net, 10, 3, **({"width": 8} if options.net == "resnet8" else {}))
    draw = torch.Generator().manual_seed(0)
    x, y = torch.randn(options.images, 3, 32, 32, generator=draw), torch.randint(0, 10, (options.images,), generator=draw)
    with torch.no_grad():
        net(x[:64])  # running statistics
    objective = Objective(net, cross_entropy, (x, y))
    vector = torch.randn(objective.size, generator=draw)
    chosen = HessianOperator(objective)
    operators: dict[str, Any] = {
        "Hessian, as chosen": chosen,
        "plain, rebuilt": HessianOperator(objective, form="plain", memory_budget=0),
        "plain, kept": HessianOperator(objective, form="plain"),
        "rewritten, kept": HessianOperator(objective, form="rewritten"),
        "channels last, rebuilt": HessianOperator(objective, form="channels_last", memory_budget=0),
        "channels last, kept": HessianOperator(objective, form="channels_last"),
        "Gauss-Newton, as chosen": GGNOperator(objective),
        "Monte-Carlo Fisher, as chosen": MonteCarloFisherOperator(objective),
    }
    build = {name: timed(lambda o=o: o.matvec(vector), CPU) for name, o in operators.items()}
    form = chosen.form
    runs: dict[str, Callable[[], object]] = {name: lambda o=o: o.matvec(vector) for name, o in operators.items()}
    layers = chosen.blocks()
    last = [name for name, block in layers.items() if all(block.point[n].ndim == 4 for n in block.names)][-1]
    runs[f"block of {last}"] = lambda: layers[last].matvec(torch.ones(layers[last].size))
    runs["torch.func: forward over reverse"] = functional_products(objective, vector, linear=False)
    made: list[Callable[[], object]] = []
    build["torch.func.linearize"] = timed(lambda: made.append(functional_products(objective, vector, linear=True)), CPU)
    runs["torch.func.linearize"] = made[0]
    runs["gradient, plain"], runs[f"gradient, {form}"] = gradient(objective, "plain"), gradient(objective, form)
    times = interleaved([Contender(name, run) for name, run in runs.items()], options.rounds, "wall", warm_up=1)
    base = f"gradient, {form}"
    kept = {name: o.memory_kept / 2**20 for name, o in operators.items()}
    rows = [[name, times.median(name) * 1e3, times.ratio(name, base), build.get(name), kept.get(name)] for name in runs]
    text = table(["", "ms", "gradients", "s, first product", "MiB kept"], rows)
    product = times.ratio("Hessian, as chosen", base)
    targets = [
        Target("gradients of the same form in a product", product, 2.3),
        Target("the plain kept product, in products as chosen", times.ratio("plain, kept", "Hessian, as chosen"), 1.0, at_least=True),
    ]
    return {"single": times.seconds, "build": build, "kept": kept}, [f"## One product: {chosen!r}", text], targets


def several(options: argparse.Namespace) -> tuple[dict[str, Any], list[str], list[Target]]:
    draw = torch.Generator().manual_seed(0)
    mlp = nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 16), nn.Tanh(), nn.Linear(16, 10))
    cnn = models.make("resnet8", 10, 3, width=8).eval()
    rows, results = [], {}
    for name, net, shape in (("64-32-16-10", mlp, (512, 64)), ("resnet8", cnn, (64, 3, 32, 32))):
        objective = Objective(net, cross_entropy, (torch.randn(shape, generator=draw), torch.randint(0, 10, (shape[0],), generator=draw)))
        for k in (2, 8):
            vectors = torch.randn(objective.size, k, generator=draw)
            pair = [HessianOperator(objective, at_once=at_once) for at_once in (False, True)]
            runs = [Contender(word, lambda o=o, v=vectors: o.matmat(v)) for word, o in zip(("single", "together"), pair, strict=True)]
            times = interleaved(runs, options.rounds, "wall", warm_up=1)
            rows.append(
                [f"{name}, {k} vectors", *(times.median(word) / k * 1e3 for word in times.seconds), times.ratio("together", "single")]
            )
            results[rows[-1][0]] = times.seconds
    text = table(["", "ms per vector, one by one", "together", "ratio"], rows)
    return {"several": results}, ["## Several vectors at once", text], []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--net", default="resnet8")
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--quick", action="store_true", help="a smoke run: the numbers mean nothing")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.images = 1, 64
    torch.set_num_threads(1)
    reuse_freed_memory()
    header = machine("wall") | {"rounds": options.rounds, "net": options.net, "images": options.images}
    one, many = single(options), several(options)
    print(save("products", "Products", header, one[0] | many[0], one[1] + many[1], one[2] + many[2], options.out))


if __name__ == "__main__":
    sys.exit(main())
