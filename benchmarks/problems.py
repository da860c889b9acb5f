"""The networks that benchmarks measure: `cnn` and `mlp` of the design sheet, trained without anybody's library."""

import statistics
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from sam_core import data, models

Problem = tuple[nn.Module, Tensor, Tensor]


def trained(net: nn.Module, x: Tensor, y: Tensor, until: float, lr: float, most: int = 400) -> nn.Module:
    """Train to a loss, or for `most` epochs."""
    optimizer = torch.optim.SGD(net.parameters(), lr=lr, momentum=0.9)
    generator = torch.Generator().manual_seed(0)
    net.train()
    for _ in range(most):
        losses = []
        for i in torch.randperm(len(y), generator=generator).split(64):
            optimizer.zero_grad()
            loss = cross_entropy(net(x[i]), y[i])
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        if statistics.mean(losses) < until:
            break
    net.zero_grad(set_to_none=True)
    return net.eval()


def images(folder: Path | None, count: int = 512) -> tuple[Tensor, Tensor]:
    """Return CIFAR-10's first images, or noise where there is no folder."""
    if folder is None:
        return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(0)), torch.arange(count) % 10
    return data.load("cifar10", folder).train.take(count).tensors()


def cnn_problem(folder: Path | None, quick: bool) -> Problem:
    """Return the ResNet-8 of 19,954 parameters and 512 images."""
    x, y = images(folder)
    net = models.make("resnet8", 10, 3, image_size=32, width=8, shortcut="conv", seed=0)
    return trained(net, x, y, 0.05, 0.05, 1 if quick else 60), x, y


def mlp_problem(quick: bool) -> Problem:
    """Return the network 64-32-16-10 with tanh, 2,778 parameters, and 512 digits."""
    x, y = data.load("digits").train.take(512).tensors()
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 16), nn.Tanh(), nn.Linear(16, 10))
    return trained(net, x, y, 0.03, 0.05, 5 if quick else 400), x, y
