"""m-sharpness against generalisation gap and test error (after Foret et al. 2021, figure 3), from analyses/results/micro_batches.

python figures/sharpness_and_gap.py
"""

from __future__ import annotations

import numpy as np
from curves import save
from micro_runs import DATA, LOOKS_AS, NAMES, loss_gap, runs, test_error

from landscape.plots import FULL, method_looks
from landscape.plots.generalization import kendall_tau
from landscape.plots.scale import log_ticks
from landscape.plots.style import PaperFigure, paper_style

SHARDS = (1, 16, 128)
QUANTITIES = {"test loss − training loss": loss_gap, "test error (%)": test_error}


def main() -> None:
    of = runs()
    base = method_looks(LOOKS_AS.values())
    with paper_style("light"):
        figure = PaperFigure(figsize=(FULL, 4.3))
        axes = figure.subplots(2, 3, sharex="col", sharey="row")
        for row, (quantity, number) in zip(axes, QUANTITIES.items(), strict=True):
            for ax, m in zip(row, SHARDS, strict=True):
                points: dict[int, list[tuple[float, float]]] = {}
                for (pieces, _), files in sorted(of.items()):
                    measured = [run.sharpness[f"m_sharpness_rho0.05_m{m}"].value for run in files]
                    points.setdefault(pieces, []).extend(zip(measured, map(number, files), strict=True))
                for pieces, found in points.items():
                    look = base[LOOKS_AS[pieces]]
                    ax.plot(*zip(*found, strict=True), ls="none", marker=look.marker, color=look.color, ms=3, mew=0, label=NAMES[pieces])
                every = np.array([point for found in points.values() for point in found])
                tau = kendall_tau(*every.T)
                log_ticks(ax, every[:, 0], axis="x")
                ax.set_title(f"τ = {tau.tau:.2f} (95 %: {tau.low:.2f} … {tau.high:.2f})")
                ax.grid(True)
                print(quantity, m, tau)
            row[0].set_ylabel(quantity)
        for ax, m in zip(axes[1], SHARDS, strict=True):
            ax.set_xlabel(f"m-sharpness, m = {m}")
        note = f"a dot is one of {len(every)} networks; {DATA}"
        figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=4, title=note)
    save(figure, "sharpness_and_gap")


if __name__ == "__main__":
    main()
