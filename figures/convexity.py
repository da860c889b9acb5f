"""Smallest against largest Hessian eigenvalue over a plane (after Li et al. 2018, figure 7), from analyses/results/convexity.

python figures/convexity.py
"""

from __future__ import annotations

import numpy as np
from curves import RESULTS, save

import landscape
from landscape.plots.planes import edges
from landscape.plots.style import WIDE, PaperFigure, paper_style

NAMES = {"resnet20": "ResNet-20", "plain20": "20 layers, no skips"}


def main() -> None:
    with paper_style("light"):
        figure = PaperFigure(figsize=(WIDE, 2.6))
        axes = figure.subplots(1, 2, sharex=True, sharey=True)
        for ax, (network, name) in zip(axes, NAMES.items(), strict=True):
            run = landscape.open(RESULTS / "convexity" / f"{network}-0.h5")
            surface, values = run.surfaces["filter"], run.curvature.values
            ratio = np.abs(np.minimum(values[:, 1], 0) / values[:, 0]).reshape(surface.loss.shape)
            mesh = ax.pcolormesh(edges(surface.x), edges(surface.y), ratio, vmin=0, vmax=1, cmap="cividis")
            lines = ax.contour(surface.x, surface.y, np.log10(surface.loss), [0, 1, 2, 3], colors="white", linewidths=0.6, linestyles="-")
            ax.clabel(lines, fontsize=5, fmt=lambda level: f"{10**level:g}")
            ax.plot(0, 0, "o", mfc="none", mec="white", ms=5)
            ax.set(title=name, aspect="equal")
            print(name, f"median {np.median(ratio):.2f}, within 1/3 of the centre {np.median(ratio[2:5, 2:5]):.2f}")
        bar = figure.colorbar(mesh, ax=axes, extend="max", label="|λ_min| / λ_max, 0 where convex", aspect=25)
        bar.outline.set_linewidth(0.4)
        figure.supxlabel("direction 1 (filter-normalised); white lines: loss, circle: trained weights")
        figure.supylabel("direction 2")
    save(figure, "convexity")


if __name__ == "__main__":
    main()
