"""Do skip connections make the loss surface smoother? Residual networks of 20 and 56 layers, with and without their shortcuts.

    python analyses/skip_connections.py --data-dir FOLDER [--seeds 0] [--quick] [--out analyses/results/skip_connections]

Li et al. 2018 (arXiv 1712.09913, figures 5 and 6) at a small size: networks of half the paper's width on 1,000 images of CIFAR-10
averaged to 16x16, 20 epochs of SGD with momentum. The same planes of filter-normalised directions for all (the same draws), 31 x 31
points on [-1, 1]^2, on the first 256 training images; running statistics of batch norm as at the centre, as in the paper.
Files: <out>/<network>-<seed>.h5. Some five minutes on one core.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
from small_runs import command_line, make_missing, small_cifar, train
from torch import Tensor, nn

import landscape
from landscape.cli.train import history_of
from sam_core import models
from sam_core.data import Data
from sam_core.models.resnet import Block

MEASURED = 256


class NoShortcut(nn.Module):
    """Takes the place of a shortcut and adds nothing."""

    def forward(self, x: Tensor) -> Tensor:
        """Return zero."""
        return x.new_zeros(())


def plain(depth: int) -> None:
    """Make the residual network of this depth without its shortcuts known as plain<depth>."""

    def build(num_classes: int, in_channels: int, *, width: int = 16) -> nn.Module:
        network = models.make(f"resnet{depth}", num_classes, in_channels, width=width, seed=torch.default_generator)
        for block in network.modules():
            if isinstance(block, Block):
                block.shortcut = NoShortcut()
        return network

    build.__doc__ = f"Build the residual network of {depth} layers without its shortcuts."
    if f"plain{depth}" not in models.names():
        models.register(f"plain{depth}")(build)


for _depth in (20, 56):
    plain(_depth)
NETWORKS = ("resnet20", "plain20", "resnet56", "plain56")


def study(data: Data, network: str, seed: int, epochs: int, points: int, path: Path) -> None:
    """Train, compute the surface, save."""
    trained = train(data, "none", model=network, model_options=("width=8",), epochs=epochs, seed=seed, weight_decay=5e-4)
    objective = trained.objective(MEASURED)
    plane = landscape.random_plane(objective, "filter", seed=0)
    axis = (-1.0, 1.0, points)
    surface = landscape.loss_surface(objective, plane, axis, axis, tolerance=0.02, name="filter")
    trained.save(path, [surface, history_of(trained.result)])


def main() -> None:
    parser = command_line(__doc__, __file__)
    parser.set_defaults(seeds=[0])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    data = small_cifar(arguments.data_dir, 1000)
    epochs, points = (1, 5) if arguments.quick else (20, 31)
    make_missing(
        {
            arguments.out / f"{network}-{seed}.h5": partial(study, data, network, seed, epochs, points)
            for seed in arguments.seeds
            for network in NETWORKS
        }
    )


if __name__ == "__main__":
    main()
