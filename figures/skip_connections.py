"""Networks with and without shortcuts (after Li et al. 2018, figure 5), from analyses/results/skip_connections, into figures/out.

python figures/skip_connections.py
"""

from __future__ import annotations

import numpy as np
from curves import RESULTS, save

import landscape
from landscape import plots

NAMES = {"resnet20": "ResNet-20", "plain20": "20 layers, no skips", "resnet56": "ResNet-56", "plain56": "56 layers, no skips"}


def main() -> None:
    named = {}
    for network, name in NAMES.items():
        run = landscape.open(RESULTS / "skip_connections" / f"{network}-0.h5")
        final = run.attributes["config"]["final"]
        print(name, f"train loss {final['train_loss']:.3g}, test accuracy {final['test_accuracy']:.3f}")
        named[name] = run.surfaces["filter"]
    every = np.concatenate([surface.loss.ravel() for surface in named.values()])
    scale = plots.LossScale(every.min(), 200.0, True, every.min(), every.max())  # the deepest plain network reaches 10^8
    save(plots.contours(named, scale=scale, width=plots.WIDE), "skip_connections")
    save(plots.surfaces3d(named, scale=scale), "skip_connections_3d")
    save(plots.surfaces3d(named, scale=scale, backend="plotly"), "skip_connections_3d")


if __name__ == "__main__":
    main()
