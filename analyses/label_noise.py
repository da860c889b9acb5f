"""How robust is SAM against wrong labels? SGD and SAM on digits of which a share has another class.

    python analyses/label_noise.py [--seeds 0 1 2] [--quick] [--out analyses/results/label_noise]

Foret et al. 2021 (arXiv 2010.01412, table 4) at a small size: a CNN of 16,794 parameters on 600 digits, 30 epochs; wrong labels are drawn
evenly from the other nine classes, the same ones for every method and seed. Tested on the 1,197 other digits with their true labels.
Files: <out>/<noise>-<method>-<seed>.h5, with the training history. Some two minutes on one core.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
from small_runs import command_line, digits, make_missing, train

from landscape.cli.train import history_of

METHODS: dict[str, dict[str, float]] = {"sgd": {}, "sam": {"rho": 0.2}}
NOISE = (0.0, 0.2, 0.4, 0.6, 0.8)


def study(noise: float, method: str, seed: int, epochs: int, path: Path) -> None:
    """Train and save the history."""
    trained = train(digits(600, noise), method, epochs=epochs, seed=seed, about={"noise": noise}, **METHODS[method])
    trained.save(path, [history_of(trained.result)])


def main() -> None:
    arguments = command_line(__doc__, __file__, images=False).parse_args()
    torch.set_num_threads(1)
    seeds, noises, epochs = (arguments.seeds[:1], NOISE[1:2], 2) if arguments.quick else (arguments.seeds, NOISE, 30)
    make_missing(
        {
            arguments.out / f"{noise:g}-{method}-{seed}.h5": partial(study, noise, method, seed, epochs)
            for seed in seeds
            for noise in noises
            for method in METHODS
        }
    )


if __name__ == "__main__":
    main()
