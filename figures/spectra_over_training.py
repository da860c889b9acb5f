"""Spectra while SGD and SAM train (after Foret et al. 2021, figure 3), from analyses/results/spectra_over_training, into figures/out.

python figures/spectra_over_training.py
"""

from __future__ import annotations

from curves import RESULTS, mean_and_error, save

import landscape
from landscape import plots
from landscape.results.numbers import with_error

FOLDER = RESULTS / "spectra_over_training"


def main() -> None:
    epochs = sorted({int(path.stem.split("-")[1]) for path in FOLDER.glob("*.h5")})
    looks, densities, eigen, colors = plots.method_looks(["sgd", "sam"]), {}, {}, {}
    for method in ("sgd", "sam"):
        for epoch in epochs:
            runs = [landscape.open(path) for path in sorted(FOLDER.glob(f"{method}-{epoch}-*.h5"))]
            values = [run.eigen.values for run in runs]
            top, ratio = (with_error(*map(float, mean_and_error(v))) for v in ([v[0] for v in values], [v[0] / v[4] for v in values]))
            name = f"{method.upper()}, {epoch} epochs: λ₁ {top}, λ₁/λ₅ {ratio}".replace(" ± ", "±")
            densities[name], eigen[name], colors[name] = runs[0].density, runs[0].eigen, looks[method]
            print(name)
    save(plots.spectra(densities, eigen=eigen, looks=colors, width=plots.FULL), "spectra_over_training")


if __name__ == "__main__":
    main()
