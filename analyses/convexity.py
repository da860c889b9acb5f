"""Are the places that look convex convex? The smallest and the largest Hessian eigenvalue over the planes of skip_connections.py.

    python analyses/convexity.py --data-dir FOLDER [--seeds 0] [--quick] [--out analyses/results/convexity]

Li et al. 2018 (arXiv 1712.09913, section 6 and figure 7) at a small size: ResNet-20 of half the width and the same network without its
shortcuts, trained as in skip_connections.py; the loss of the first 128 training images, 7 x 7 points on [-1, 1]^2.
Files: <out>/<network>-<seed>.h5, with the loss on the same points. A CurvatureTrace keeps the eigenvalues: its "epoch" is the number of
the point, row after row, its two values are the largest and the smallest eigenvalue. Some four minutes on one core.
"""

from __future__ import annotations

from copy import deepcopy
from functools import partial
from pathlib import Path

import numpy as np
import torch
from skip_connections import NETWORKS
from small_runs import command_line, make_missing, small_cifar, train
from torch.nn.functional import cross_entropy

import landscape
from landscape.results.types import CurvatureTrace
from sam_core.data import Data

MEASURED = 128


def extremes(objective: landscape.Objective, plane: landscape.Plane, x: np.ndarray, y: np.ndarray, tol: float = 0.05) -> CurvatureTrace:
    """Return the largest and the smallest eigenvalue at every point of the grid, the first row first."""
    model = deepcopy(objective.model)
    here = dict(model.named_parameters())
    data = next(iter(objective.batches))
    meter, rows = objective.meter(), []
    for b in y:
        for a in x:
            with torch.no_grad():
                for name, value in plane.at(float(a), float(b)).items():
                    here[name].copy_(value)
            found = landscape.top_eigenpairs(landscape.Objective(model, cross_entropy, data), k=2, which="both", tol=tol, progress=False)
            order = np.argsort(-found.values)
            rows.append((found.values[order], found.residuals[order], found.matvecs))
    nothing = np.full(len(rows), np.nan)
    return CurvatureTrace(
        epoch=np.arange(len(rows)),
        values=np.array([row[0] for row in rows]),
        residuals=np.array([row[1] for row in rows]),
        trace=nothing,
        trace_stderr=nothing,
        matvecs=np.array([row[2] for row in rows]),
        tol=tol,
        cost=meter.cost(),
        provenance=objective.provenance(0),
    )


def study(data: Data, network: str, seed: int, epochs: int, points: int, path: Path) -> None:
    """Train, compute loss and eigenvalues over the plane, save."""
    trained = train(data, "none", model=network, model_options=("width=8",), epochs=epochs, seed=seed, weight_decay=5e-4)
    inputs, targets = data.train.tensors()
    objective = landscape.Objective(trained.result.model, cross_entropy, (inputs[:MEASURED], targets[:MEASURED]), batch_size=MEASURED)
    plane, axis = landscape.random_plane(objective, "filter", seed=0), (-1.0, 1.0, points)
    surface = landscape.loss_surface(objective, plane, axis, axis, name="filter")
    assert surface.y is not None
    trained.save(path, [surface, extremes(objective, plane, surface.x, surface.y)])


def main() -> None:
    parser = command_line(__doc__, __file__)
    parser.set_defaults(seeds=[0])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    data = small_cifar(arguments.data_dir, 1000)
    epochs, points = (1, 2) if arguments.quick else (20, 7)
    make_missing(
        {
            arguments.out / f"{network}-{seed}.h5": partial(study, data, network, seed, epochs, points)
            for seed in arguments.seeds
            for network in NETWORKS[:2]
        }
    )


if __name__ == "__main__":
    main()
