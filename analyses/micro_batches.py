"""What do m and rho do in mSAM? Test error, curvature, and which m-sharpness goes with the error.

    python analyses/micro_batches.py [--seeds 0 1 2] [--quick] [--out analyses/results/micro_batches]

Foret et al. 2021 (arXiv 2010.01412, figure 3, middle and right) and Behdin et al. 2023 (arXiv 2212.04343) at a small size: a CNN of 16,794
parameters on 600 digits, a fifth of them with a wrong label (without, every method gets 98 to 99 % right), 20 epochs, batches of 64 that
are cut into 1 (SAM), 4 or 16 micro batches. Tested on the 1,197 other digits. Measured at the end on the first 512 training digits with
the labels that they were trained on: the largest eigenvalue of the Hessian, and m-sharpness with rho 0.05.
Files: <out>/<method>-<micro batches>-<rho>-<seed>.h5. Some seven minutes on one core.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
from small_runs import command_line, digits, make_missing, train

import landscape
from sam_core.data import Data

RADII = {1: (0.05, 0.1, 0.2, 0.4), 4: (0.05, 0.1, 0.2), 16: (0.05, 0.1, 0.2)}  # by micro batches; smaller ones need less
SHARDS = (1, 16, 128)  # examples per shard where m-sharpness is measured
MEASURED = 512
NOISE = 0.2


def study(data: Data, pieces: int, rho: float, seed: int, epochs: int, path: Path) -> None:
    """Train with mSAM of so many micro batches per batch (0: plain SGD), measure, save."""
    options = {} if not pieces else {"rho": rho} if pieces == 1 else {"rho": rho, "m": pieces}
    trained = train(
        data, "none" if not pieces else "sam" if pieces == 1 else "msam", epochs=epochs, seed=seed, about={"noise": NOISE}, **options
    )
    objective = trained.objective(MEASURED)
    found = [landscape.m_sharpness(objective, rho=0.05, m=m) for m in SHARDS]
    trained.save(path, [landscape.top_eigenpairs(objective, k=1, tol=1e-2, seed=seed), *found])


def main() -> None:
    arguments = command_line(__doc__, __file__, images=False).parse_args()
    torch.set_num_threads(1)
    data = digits(600, NOISE)
    epochs = 2 if arguments.quick else 20
    settings = [(0, 0.0), *((pieces, rho) for pieces, radii in RADII.items() for rho in (radii[1:2] if arguments.quick else radii))]
    jobs = {
        arguments.out / f"{'sgd' if not pieces else 'msam'}-{pieces}-{rho:g}-{seed}.h5": partial(study, data, pieces, rho, seed, epochs)
        for seed in (arguments.seeds[:1] if arguments.quick else arguments.seeds)
        for pieces, rho in settings
    }
    make_missing(jobs)


if __name__ == "__main__":
    main()
