"""The loss around the minima of SGD and SAM (after Foret et al. 2021, figure 1), from analyses/results/sharp_and_wide, into figures/out.

python figures/sharp_and_wide.py
"""

from __future__ import annotations

from curves import RESULTS, save

import landscape
from landscape import plots


def main() -> None:
    named = {}
    for method in ("sgd", "sam"):
        run = landscape.open(RESULTS / "sharp_and_wide" / f"{method}-0.h5")
        error = 100 * (1 - run.attributes["config"]["final"]["test_accuracy"])
        named[f"{method.upper()}, test error {error:.1f} %"] = run.surfaces["filter"]
    save(plots.surfaces3d(named), "sharp_and_wide")
    save(plots.surfaces3d(named, backend="plotly"), "sharp_and_wide")
    save(plots.contours(named), "sharp_and_wide_contours")


if __name__ == "__main__":
    main()
