"""Is SGD's minimum really the sharper one? The demo's recipe over several seeds, four methods from the same start each.

    python analyses/sharp_vs_flat.py [--seeds 0 1 2 3 4] [--quick] [--out analyses/results/sharp_vs_flat]

Each run is trained on the digits, then the largest Hessian eigenvalue, the trace and m-sharpness are measured on all training examples.
Files: <out>/<method>-<seed>.h5. Runs that are there already are not repeated.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from torch.nn.functional import cross_entropy

import landscape
import sam_core
from landscape.cli.demo import METHODS, recipe
from landscape.cli.train import history_of
from landscape.results import store

SHARDS = (1, 16, 128)


def study(method: str, seed: int, epochs: int, path: Path) -> None:
    result = sam_core.train(recipe(method, seed=seed, epochs=epochs))
    objective = landscape.Objective(result.model, cross_entropy, result.data.train.tensors())
    eigen = landscape.top_eigenpairs(objective, k=1, tol=1e-3, seed=seed)
    found = [
        eigen,
        landscape.hessian_trace(objective, tol=0.03, seed=seed, eigenpairs=eigen),
        *(landscape.m_sharpness(objective, rho=0.05, m=m) for m in SHARDS),
        history_of(result),  # last: a file with a history is complete
    ]
    for measured in found:
        store.save(path, measured, vectors=False)


def complete(path: Path) -> bool:
    return path.exists() and "training" in landscape.open(path).groups()


def summary(folder: Path, seeds: list[int]) -> str:
    """Return for every method the mean over seeds, and the paired difference to SGD with its standard error over seeds."""
    rows = {method: np.array([numbers(folder / f"{method}-{seed}.h5") for seed in seeds]) for method in METHODS}
    names = ["train loss", "test accuracy", "lambda_max", "trace", *(f"m-sharpness m={m}" for m in SHARDS)]
    lines = [f"mean over seeds {seeds}; in brackets the difference to sgd, paired by seed, ± its standard error"]
    for i, name in enumerate(names):
        cells = []
        for method, values in rows.items():
            apart = values[:, i] - rows["sgd"][:, i]
            error = apart.std(ddof=1) / np.sqrt(len(seeds)) if len(seeds) > 1 else np.nan
            note = "" if method == "sgd" else f" [{apart.mean():+.3g} ± {error:.1g}]"
            cells.append(f"{method} {values[:, i].mean():.4g}{note}")
        lines.append(f"{name:18s} " + "   ".join(cells))
    return "\n".join(lines)


def numbers(path: Path) -> list[float]:
    run = landscape.open(path)
    shards = {result.m: result.value for result in run.sharpness.values()}
    history = run.training
    return [history.train_loss[-1], history.test_accuracy[-1], run.eigen.values[0], run.trace.value, *(shards[m] for m in SHARDS)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--quick", action="store_true", help="a few runs of a few steps, to see that all is well; not for reading")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "sharp_vs_flat")
    arguments = parser.parse_args()
    epochs = 1 if arguments.quick else 25
    arguments.seeds = arguments.seeds[:1] if arguments.quick else arguments.seeds
    for seed in arguments.seeds:
        for method in METHODS:
            path = arguments.out / f"{method}-{seed}.h5"
            if not complete(path):
                print(f"{method}, seed {seed}", flush=True)
                study(method, seed, epochs, path)
    print(summary(arguments.out, arguments.seeds))


if __name__ == "__main__":
    main()
