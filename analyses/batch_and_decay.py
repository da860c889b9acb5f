"""Are minima of large batches sharper, or do they only look so? Small and large batches, with and without weight decay.

    python analyses/batch_and_decay.py [--seeds 0 1 2] [--quick] [--out analyses/results/batch_and_decay]

Li et al. 2018 (arXiv 1712.09913, figures 2, 3, 4 and 9) at a small size: a CNN of 16,794 parameters on 600 digits, 60 epochs of SGD with
momentum, batches of 16 or 300, weight decay 0 or 0.005 (ten times the paper's, as there are fewer steps). For every seed: the line from
the small batch's minimum to the large batch's, and lines in a random direction, plain and filter-normalised; for the first seed also
contours, and the trajectory of the epochs on the plane of its two principal components. All on the 600 training digits; running
statistics of batch norm are computed anew at every point, except in random directions, where they are the centre's, as in the paper.
Files: <out>/<batch>-<decay>-<seed>.h5, the line in that of the small batch. Some four minutes on one core.
"""

from __future__ import annotations

from copy import deepcopy
from functools import partial
from pathlib import Path

import torch
from small_runs import Trained, command_line, digits, make_missing, train

import landscape
import sam_core
from landscape.cli.train import history_of
from landscape.results.types import Result
from landscape.surfaces import around_coordinates
from sam_core.data import Data

BATCHES = (16, 300)
DECAYS = (0.0, 0.005)


class WeightsHook(sam_core.Hook):
    """Keeps the weights before the first epoch and after each."""

    def __init__(self) -> None:
        self.kept: list[dict[str, torch.Tensor]] = []

    def on_start(self, run: sam_core.Trainer) -> None:
        """Keep the weights of the start."""
        self.kept.append(deepcopy(run.model.state_dict()))

    def after_epoch(self, run: sam_core.Trainer) -> None:
        """Keep the weights of the epoch."""
        self.kept.append(deepcopy(run.model.state_dict()))


def measured(trained: Trained, weights: list[dict[str, torch.Tensor]] | None, points: int) -> list[Result]:
    """Return the lines; with the weights of the epochs the contours and the trajectory, too."""
    objective = trained.objective()
    found: list[Result] = [history_of(trained.result)]
    for normalize, name in ((None, "plain-line"), ("filter", "filter-line")):
        line = landscape.random_plane(objective, normalize, seed=0, dimensions=1)  # type: ignore[arg-type]
        reach = 1.0 if normalize else 0.1  # a normal draw is much longer than the weights
        found.append(landscape.loss_surface(objective, line, (-reach, reach, 41), None, name=name))
    if weights is not None:
        axis = (-1.0, 1.0, points)
        found.append(
            landscape.loss_surface(
                objective, landscape.random_plane(objective, "filter", seed=0), axis, axis, tolerance=0.02, name="filter"
            )
        )
        plane = landscape.pca_plane(weights, objective)
        path = landscape.loss_trajectory(objective, weights, plane=plane, name="epochs")
        assert path.coordinates is not None
        x, y = around_coordinates(path.coordinates, points)
        found += [path, landscape.loss_surface(objective, plane, x, y, statistics="recompute", tolerance=0.02, name="pca")]
    return found


def study(data: Data, decay: float, seed: int, first: bool, epochs: int, points: int, path: Path) -> None:
    """Train with both batch sizes, measure, and write the large batch's file beside `path`, the small one's."""
    runs = {}
    for batch in BATCHES:
        hook = WeightsHook()
        trained = train(data, "none", batch_size=batch, weight_decay=decay, epochs=epochs, seed=seed, hooks=[hook])
        runs[batch] = trained, measured(trained, hook.kept if first else None, points)
    (small, found), (large, of_large) = runs.values()
    ends = landscape.minima_plane(small.objective(), small.result.model, large.result.model)
    between = landscape.loss_surface(small.objective(), ends, (-0.5, 1.5, 41), None, statistics="recompute", name="between")
    small.save(path, [*found, between])
    there = path.with_name(f"{BATCHES[1]}-{decay:g}-{seed}.h5")
    there.unlink(missing_ok=True)
    large.save(there, of_large)


def main() -> None:
    arguments = command_line(__doc__, __file__, images=False).parse_args()
    torch.set_num_threads(1)
    data = digits(600)
    seeds, epochs, points = (arguments.seeds[:1], 3, 7) if arguments.quick else (arguments.seeds, 60, 25)
    make_missing(
        {
            arguments.out / f"{BATCHES[0]}-{decay:g}-{seed}.h5": partial(study, data, decay, seed, seed == seeds[0], epochs, points)
            for seed in seeds
            for decay in DECAYS
        }
    )


if __name__ == "__main__":
    main()
