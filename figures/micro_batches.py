"""Largest eigenvalue and test error against the number of micro batches (after Behdin et al. 2023), into figures/out.

python figures/micro_batches.py
"""

from __future__ import annotations

import numpy as np
from curves import Panel, draw, save
from micro_runs import DATA, largest_eigenvalue, runs, test_error


def main() -> None:
    of = runs()
    pieces = sorted({p for p, _ in of if p})
    panels = []
    for name, number in {"largest Hessian eigenvalue": largest_eigenvalue, "test error (%)": test_error}.items():
        curves = {}
        for rho in sorted({rho for _, rho in of if all((p, rho) in of for p in pieces)}):
            curves[f"ρ = {rho:g}"] = pieces, np.transpose([[number(run) for run in of[p, rho]] for p in pieces])
        levels = {"SGD": [number(run) for run in of[0, 0.0]]}
        x = "micro batches per batch of 64 (1: SAM)"
        panels.append(Panel(x, name, curves, levels, log_x=True, log_y="eigenvalue" in name, ticks=pieces))
    note = f"{DATA}; ± 1 standard error over {len(of[0, 0.0])} seeds"
    save(draw(panels, note=note), "micro_batches")


if __name__ == "__main__":
    main()
