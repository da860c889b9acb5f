"""Test accuracy of SAMPa over lambda (after Xie et al. 2024), from analyses/results/lambda_sweep and micro_batches, into figures/out.

python figures/lambda_sweep.py
"""

from __future__ import annotations

import numpy as np
from curves import RESULTS, Panel, draw, save
from micro_runs import final, runs, test_error

import landscape
from landscape.plots import COLUMN, method_looks


def main() -> None:
    folder = RESULTS / "lambda_sweep"
    lambdas = sorted({float(path.stem.split("-")[0]) for path in folder.glob("*.h5")})
    found = [[landscape.open(path) for path in sorted(folder.glob(f"{lam:g}-*.h5"))] for lam in lambdas]
    others = runs()
    curve = {"SAMPa": (lambdas, 100 * np.transpose([[1 - final(run)["test_accuracy"] for run in of] for of in found]))}
    levels = {"SGD": [test_error(run) for run in others[0, 0.0]], "SAM": [test_error(run) for run in others[1, 0.1]]}
    base = method_looks(["sgd", "sam", "sampa"])
    looks = {"SGD": base["sgd"], "SAM": base["sam"], "SAMPa": base["sampa"]}
    panel = Panel("λ, share of ∇f(y) in the update", "test error (%)", curve, levels)
    note = f"± 1 standard error over {len(found[0])} seeds; ρ = 0.1"
    save(draw([panel], looks=looks, width=COLUMN, note=note), "lambda_sweep")


if __name__ == "__main__":
    main()
