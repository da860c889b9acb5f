"""Sharpness of four minima over seeds, from analyses/results/sharp_vs_flat: PDF, PNG and HTML in figures/out.

python figures/sharp_vs_flat.py
"""

from __future__ import annotations

from pathlib import Path

import landscape
from landscape import plots

HERE = Path(__file__).parent
RESULTS = HERE.parent / "analyses" / "results" / "sharp_vs_flat"


def main() -> None:
    files = sorted(RESULTS.glob("*.h5"))
    methods = list(dict.fromkeys(path.stem.rpartition("-")[0] for path in files))
    methods.sort(key=["sgd", "sam", "msam", "sampa"].index)
    runs = {method: [landscape.open(path) for path in files if path.stem.startswith(f"{method}-")] for method in methods}
    panels = {
        "largest Hessian eigenvalue": {m: [run.eigen.values[0] for run in of] for m, of in runs.items()},
        "trace of the Hessian": {m: [run.trace.value for run in of] for m, of in runs.items()},
        "m-sharpness (m 1, ρ 0.05)": {m: [s.value for run in of for s in run.sharpness.values() if s.m == 1] for m, of in runs.items()},
        "training loss at the end": {m: [run.training.train_loss[-1] for run in of] for m, of in runs.items()},
    }
    for backend, formats in (("matplotlib", ("pdf", "png")), ("plotly", ("html",))):
        figure = plots.over_seeds(panels, backend=backend)
        for path in plots.save(figure, HERE / "out" / "sharp_vs_flat", formats=formats):
            print(path)


if __name__ == "__main__":
    main()
