"""What do m and rho do in mSAM? Accuracy, curvature, and which m-sharpness follows the generalisation gap.

    python analyses/micro_batches.py --data-dir FOLDER [--seeds 0 1 2] [--quick] [--out analyses/results/micro_batches]

Foret et al. 2021 (arXiv 2010.01412, figure 3, middle and right) and Behdin et al. 2023 (arXiv 2212.04343) at a small size: a CNN of 17,082
parameters on 1,000 images of CIFAR-10 averaged to 16x16, 16 epochs, batches of 64 that are cut into 1 (SAM), 4 or 16 micro batches.
Measured at the end on the first 512 training images: the largest eigenvalue of the Hessian, and m-sharpness with rho 0.05.
Files: <out>/<method>-<micro batches>-<rho>-<seed>.h5. Some nine minutes on one core.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
from small_runs import command_line, make_missing, small_cifar, train

import landscape
from sam_core.data import Data

PIECES = (1, 4, 16)
RADII = (0.05, 0.1, 0.2, 0.4)
SHARDS = (1, 16, 128)  # examples per shard where m-sharpness is measured
MEASURED = 512


def study(data: Data, pieces: int, rho: float, seed: int, epochs: int, path: Path) -> None:
    """Train with mSAM of so many micro batches per batch (0: plain SGD), measure, save."""
    options = {} if not pieces else {"rho": rho} if pieces == 1 else {"rho": rho, "m": pieces}
    trained = train(data, "none" if not pieces else "sam" if pieces == 1 else "msam", epochs=epochs, seed=seed, **options)
    objective = trained.objective(MEASURED)
    found = [landscape.m_sharpness(objective, rho=0.05, m=m) for m in SHARDS]
    trained.save(path, [landscape.top_eigenpairs(objective, k=1, tol=1e-3, seed=seed), *found])


def main() -> None:
    parser = command_line(__doc__, __file__)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    data = small_cifar(arguments.data_dir, 1000)
    epochs = 2 if arguments.quick else 16
    settings = [(0, 0.0), *((pieces, rho) for pieces in PIECES for rho in RADII[1:2] if arguments.quick)]
    settings += [(pieces, rho) for pieces in PIECES for rho in RADII if not arguments.quick]
    jobs = {
        arguments.out / f"{'sgd' if not pieces else 'msam'}-{pieces}-{rho:g}-{seed}.h5": partial(study, data, pieces, rho, seed, epochs)
        for seed in (arguments.seeds[:1] if arguments.quick else arguments.seeds)
        for pieces, rho in settings
    }
    make_missing(jobs)


if __name__ == "__main__":
    main()
