"""Where training went, on the plane of its principal components (after Li et al. 2018, figure 9), from analyses/results/batch_and_decay.

python figures/trajectories.py
"""

from __future__ import annotations

import numpy as np
from batch_runs import runs
from curves import save
from matplotlib.colors import LogNorm

from landscape.plots.style import WIDE, PaperFigure, paper_style

LOW, HIGH = 1e-4, 10.0  # what the colours show of the losses; below and above they stay the same


def main() -> None:
    with paper_style("light"):
        figure = PaperFigure(figsize=(WIDE, 4.4))
        axes = figure.subplots(2, 2)
        for ax, ((batch, decay), of) in zip(axes.flat, runs().items(), strict=True):
            surface, path = of[0].surfaces["pca"], of[0].paths["epochs"]
            loss = np.clip(surface.loss, LOW, HIGH)
            filled = ax.contourf(surface.x, surface.y, loss, levels=np.geomspace(LOW, HIGH, 31), norm=LogNorm(LOW, HIGH), antialiased=False)
            filled.set_rasterized(True)
            lines = ax.contour(surface.x, surface.y, loss, levels=[1e-3, 1e-2, 0.1, 1], colors="white", linewidths=0.6)
            ax.clabel(lines, fontsize=5, fmt="%g")
            ax.plot(*path.coordinates.T, "-o", color="#D55E00", lw=1, ms=2.4, mec="white", mew=0.3, markevery=5)
            first, second = 100 * path.explained_variance
            ax.set(xlabel=f"component 1 ({first:.1f} % of the variance)", ylabel=f"component 2 ({second:.1f} %)")
            ax.set_title(f"batch {batch}, weight decay {decay:g}")
            print(
                f"batch {batch}, decay {decay:g}: {first:.1f} % and {second:.1f} %, distance from the plane up to {path.distance.max():.2g}"
            )
        bar = figure.colorbar(
            filled, ax=axes, ticks=[1e-4, 1e-3, 1e-2, 0.1, 1, 10], extend="both", aspect=35, label="training loss (log scale)"
        )
        bar.outline.set_linewidth(0.4)
        bar.ax.minorticks_off()
        figure.suptitle("a dot every fifth epoch, the last at (0, 0)", size=6)
    save(figure, "trajectories")


if __name__ == "__main__":
    main()
