"""m-sharpness against test error for three m (after Foret et al. 2021, figure 3), from analyses/results/micro_batches, into figures/out.

python figures/sharpness_and_error.py
"""

from __future__ import annotations

import numpy as np
from curves import save
from micro_runs import DATA, LOOKS_AS, NAMES, runs, test_error

from landscape.plots import FULL, method_looks
from landscape.plots.generalization import kendall_tau
from landscape.plots.scale import log_ticks
from landscape.plots.style import PaperFigure, paper_style

SHARDS = (1, 16, 128)


def main() -> None:
    of = runs()
    base = method_looks(LOOKS_AS.values())
    with paper_style("light"):
        figure = PaperFigure(figsize=(FULL, 2.6))
        for ax, m in zip(figure.subplots(1, 3, sharey=True), SHARDS, strict=True):
            points: dict[int, list[tuple[float, float]]] = {}
            for (pieces, _), files in sorted(of.items()):
                measured = [run.sharpness[f"m_sharpness_rho0.05_m{m}"].value for run in files]
                points.setdefault(pieces, []).extend(zip(measured, map(test_error, files), strict=True))
            for pieces, found in points.items():
                look = base[LOOKS_AS[pieces]]
                ax.plot(*zip(*found, strict=True), ls="none", marker=look.marker, color=look.color, ms=3, mew=0, label=NAMES[pieces])
            every = np.array([point for found in points.values() for point in found])
            tau = kendall_tau(*every.T)
            log_ticks(ax, every[:, 0], axis="x")
            ax.set(xlabel=f"m-sharpness, m = {m}", title=f"τ = {tau.tau:.2f} (95 %: {tau.low:.2f} … {tau.high:.2f})")
            ax.grid(True)
            print(m, tau)
        figure.axes[0].set_ylabel("test error (%)")
        note = f"a dot is one of {len(every)} networks; {DATA}"
        figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, title=note)
    save(figure, "sharpness_and_error")


if __name__ == "__main__":
    main()
