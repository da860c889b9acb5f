"""Test accuracy over the share of wrong labels (after Foret et al. 2021, table 4), from analyses/results/label_noise, into figures/out.

python figures/label_noise.py
"""

from __future__ import annotations

import numpy as np
from curves import RESULTS, Panel, draw, save

import landscape
from landscape.plots import method_looks

NAMES = {"sgd": "SGD", "sam": "SAM"}


def main() -> None:
    folder = RESULTS / "label_noise"
    shares = sorted({float(path.stem.split("-")[0]) for path in folder.glob("*.h5")})
    at_end, best = {}, {}
    for method, name in NAMES.items():
        per_share = [[landscape.open(path).training for path in sorted(folder.glob(f"{share:g}-{method}-*.h5"))] for share in shares]
        percent = [100 * share for share in shares]
        at_end[name] = percent, 100 * np.transpose([[h.test_accuracy[-1] for h in of] for of in per_share])
        best[name] = percent, 100 * np.transpose([[h.test_accuracy.max() for h in of] for of in per_share])
    x, y = "training labels that are wrong (%)", "test accuracy (%)"
    panels = [Panel(x, y, at_end, title="after the last epoch"), Panel(x, y, best, title="after the epoch that is best on the test set")]
    base = method_looks(NAMES)
    looks = {name: base[method] for method, name in NAMES.items()}
    note = f"bars: ± 1 standard error over {len(per_share[0])} seeds; 600 digits to train on, tested on 1,197 with true labels"
    save(draw(panels, looks=looks, note=note), "label_noise")


if __name__ == "__main__":
    main()
