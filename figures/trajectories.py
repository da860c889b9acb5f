"""Where training went, on the plane of its principal components (after Li et al. 2018, figure 9), into figures/out.

python figures/trajectories.py
"""

from __future__ import annotations

from batch_runs import runs
from curves import save

from landscape import plots


def main() -> None:
    named, paths = {}, {}
    for (batch, decay), of in runs().items():
        path = of[0].paths["epochs"]
        first, second = 100 * path.explained_variance
        name = f"batch {batch}, decay {decay:g}"
        print(f"{name}: {first:.1f} % and {second:.1f} % of the variance")
        named[name], paths[name] = of[0].surfaces["pca"], path.coordinates
    save(plots.contours(named, trajectories=paths), "trajectories")


if __name__ == "__main__":
    main()
