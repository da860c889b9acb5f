"""The runs of analyses/micro_batches.py by their setting, for the figures that read them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from curves import RESULTS

import landscape
from landscape.results.runfile import RunFile

Setting = tuple[int, float]  # micro batches per batch (0: SGD), rho
NAMES = {0: "SGD", 1: "SAM (m = 64)", 4: "mSAM (m = 16)", 16: "mSAM (m = 4)"}
DATA = "600 digits, a fifth with a wrong label, tested on 1,197"
LOOKS_AS = {0: "sgd", 1: "sam", 4: "msam", 16: "sampa"}  # whose colours they have


def runs() -> dict[Setting, list[RunFile]]:
    """Return the files of all seeds by setting."""
    found: dict[Setting, list[RunFile]] = {}
    for path in sorted((RESULTS / "micro_batches").glob("*.h5")):
        _, pieces, rho, _ = path.stem.split("-")
        found.setdefault((int(pieces), float(rho)), []).append(landscape.open(path))
    return found


def columns(of: dict[Setting, list[RunFile]], pieces: int, number: Callable[[RunFile], float]) -> tuple[list[float], list[list[float]]]:
    """Return the radii, and (seeds, radii) of a number of the runs with so many micro batches."""
    radii = sorted(rho for p, rho in of if p == pieces)
    per_radius = [[number(run) for run in of[pieces, rho]] for rho in radii]
    return radii, [list(row) for row in zip(*per_radius, strict=True)]


def test_error(run: RunFile) -> float:
    """Return the share of test images that the run gets wrong, in percent."""
    return 100 * (1 - final(run)["test_accuracy"])


def loss_gap(run: RunFile) -> float:
    """Return the loss on test images less that on the training images with the labels that they were trained on."""
    end = final(run)
    return float(end["test_loss"] - end["train_loss"])


def largest_eigenvalue(run: RunFile) -> float:
    """Return lambda_max at the end."""
    return float(run.eigen.values[0])


def final(run: RunFile) -> dict[str, Any]:
    """Return losses and accuracies at the end."""
    return dict(run.attributes["config"]["final"])
