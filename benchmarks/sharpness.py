"""What m-sharpness costs: our choice, the loop over shards, and the bare limit of one gradient and one forward pass.

    python benchmarks/sharpness.py [--quick] [--rounds 5] [--threads 1] [--cifar DIR] [--out DIR]

Contenders in the same run, on the problems `mlp` and `cnn` of benchmarks/problems.py, for m = 1, 4, 16, 128; one CPU thread by default:

* `chosen`: `m_sharpness` as users call it: layer by layer, by vmap, or a loop over a faster form of the model; which one is tried once for
  each objective, in the first call, which is not timed
* `loop`: the plain loop over shards, `vectorize=False`
* `by hand`: a loop as one writes it: autograd.grad, add eps to the parameters, forward, take it away
"""

import argparse
import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from contenders import RESULTS, Contender, Target, interleaved, machine, save, table
from problems import Problem, cnn_problem, mlp_problem
from torch import nn
from torch.nn.functional import cross_entropy

from landscape.objective import Objective
from landscape.sharpness import m_sharpness, worst_case

RHO = 0.05


def by_hand(model: nn.Module, data: tuple[torch.Tensor, torch.Tensor], m: int) -> Callable[[], float]:
    # Of a copy: w + eps - eps is not w to the last bit, and a model that has changed is measured anew.
    model = copy.deepcopy(model)
    params = list(model.parameters())

    def run() -> float:
        total = 0.0
        for x, y in zip(*(t.split(m) for t in data), strict=True):
            before = cross_entropy(model(x), y)
            grads = torch.autograd.grad(before, params)
            scale = RHO / torch.cat([g.reshape(-1) for g in grads]).norm()
            eps = [g * scale for g in grads]
            with torch.no_grad():
                for p, e in zip(params, eps, strict=True):
                    p += e
                total += (cross_entropy(model(x), y) - before).item() * len(y)
                for p, e in zip(params, eps, strict=True):
                    p -= e
        return total / len(data[1])

    return run


def measured(name: str, problem: Problem, sizes: list[int], rounds: int) -> tuple[dict[str, Any], str, list[Target]]:
    model, *tensors = problem
    data = tensors[0], tensors[1]
    objective = Objective(model, cross_entropy, data)
    rows, kept, targets = [], {}, []
    for m in sizes:
        expected = by_hand(model, data, m)()
        found = m_sharpness(objective, RHO, m).value
        assert abs(found - expected) < 1e-4 * abs(expected) + 1e-6, (found, expected)
        times = interleaved(
            [
                Contender("chosen", lambda m=m: m_sharpness(objective, RHO, m, progress=False)),
                Contender("loop", lambda m=m: m_sharpness(objective, RHO, m, vectorize=False, progress=False)),
                Contender("by hand", by_hand(model, data, m)),
            ],
            rounds,
            "process",
            warm_up=1,
        )
        gain, over = times.ratio("loop", "chosen"), times.ratio("by hand", "chosen")
        kept[str(m)] = times.seconds
        rows.append([m, *(times.median(c) for c in ("chosen", "loop", "by hand")), gain, over])
        if m == 1:
            targets.append(Target(f"{name}, m = 1: loop / chosen", gain, 15.0 if name == "mlp" else 3.5, at_least=True))
        else:
            # A trial costs a little where the loop wins it, and clocks are no better.
            targets.append(Target(f"{name}, m = {m}: loop / chosen", gain, 0.95, at_least=True))
        targets.append(Target(f"{name}, m = {m}: by hand / chosen", over, 0.95, at_least=True))
    heads = ["m", "chosen / s", "loop / s", "by hand / s", "loop / chosen", "by hand / chosen"]
    return {name: kept}, f"{name}, {len(data[1])} images\n\n{table(heads, rows)}", targets


def ascents(problem: Problem, rounds: int) -> tuple[dict[str, Any], str, list[Target]]:
    """Auto-PGD of 20 steps, with shards of 4."""
    model, x, y = problem
    objective = Objective(model, cross_entropy, (x, y))
    times = interleaved(
        [
            Contender("chosen", lambda: worst_case(objective, 0.01, 4, progress=False)),
            Contender("loop", lambda: worst_case(objective, 0.01, 4, vectorize=False, progress=False)),
        ],
        rounds,
        "process",
        warm_up=1,
    )
    gain = times.ratio("loop", "chosen")
    rows = [["auto-PGD, 20 steps, m = 4", times.median("chosen"), times.median("loop"), gain]]
    return (
        {"worst_case": times.seconds},
        table(["mlp", "chosen / s", "loop / s", "loop / chosen"], rows),
        [Target("mlp, auto-PGD, m = 4: loop / chosen", gain, 0.95, at_least=True)],
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--cifar", type=Path, default=None, help="folder of CIFAR-10; noise without it")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rounds, sizes = (1, [1, 128]) if options.quick else (options.rounds, [1, 4, 16, 128])
    problems = {"mlp": mlp_problem(options.quick), "cnn": cnn_problem(options.cifar, options.quick)}
    if options.quick:
        problems = {name: (net, x[:160], y[:160]) for name, (net, x, y) in problems.items()}
    data: dict[str, Any] = {}
    sections: list[str] = []
    targets: list[Target] = []
    for found, section, checked in (
        *(measured(name, problem, sizes, rounds) for name, problem in problems.items()),
        ascents(problems["mlp"], rounds),
    ):
        data |= found
        sections.append(section)
        targets += checked
    print(save("sharpness", "m-sharpness: together or in a loop", machine("process"), data, sections, targets, options.out))


if __name__ == "__main__":
    main()
