"""Loss surfaces beside loss-landscapes and tomgoldstein/loss-landscape: points per second on the same grid, and the losses themselves.

    python benchmarks/surfaces.py [--data-dir FOLDER] [--goldstein CLONE] [--rounds 5] [--threads 1 2] [--reuse-memory] [--quick]
        [--out DIR]

CLONE is a clone of tomgoldstein/loss-landscape, whose functions that move the weights and evaluate the loss are called in its own loop, on
a loader without workers; without it that contender is left out. loss-landscapes evaluates the whole data at once. The grids are 25 x 25
for `mlp` and 9 x 9 for `cnn`, where a point takes the same time in any grid.

All contenders have the same number of threads, once for each that is named, and the memory allocator that a Python process has. With
--reuse-memory all have the setting with which our own commands run (sam_core.allocator): it helps those most that evaluate large batches.
"""

import argparse
import statistics
import sys
import time
import types
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from contenders import RESULTS, Contender, Target, interleaved, machine, note, save, table
from problems import Problem, cnn_problem, mlp_problem
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.flop_counter import FlopCounterMode

import landscape
from landscape.objective import Objective
from landscape.stateless import undisturbed
from landscape.surfaces.points import fastest
from sam_core.allocator import reuse_freed_memory

warnings.simplefilter("ignore")  # of the peers
import loss_landscapes  # noqa: E402
from loss_landscapes import metrics  # noqa: E402


def goldstein(clone: Path, net: nn.Module, x: Tensor, y: Tensor, plane: Any, points: int) -> Any:
    """Return a function that evaluates a grid as `plot_surface.py` does, without its file and its printing."""
    sys.path.insert(0, str(clone))
    sys.modules.setdefault("model_loader", types.ModuleType("model_loader"))  # its own networks, which want torchvision
    import evaluation
    import net_plotter

    loader = DataLoader(TensorDataset(x, y), batch_size=128, num_workers=0)
    weights = [p.detach().clone() for p in net.parameters()]
    directions = [[d[name] for name, _ in net.named_parameters()] for d in plane.directions]
    axis = np.linspace(-1, 1, points)

    def run() -> np.ndarray:
        losses = np.empty((points, points))
        for j, b in enumerate(axis):
            for i, a in enumerate(axis):
                net_plotter.set_weights(net, weights, directions, (a, b))
                losses[j, i] = evaluation.eval_loss(net, nn.CrossEntropyLoss(), loader)[0]
        net_plotter.set_weights(net, weights)
        return losses

    return run


def matmul_peak() -> float:
    """Return the flops per second of a product of two 512 x 512 matrices."""
    a, b = torch.randn(512, 512), torch.randn(512, 512)
    best = float("inf")
    for _ in range(20):
        start = time.perf_counter()
        a @ b
        best = min(best, time.perf_counter() - start)
    return 2 * 512**3 / best


def compared(
    name: str, problem: Problem, points: int, threads: int, options: argparse.Namespace
) -> tuple[dict[str, Any], list[str], list[Target]]:
    net, x, y = problem
    torch.set_num_threads(threads)
    objective = Objective(net, cross_entropy, (x, y))
    plane = landscape.random_plane(objective, seed=0)
    axis = (-1, 1, points)
    with undisturbed(objective.device):
        batch = next(iter(objective.batches))
        way, seconds = fastest(objective, plane, 2, batch, [(0.1 * i, 0.1) for i in range(16)])
    criterion = metrics.Loss(nn.CrossEntropyLoss(), x, y)
    # "filter" fails on biases of one number in 3.0.6, so the plane is drawn with its layer norm: the evaluations are the same
    peer = lambda: loss_landscapes.random_plane(net, criterion, distance=1, steps=points, normalization="layer", deepcopy_model=True)  # noqa: E731
    contenders = [
        Contender("landscape", lambda: landscape.loss_surface(objective, plane, axis, axis, progress=False).loss, units=points**2),
        Contender("loss-landscapes 3.0.6", peer, units=points**2),
    ]
    worst = None
    if options.goldstein is not None:
        run = goldstein(options.goldstein, net, x, y, plane, points)
        contenders.append(Contender("tomgoldstein/loss-landscape, no workers", run, units=points**2))
        ours = landscape.loss_surface(objective, plane, axis, axis, progress=False).loss
        worst = float(np.max(np.abs(ours / run() - 1)))
    times = interleaved(contenders, options.rounds, "wall", warm_up=1)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(x[:64])
    flops = counter.get_total_flops() / 64 * len(y)
    peak = statistics.median(matmul_peak() for _ in range(5))
    share = flops / times.median("landscape") / peak
    rows = [[c.name, 1 / times.median(c.name), times.ratio(c.name, "landscape")] for c in contenders]
    text = (
        f"Way: {way}; seconds per point of a batch of {objective.batches.batch_size}: "
        + (", ".join(f"{w} {1e3 * s:.3g} ms" for w, s in seconds.items()) or "one way only")
        + f". A point takes {flops / 1e6:.3g} Mflop: {100 * share:.0f} % of the speed of a matrix product ({peak / 1e9:.0f} Gflop/s)."
        + ("" if worst is None else f" Largest relative difference to tomgoldstein's losses: {worst:.1e}.")
    )
    label = f"{name}, {threads} thread{'s' * (threads > 1)}"
    factor = {"mlp": (1.4, 25), "cnn": (3.5, 2.4)}[name]
    targets = [
        Target(f"{label}: times as fast as loss-landscapes", times.ratio("loss-landscapes 3.0.6", "landscape"), factor[0], at_least=True)
    ]
    if options.goldstein is not None:
        theirs = times.ratio("tomgoldstein/loss-landscape, no workers", "landscape")
        targets.append(Target(f"{label}: times as fast as tomgoldstein's functions", theirs, factor[1], at_least=True))
    if name == "cnn":
        targets.append(Target(f"{label}: share of the speed of a matrix product", share, 0.45, at_least=True))
    section = [f"## {label}, {points} x {points}", table(["", "points / s", "of landscape's time"], rows), text]
    return {label: {"seconds": times.seconds, "ways": seconds, "way": way, "share": share}}, section, targets


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--goldstein", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--reuse-memory", action="store_true")
    parser.add_argument("--quick", action="store_true", help="a smoke run: the numbers mean nothing")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    if options.quick:
        options.rounds = 1
    if options.reuse_memory:
        reuse_freed_memory()
    results: dict[str, Any] = {}
    sections: list[str] = []
    targets: list[Target] = []
    for name, problem, points in (
        ("mlp", mlp_problem(options.quick), 5 if options.quick else 25),
        ("cnn", cnn_problem(options.data_dir, options.quick), 3 if options.quick else 9),
    ):
        for threads in options.threads:
            note(f"{name}, {threads} threads")
            found = compared(name, problem, points, threads, options)
            results |= found[0]
            sections += found[1]
            targets += found[2]
    header = machine("wall", ("loss-landscapes",)) | {
        "rounds": options.rounds,
        "memory": "reused" if options.reuse_memory else "as by default",
    }
    print(save("surfaces", "Full loss surfaces", header, results, sections, targets, options.out))


if __name__ == "__main__":
    sys.exit(main())
