"""What do the minima of SGD and of SAM look like? The loss around both, on the same directions.

    python analyses/sharp_and_wide.py --data-dir FOLDER [--seeds 0] [--quick] [--out analyses/results/sharp_and_wide]

Foret et al. 2021 (arXiv 2010.01412, figure 1, right) at a small size: a CNN of 17,082 parameters on 1,000 images of CIFAR-10 averaged to
16x16, 24 epochs of SGD and of SAM (rho 0.2) from the same start. The planes have the same normal draws, normalised to each network's own
filters; 51 x 51 points on [-1, 1]^2, the first 512 training images.
Files: <out>/<method>-<seed>.h5. Some two minutes on one core.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
from small_runs import command_line, make_missing, small_cifar, train

import landscape
from sam_core.data import Data

METHODS: dict[str, dict[str, float]] = {"sgd": {}, "sam": {"rho": 0.2}}
MEASURED = 512


def study(data: Data, method: str, seed: int, epochs: int, points: int, path: Path) -> None:
    """Train, compute the surface, save."""
    trained = train(data, method, epochs=epochs, seed=seed, **METHODS[method])
    objective = trained.objective(MEASURED)
    axis = (-1.0, 1.0, points)
    plane = landscape.random_plane(objective, "filter", seed=0)
    trained.save(path, [landscape.loss_surface(objective, plane, axis, axis, tolerance=0.01, name="filter")])


def main() -> None:
    parser = command_line(__doc__, __file__)
    parser.set_defaults(seeds=[0])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    data = small_cifar(arguments.data_dir, 1000)
    epochs, points = (1, 13) if arguments.quick else (24, 51)
    make_missing(
        {
            arguments.out / f"{method}-{seed}.h5": partial(study, data, method, seed, epochs, points)
            for seed in arguments.seeds
            for method in METHODS
        }
    )


if __name__ == "__main__":
    main()
