"""How much SAM's result hangs on rho: accuracy, loss gap and curvature, from analyses/results/micro_batches, into figures/out.

python figures/rho_sensitivity.py
"""

from __future__ import annotations

from curves import Panel, draw, save
from micro_runs import DATA, columns, final, largest_eigenvalue, runs, test_error

from landscape.plots import Look


def main() -> None:
    of = runs()
    quantities = {
        "error (%)": {"test": test_error, "train": lambda run: 100 * (1 - final(run)["train_accuracy"])},
        "loss": {"test": lambda run: final(run)["test_loss"], "train": lambda run: final(run)["train_loss"]},
        "largest Hessian eigenvalue": {"train": largest_eigenvalue},
    }
    panels = []
    for name, numbers in quantities.items():
        curves, levels = {}, {}
        for part, number in numbers.items():
            curves[f"SAM, {part}"] = columns(of, 1, number)
            levels[f"SGD, {part}"] = [number(run) for run in of[0, 0.0]]
        ticks = next(iter(curves.values()))[0]
        panels.append(Panel("radius ρ", name, curves, levels, log_x=True, log_y=name != "error (%)", ticks=ticks))
    colors = {"SAM, test": "#D55E00", "SAM, train": "#E69F00", "SGD, test": "#0072B2", "SGD, train": "#56B4E9"}
    looks = {name: Look(color, "s" if name.endswith("test") else "D", "-") for name, color in colors.items()}
    note = f"{DATA}; ± 1 standard error over {len(of[0, 0.0])} seeds"
    save(draw(panels, note=note, looks=looks), "rho_sensitivity")


if __name__ == "__main__":
    main()
