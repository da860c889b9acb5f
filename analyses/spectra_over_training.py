"""How does the Hessian's spectrum change while SGD and SAM train? Densities, the largest eigenvalue, and how far it lies above the fifth.

    python analyses/spectra_over_training.py --data-dir FOLDER [--seeds 0 1 2] [--quick] [--out analyses/results/spectra_over_training]

Foret et al. 2021 (arXiv 2010.01412, figure 3, left) at a small size: a CNN of 17,082 parameters on 1,000 images of CIFAR-10 averaged to
16x16, SGD and SAM (rho 0.2) from the same start, 24 epochs. After 2, 8 and 24 of them, on the first 512 training images: the five largest
eigenvalues, for the first seed with the density. (The paper's network has no batch norm; this one has, in evaluation mode.)
Files: <out>/<method>-<epoch>-<seed>.h5. Some five minutes on one core.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
from small_runs import Trained, command_line, make_missing, small_cifar, train

import landscape
import sam_core
from landscape.results.types import Result
from sam_core.data import Data

METHODS: dict[str, dict[str, float]] = {"sgd": {}, "sam": {"rho": 0.2}}
EPOCHS = (2, 8, 24)
MEASURED = 512


class SpectrumHook(sam_core.Hook):
    """Measures the five largest eigenvalues after some epochs, with the density if asked for."""

    def __init__(self, data: tuple[torch.Tensor, torch.Tensor], epochs: tuple[int, ...], density: bool) -> None:
        self.data, self.epochs, self.density = data, epochs, density
        self.found: dict[int, list[Result]] = {}

    def after_epoch(self, run: sam_core.Trainer) -> None:
        """Measure if it is time to."""
        epoch = run.epoch + 1
        if epoch not in self.epochs:
            return
        objective = landscape.Objective(run.model, torch.nn.functional.cross_entropy, self.data)
        eigen = landscape.top_eigenpairs(objective, k=5, tol=1e-2, which="largest")
        self.found[epoch] = [eigen]
        if self.density:
            self.found[epoch].append(landscape.spectral_density(objective, probes=2, steps=24, eigenpairs=eigen))


def study(data: Data, method: str, seed: int, epochs: tuple[int, ...], density: bool, path: Path) -> None:
    """Train once, and write the file of every epoch but the last one beside `path`, which is that of the last."""
    inputs, targets = data.train.tensors()
    hook = SpectrumHook((inputs[:MEASURED], targets[:MEASURED]), epochs, density)
    trained = train(data, method, epochs=max(epochs), seed=seed, hooks=[hook], **METHODS[method])
    for epoch, results in hook.found.items():
        record = trained.result.history[epoch - 1]
        about = {"measured_after_epoch": epoch, "train_loss_then": record.train_loss, "test_accuracy_then": record.test_accuracy}
        there = path if epoch == max(epochs) else path.with_name(f"{method}-{epoch}-{seed}.h5")
        there.unlink(missing_ok=True)
        Trained(trained.result, trained.config | about).save(there, results)


def main() -> None:
    arguments = command_line(__doc__, __file__).parse_args()
    torch.set_num_threads(1)
    data = small_cifar(arguments.data_dir, 1000)
    epochs = (1, 2) if arguments.quick else EPOCHS
    seeds = arguments.seeds[:1] if arguments.quick else arguments.seeds
    make_missing(
        {
            arguments.out / f"{method}-{max(epochs)}-{seed}.h5": partial(study, data, method, seed, epochs, seed == seeds[0])
            for seed in seeds
            for method in METHODS
        }
    )


if __name__ == "__main__":
    main()
