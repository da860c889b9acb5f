"""Which lambda is best for SAMPa, and how much hangs on it? Test accuracy for six of them.

    python analyses/lambda_sweep.py [--seeds 0 1 2] [--quick] [--out analyses/results/lambda_sweep]

Xie, Pethick and Cevher 2024 (arXiv 2410.10683, the study of lambda) at a small size: a CNN of 16,794 parameters on 600 digits, a fifth of
them with a wrong label, 20 epochs, rho 0.1; the runs of micro_batches.py with SGD and SAM are the same in all else.
Files: <out>/<lambda>-<seed>.h5, with the training history. Some two minutes on one core.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
from small_runs import command_line, digits, make_missing, train

from landscape.cli.train import history_of
from sam_core.data import Data

LAMBDAS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
NOISE = 0.2


def study(data: Data, lam: float, seed: int, epochs: int, path: Path) -> None:
    """Train and save the history."""
    trained = train(data, "sampa", lam=lam, rho=0.1, epochs=epochs, seed=seed, about={"noise": NOISE})
    trained.save(path, [history_of(trained.result)])


def main() -> None:
    arguments = command_line(__doc__, __file__, images=False).parse_args()
    torch.set_num_threads(1)
    data = digits(600, NOISE)
    seeds, lambdas, epochs = (arguments.seeds[:1], LAMBDAS[:2], 2) if arguments.quick else (arguments.seeds, LAMBDAS, 20)
    make_missing({arguments.out / f"{lam:g}-{seed}.h5": partial(study, data, lam, seed, epochs) for seed in seeds for lam in lambdas})


if __name__ == "__main__":
    main()
