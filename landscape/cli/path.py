"""The command that measures along paths: between two checkpoints, or along the training of one run."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from pathlib import Path as FilePath
from typing import Any, ClassVar, Literal

import tyro
from torch import nn

import sam_core
from landscape.cli.measure import file_for, group, loss_line, say
from landscape.cli.source import Source
from landscape.surfaces import around_coordinates, connect_modes, linear_path, loss_surface, loss_trajectory, pca_plane
from landscape.surfaces.weights import statistics_names
from sam_core.ranks import leads
from sam_core.training.checkpoint import LATEST

# Barriers have standard errors over batches: there must be some.
_BATCHES = 10


@dataclass(frozen=True)
class Ends(Source):
    """Model and data of a path, whose checkpoints are words of their own."""

    checkpoint: tyro.conf.Suppress[FilePath | None] = None


@dataclass(frozen=True)
class Path:
    """Measure the loss between two checkpoints, straight or on a trained curve, with its barrier; or the trajectory of a run."""

    INTERRUPTED: ClassVar[str] = "; the same command goes on from what was saved"

    checkpoints: tyro.conf.Positional[tuple[FilePath, ...]]
    """Two checkpoints or run folders of `landscape train`, or with --model two state_dict files; with --trajectory one run folder."""
    source: Ends = field(default_factory=Ends)
    trajectory: bool = False
    """Project the stored epochs of a run (train --keep-checkpoints) on the plane of their principal components, and its surface."""
    align: bool = False
    """Permute the units of the second network first, such that its weights come near to those of the first (Ainsworth et al. 2022)."""
    bend: Literal["bezier", "chain"] | None = None
    """Train a curve of low loss between the two as well (Garipov et al. 2018): a Bezier curve or a polygon."""
    bends: int = 1
    """Corners of that curve to train."""
    epochs: int = 30
    """Passes over the data to train it."""
    lr: float = 0.03
    """Learning rate to train it with."""
    statistics: Literal["interpolate", "recompute"] | None = None
    """Batch norm along the path: mix the running statistics of the ends, or compute them anew at each point; anew with --bend."""
    points: int = 25
    """Points on the path; with --trajectory along each axis of the surface, and 0 for no surface."""
    name: str | None = None
    """Name of the result in the file; "linear", "aligned", "bezier", "chain" or "trajectory" by default."""

    def run(self) -> None:
        """Measure, print and save; under torchrun the processes share the points, and the first one prints."""
        if self.bend is None:
            for option, value, default in (("--bends", self.bends, 1), ("--epochs", self.epochs, 30), ("--lr", self.lr, 0.03)):
                if value != default:
                    raise ValueError(f"{option} is for the training of a curve: give --bend bezier or --bend chain too, or leave it out")
        with group() as together:
            if self.trajectory:
                self._trajectory(together=together)
            else:
                self._between(together=together)

    def _between(self, *, together: bool) -> None:
        if len(self.checkpoints) != 2:
            raise ValueError(f"give two checkpoints, landscape path A B, or one run and --trajectory; got {len(self.checkpoints)}")
        if self.points < 2:
            raise ValueError(f"--points must be at least 2, got {self.points}")
        source = self._from()
        objective = source.objective()
        size = -(-objective.examples // _BATCHES)
        if source.batch_size is None and objective.batches.in_memory and size < objective.batches.batch_size:
            objective = replace(source, batch_size=size).objective()
        end = Source(**{**vars(self.source), "checkpoint": self.checkpoints[1]}).objective().model
        path = file_for(source, objective) if leads() else source.results_file()
        loss_line(objective)
        a, b = objective.model, end
        common: dict[str, Any] = {"align": self.align, "seed": self.source.seed, "out": path, "name": self.name, "ranks": together}
        if self.bend is None:
            say(path, linear_path(objective, a, b, self.points, statistics=self.statistics or "interpolate", **common), "barrier")
        else:
            curve = connect_modes(
                objective,
                a,
                b,
                curve=self.bend,
                bends=self.bends,
                epochs=self.epochs,
                lr=self.lr,
                points=self.points,
                statistics=self.statistics or "recompute",
                **common,
            )
            say(path, curve.linear, "straight")
            say(path, curve.path, self.bend)
        print(f"draw it with: landscape plot {path}")

    def _trajectory(self, *, together: bool) -> None:
        for option, given in (("--align", self.align), ("--bend", self.bend)):
            if given:
                raise ValueError(f"--trajectory follows one run; leave out {option}")
        if self.points != 0 and self.points < 2:
            raise ValueError(f"--points must be 0 or at least 2, got {self.points}")
        if len(self.checkpoints) != 1 or not self.checkpoints[0].is_dir():
            got = " ".join(map(str, self.checkpoints)) or "none"
            raise ValueError(f"--trajectory needs one folder of a run of `landscape train --keep-checkpoints`, got {got}")
        epochs, models = stored_epochs(self.checkpoints[0])
        source = self._from()
        objective = source.objective()
        path = file_for(source, objective) if leads() else source.results_file()
        loss_line(objective)
        name = self.name or "trajectory"
        plane = pca_plane(models, objective)
        statistics = self.statistics or "interpolate"
        common: dict[str, Any] = {"out": path, "name": name, "ranks": together}
        steps = loss_trajectory(objective, models, epochs, plane=plane, statistics=statistics, **common)
        say(path, steps, "trajectory")
        assert steps.coordinates is not None
        if self.points:
            x, y = around_coordinates(steps.coordinates, self.points)
            anew = statistics == "recompute" and statistics_names(objective)
            surface = loss_surface(objective, plane, x=x, y=y, statistics="recompute" if anew else "keep", **common)
            print(f"{'surface':>12}  {surface.summary()}\n{'':>12}  {surface.cost}; saved in {path}")
        print(f"draw it with: landscape plot {path}")

    def _from(self) -> Source:
        return Source(**{**vars(self.source), "checkpoint": self.checkpoints[0]})


def stored_epochs(folder: FilePath) -> tuple[list[int], list[nn.Module]]:
    """Return the epochs that a run has stored, and its networks after them, the last one last.

    Args:
        folder: of the run.

    Returns:
        Epochs and networks.

    Raises:
        ValueError: there are fewer than three.
    """
    files = [file for file in folder.glob("epoch_*.pt") if re.fullmatch(r"epoch_\d{4,}\.pt", file.name)]
    found: dict[int, nn.Module] = {}
    for file in [*sorted(files), folder / LATEST]:
        saved = sam_core.load_checkpoint(file)
        found[saved.epoch] = saved.model
    if len(found) < 3:
        raise ValueError(f"{folder} holds the networks of {len(found)} epochs, a plane needs three: train for more with --keep-checkpoints")
    return sorted(found), [found[epoch] for epoch in sorted(found)]
