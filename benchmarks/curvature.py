"""Curvature beside PyHessian, hessian-eigenthings and curvlinops with scipy's eigsh: seconds, products, accuracy, memory.

    python benchmarks/curvature.py [--data-dir FOLDER] [--rounds 5] [--only eigen product trace memory cost] [--quick] [--out DIR]

The networks are those of the design sheet: `cnn`, a ResNet-8 of 19,954 parameters with batch norm in eval mode on 512 images, and `mlp`,
64-32-16-10 with tanh on 512 digits, both trained. FOLDER holds CIFAR-10 in its binary version; without it, images are noise. Everybody
gets the loosest tolerance of its own with which its largest error is below the one asked for, found before anything is timed; accuracy
is against a float64 reference.
"""

import argparse
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from contenders import RESULTS, Contender, Target, allocated, interleaved, machine, note, save, table
from problems import cnn_problem, mlp_problem
from scipy.sparse.linalg import eigsh
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import landscape
from landscape.curvature import HessianOperator
from landscape.objective import Objective
from sam_core import models
from sam_core.allocator import reuse_freed_memory

warnings.simplefilter("ignore")  # of the peers
import curvlinops  # noqa: E402
import hessian_eigenthings as eigenthings  # noqa: E402
import pyhessian  # noqa: E402

PEERS = ("PyHessian", "hessian-eigenthings", "curvlinops-for-pytorch", "scipy")
PARTS = ("eigen", "product", "trace", "memory", "cost")


class Counting:
    """Counts the products of a peer."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function, self.count = function, 0

    def __call__(self, *given: Any, **named: Any) -> Any:
        self.count += 1
        return self.function(*given, **named)


Found = tuple[np.ndarray, int]


def pyhessian_one(net: nn.Module, x: Tensor, y: Tensor, k: int, tol: float) -> Found:
    module: Any = sys.modules["pyhessian.hessian"]  # its class has the same name
    torch.manual_seed(0)
    module.hessian_vector_product, before = Counting(module.hessian_vector_product), module.hessian_vector_product
    try:
        values = pyhessian.hessian(net, nn.CrossEntropyLoss(), data=(x, y), cuda=False).eigenvalues(maxIter=500, tol=tol, top_n=k)[0]
        return np.array(values), module.hessian_vector_product.count
    finally:
        module.hessian_vector_product = before
        net.zero_grad(set_to_none=True)


def power_iteration(net: nn.Module, x: Tensor, y: Tensor, k: int, tol: float) -> Found:
    operator = eigenthings.HessianOperator(net, [(x, y)], eigenthings.supervised_loss(cross_entropy))
    operator.matvec = Counting(operator.matvec)  # type: ignore[method-assign]
    values = eigenthings.deflated_power_iteration(operator, k=k, max_iter=500, tol=tol, seed=0).eigenvalues
    return values.numpy(), operator.matvec.count


def eigenthings_lanczos(net: nn.Module, x: Tensor, y: Tensor, k: int, tol: float) -> Found:
    operator = eigenthings.HessianOperator(net, [(x, y)], eigenthings.supervised_loss(cross_entropy))
    operator.matvec = Counting(operator.matvec)  # type: ignore[method-assign]
    # its own stop looks at nothing: steps stand for the tolerance
    values = eigenthings.lanczos(operator, k=k, max_iter=round(1 / tol), reorthogonalize=True, seed=0).eigenvalues
    return values.numpy(), operator.matvec.count


def curvlinops_eigsh(net: nn.Module, x: Tensor, y: Tensor, k: int, tol: float) -> Found:
    operator = curvlinops.HessianLinearOperator(net, nn.CrossEntropyLoss(), list(net.parameters()), [(x, y)], check_deterministic=False)
    product = operator.to_scipy()
    counted = Counting(product.matvec)
    from scipy.sparse.linalg import LinearOperator

    values = eigsh(LinearOperator(product.shape, matvec=counted, dtype=product.dtype), k=k, which="LM", tol=tol, return_eigenvectors=False)
    return np.array(values), counted.count


def ours(net: nn.Module, x: Tensor, y: Tensor, k: int, tol: float) -> Found:
    found = landscape.top_eigenpairs(Objective(net, cross_entropy, (x, y)), k, tol=tol, progress=False)
    return found.values, found.matvecs


TOLERANCES = (1e-1, 3e-2, 1e-2, 3e-3, 1e-3, 3e-4, 1e-4, 3e-5, 1e-5, 3e-6, 1e-6)
STEPS = tuple(1 / m for m in (6, 8, 10, 12, 15, 20, 25, 30))
POWER = "hessian-eigenthings, power iteration"
FAST = ("landscape", "PyHessian, one batch", "hessian-eigenthings, Lanczos", "curvlinops + eigsh")
SOLVERS: dict[str, tuple[Callable[..., Found], Sequence[float]]] = {
    "landscape": (ours, TOLERANCES),
    "PyHessian, one batch": (pyhessian_one, TOLERANCES[5:]),
    POWER: (power_iteration, TOLERANCES[7:]),
    "hessian-eigenthings, Lanczos": (eigenthings_lanczos, STEPS),
    "curvlinops + eigsh": (curvlinops_eigsh, TOLERANCES),
}


def error(values: np.ndarray, exact: np.ndarray) -> float:
    ordered = values[np.argsort(-np.abs(values), kind="stable")]
    return float(np.max(np.abs(ordered - exact[: len(ordered)]) / np.abs(exact[: len(ordered)])))


def reference(net: nn.Module, x: Tensor, y: Tensor, k: int) -> np.ndarray:
    """Return the eigenvalues in float64, to 1e-10, by scipy on a product of our own graph; it checks nobody's stop."""
    import copy

    net = copy.deepcopy(net).double()
    operator = HessianOperator(Objective(net, cross_entropy, (x.double(), y)))
    values = eigsh(operator.to_scipy(), k=k, which="LM", tol=1e-10, return_eigenvectors=False)
    return values[np.argsort(-np.abs(values))]


def eigen(options: argparse.Namespace, problem: tuple[nn.Module, Tensor, Tensor]) -> tuple[dict[str, Any], list[str], list[Target]]:
    exact = reference(*problem, 5)
    note(f"reference: {exact}")
    results: dict[str, Any] = {"reference": exact.tolist()}
    sections, targets = [], []
    for k, limit, names, rounds in (
        (5, 1e-3, FAST, options.rounds),
        (5, 1e-5, ("landscape", "curvlinops + eigsh", POWER), max(1, options.rounds // 5)),  # minutes a round
    ):
        if limit not in options.accuracies:
            continue
        chosen: dict[str, tuple[float, int, float]] = {}
        for name in names:
            solve, tolerances = SOLVERS[name]
            for tol in tolerances:
                values, products = solve(*problem, k, tol)
                if error(values, exact) <= limit:
                    chosen[name] = tol, products, error(values, exact)
                    note(f"k={k}, {limit:g}, {name}: {chosen[name]}")
                    break
        contenders = [Contender(name, lambda s=SOLVERS[name][0], t=tol, k=k: s(*problem, k, t)) for name, (tol, _, _) in chosen.items()]
        times = interleaved(contenders, rounds, "wall", warm_up=0)
        rows = [
            [name, times.median(name), times.ratio(name, "landscape"), products, found, f"{tol:.2g}"]
            for name, (tol, products, found) in chosen.items()
        ]
        sections += [
            f"## Top {k}, every error at most {limit:g}",
            table(["", "s", "of landscape's time", "products", "largest error", "tolerance"], rows),
        ]
        results[f"k{k}_{limit:g}"] = {"seconds": times.seconds, "chosen": chosen}

        def faster(name: str, times: Any = times) -> float:
            return times.ratio(name, "landscape") if name in times.seconds else float("nan")

        if k == 5 and limit == 1e-3:
            targets += [
                Target("top 5 to 1e-3: PyHessian's seconds over ours", faster("PyHessian, one batch"), 4, at_least=True),
                Target("top 5 to 1e-3: curvlinops + eigsh's seconds over ours", faster("curvlinops + eigsh"), 3, at_least=True),
            ]
        if k == 5 and limit == 1e-5:
            power = faster(POWER)
            targets += [
                Target("top 5 to 1e-5: power iteration's seconds over ours", power, 10, at_least=True),
                Target("top 5 to 1e-5: products", float(chosen["landscape"][1]), 12),
            ]
    return {"eigen": results}, sections, targets


def product(options: argparse.Namespace, problem: tuple[nn.Module, Tensor, Tensor]) -> tuple[dict[str, Any], list[str], list[Target]]:
    sections, targets, results = [], [], {}
    for name in ("cnn", "ResNet-20"):
        net, x, y = problem
        if name == "ResNet-20":
            net = models.make("resnet20", 10, 3, image_size=32, seed=0).eval()
        objective = Objective(net, cross_entropy, (x, y))
        operator = HessianOperator(objective)
        vector = torch.randn(operator.size, generator=torch.Generator().manual_seed(0))
        operator.matvec(vector)
        operator.matvec(vector)
        laid = net if name == "cnn" else net
        plain = [p for p in laid.parameters()]
        images = x.to(memory_format=torch.channels_last)

        def gradient(batch: int, images: Tensor = images, laid: nn.Module = laid, plain: list[Tensor] = plain, y: Tensor = y) -> None:
            for part, labels in zip(images.split(batch), y.split(batch), strict=True):
                torch.autograd.grad(cross_entropy(laid(part), labels), plain)

        # the same layout: channels last, batches of the operator's size
        size = objective.batches.batch_size
        contenders = [
            Contender("product", lambda o=operator, v=vector: o.matvec(v)),
            Contender("gradient, same layout", lambda s=size: gradient(s)),
            Contender("gradient, one batch", lambda: gradient(512)),
            Contender("our gradient", lambda o=objective: o.gradient()),
        ]
        times = interleaved(contenders, options.rounds, "wall", warm_up=1)
        rows = [[c.name, times.median(c.name), times.ratio(c.name, "gradient, same layout")] for c in contenders]
        sections += [f"## One product, {name}: {operator!r}", table(["", "s", "gradients of the same layout"], rows)]
        targets.append(Target(f"{name}: gradients of the same layout in a product", times.ratio("product", "gradient, same layout"), 2.3))
        results[name] = times.seconds
    return {"product": results}, sections, targets


def trace(options: argparse.Namespace) -> tuple[dict[str, Any], list[str], list[Target]]:
    net, x, y = mlp_problem(options.quick)
    objective = Objective(net.double(), cross_entropy, (x.double(), y))
    operator = HessianOperator(objective)
    exact = float(operator.matmat(torch.eye(operator.size, dtype=torch.float64)).trace())
    seeds = range(3 if options.quick else 20)
    rows = []

    def rms(values: Sequence[float]) -> float:
        return float(np.sqrt(np.mean([(v / exact - 1) ** 2 for v in values])))

    torch.set_default_dtype(torch.float64)
    theirs, counts = [], []
    for seed in seeds:
        torch.manual_seed(seed)
        samples = pyhessian.hessian(net, nn.CrossEntropyLoss(), data=(x.double(), y), cuda=False).trace()
        net.zero_grad(set_to_none=True)
        theirs.append(float(np.mean(samples)))
        counts.append(len(samples))
    torch.set_default_dtype(torch.float32)
    own = rms(theirs)
    rows.append(["PyHessian, default", statistics.mean(counts), 100 * own, None])
    # Hutchinson's error falls with the square root: what its own method needs for 1 % (its stop never asks for it)
    needed = statistics.mean(counts) * (own / 0.01) ** 2
    rows.append(["PyHessian's method for 1 %, by its own error", needed, 1.0, None])
    results: dict[str, Any] = {"exact": exact, "PyHessian": {"rms": own, "products": statistics.mean(counts)}}
    best = float("inf")
    pairs = {seed: landscape.top_eigenpairs(operator, 5, seed=seed, progress=False) for seed in seeds}
    for method in ("hutchinson", "hutch++", "xtrace", "deflated"):
        for tol in (0.04, 0.02, 0.01, 0.005):
            found = [
                landscape.hessian_trace(
                    operator,
                    tol=tol,
                    method=method,
                    seed=s,
                    max_matvecs=2000,
                    eigenpairs=pairs[s] if method == "deflated" else None,
                    progress=False,
                )
                for s in seeds
            ]
            products = statistics.mean(
                f.matvecs + (pairs[s].matvecs if method == "deflated" else 0) for s, f in zip(seeds, found, strict=True)
            )
            covered = np.mean([abs(f.value - exact) <= 1.96 * f.stderr for f in found])
            wrong = rms([f.value for f in found])
            name = f"{method}, tol {tol:g}" + (" (with the products of the eigenvalues)" if method == "deflated" else "")
            rows.append([name, products, 100 * wrong, 100 * float(covered)])
            results[name] = {"rms": wrong, "products": products, "covered": float(covered)}
            if wrong <= 0.01:
                best = min(best, products)
    sections = ["## Trace of mlp", table(["", "products", "rms error %", "intervals that cover %"], rows)]
    return {"trace": results}, sections, [Target("trace to 1 %: products over those of PyHessian's method at 1 %", best / needed, 0.1)]


def memory(options: argparse.Namespace, problem: tuple[nn.Module, Tensor, Tensor]) -> tuple[dict[str, Any], list[str], list[Target]]:
    net, x, y = problem
    rows, peaks = [], {}
    vector = torch.randn(sum(p.numel() for p in net.parameters()))
    for count in (2, 8):
        part = x[: 64 * count].contiguous(), y[: 64 * count]

        def rebuilt(part: tuple[Tensor, Tensor] = part) -> object:
            return HessianOperator(Objective(net, cross_entropy, part, batch_size=64), memory_budget=0).matvec(vector)

        def kept(part: tuple[Tensor, Tensor] = part) -> object:
            operator = HessianOperator(Objective(net, cross_entropy, part, batch_size=64))
            return operator, operator.matvec(vector)

        def one_batch(part: tuple[Tensor, Tensor] = part) -> object:
            return pyhessian_one(net, *part, 1, 0.5)

        for name, run in (("landscape, graphs rebuilt", rebuilt), ("landscape, graphs kept", kept), ("PyHessian, one batch", one_batch)):
            peaks[name, count] = allocated(run).peak
            rows.append([name, count, peaks[name, count] / 2**20])
    grown = peaks["landscape, graphs rebuilt", 8] / peaks["landscape, graphs rebuilt", 2]
    sections = ["## Memory of a product, batches of 64", table(["", "batches", "MiB at most"], rows)]
    results = {f"{name} {count}": value for (name, count), value in peaks.items()}
    return {"memory": results}, sections, [Target("memory with 8 batches over that with 2, graphs rebuilt", grown, 1.1)]


def cost(options: argparse.Namespace, problem: tuple[nn.Module, Tensor, Tensor]) -> tuple[dict[str, Any], list[str], list[Target]]:
    net, x, y = problem
    seconds: dict[str, list[tuple[float, float]]] = {"examples": [], "parameters": []}

    def of(net: nn.Module, x: Tensor, y: Tensor) -> float:
        operator = HessianOperator(Objective(net, cross_entropy, (x, y), batch_size=64))
        vector = torch.randn(operator.size)
        operator.matvec(vector)
        spent = []
        for _ in range(options.rounds):
            start = time.perf_counter()
            operator.matvec(vector)
            spent.append(time.perf_counter() - start)
        return statistics.median(spent)

    for n in (64, 128, 256, 512):
        seconds["examples"].append((n, of(net, x[:n], y[:n])))
    for width in (4, 8, 16, 32):
        wide = models.make("resnet8", 10, 3, image_size=32, width=width, seed=0).eval()
        seconds["parameters"].append((sum(p.numel() for p in wide.parameters()), of(wide, x[:128], y[:128])))
    slopes = {what: float(np.polyfit(*np.log(np.array(points)).T, 1)[0]) for what, points in seconds.items()}
    draw(seconds, slopes, options.out / "curvature-cost.png")
    rows = [[what, *(f"{int(n):,}: {s:.3g} s" for n, s in points), slopes[what]] for what, points in seconds.items()]
    sections = ["## Cost of a product (curvature-cost.png)", table(["", "", "", "", "", "power"], rows)]
    return {"cost": {"seconds": seconds, "slopes": slopes}}, sections, [
        Target("power of the number of examples in the cost", slopes["examples"], 1.1),
        Target("power of the number of parameters in the cost", slopes["parameters"], 1.1),
    ]  # fmt: skip


def draw(seconds: dict[str, list[tuple[float, float]]], slopes: dict[str, float], path: Path) -> None:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(6.75, 2.6), layout="constrained")
    for ax, (what, points) in zip(axes, seconds.items(), strict=True):
        n, s = np.array(points).T
        ax.loglog(n, s, "o-", color="#0072B2", label=f"measured, power {slopes[what]:.2f}")
        ax.loglog(n, s[0] * n / n[0], "--", color="#7f7f7f", label="linear")
        ax.set_xticks(n, [f"{int(v):,}" for v in n])
        ax.minorticks_off()
        ax.set_xlabel(what)
        ax.set_ylabel("seconds per product")
        ax.legend(frameon=False)
        ax.grid(True, alpha=0.3)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--accuracies", nargs="+", type=float, default=[1e-3, 1e-5], help="of eigenvalues")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--quick", action="store_true", help="a smoke run: the numbers mean nothing")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    if options.quick:
        options.rounds = 1
    torch.set_num_threads(1)
    reuse_freed_memory()  # for all alike
    header = machine("wall", PEERS) | {"rounds": options.rounds}
    problem = cnn_problem(options.data_dir, options.quick)
    parameters = sum(p.numel() for p in problem[0].parameters())
    with torch.no_grad():
        header["cnn"] = f"{parameters:,} parameters, loss {float(cross_entropy(problem[0](problem[1]), problem[2])):.3g}"
    results: dict[str, Any] = {}
    sections: list[str] = []
    targets: list[Target] = []
    for part in options.only:
        note(part)
        found = trace(options) if part == "trace" else globals()[part](options, problem)
        results |= found[0]
        sections += found[1]
        targets += found[2]
        text = save("curvature", "Curvature", header, results, sections, targets, options.out)  # what is there is kept if the rest is not
    print(text)


if __name__ == "__main__":
    sys.exit(main())
