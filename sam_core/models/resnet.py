"""Residual networks for CIFAR (He, Zhang, Ren, Sun 2016, section 4.2): 6 n + 2 layers, n blocks in each of three stages."""

from collections.abc import Callable
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from sam_core.models.registry import positive, register

Shortcut = Literal["pad", "conv"]


class Pad(nn.Module):
    """The parameter-free shortcut (option A): every second pixel, zeros for the channels that are new."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        new = out_channels - in_channels
        self.before, self.after = new // 2, new - new // 2

    def forward(self, x: Tensor) -> Tensor:
        """Return x with half the height and width and with the new channels."""
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.before, self.after))


class Block(nn.Module):
    """relu(x + conv-bn-relu-conv-bn)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, shortcut: Shortcut) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.shortcut: nn.Module
        if stride == 1 and in_channels == out_channels:
            self.shortcut = nn.Identity()
        elif shortcut == "pad":
            self.shortcut = Pad(in_channels, out_channels)
        else:
            conv = nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False)
            self.shortcut = nn.Sequential(conv, nn.BatchNorm2d(out_channels))

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output."""
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class ResNet(nn.Module):
    """Stages of `width`, 2 `width` and 4 `width` channels with `blocks` blocks each, global average, linear classifier."""

    def __init__(self, num_classes: int, in_channels: int, blocks: int, width: int, shortcut: Shortcut) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        stages: list[nn.Module] = []
        channels = width
        for stage in range(3):
            out = width * 2**stage
            row: list[nn.Module] = []
            for block in range(blocks):
                row.append(Block(channels, out, 2 if stage and not block else 1, shortcut))
                channels = out
            stages.append(nn.Sequential(*row))
        self.stages = nn.Sequential(*stages)
        self.classifier = nn.Linear(channels, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (n, classes)."""
        x = F.relu(self.bn1(self.conv1(images)))
        return self.classifier(self.stages(x).mean((2, 3)))


def _builder(depth: int) -> Callable[..., nn.Module]:
    def build(num_classes: int, in_channels: int, *, width: int = 16, shortcut: Shortcut = "pad") -> nn.Module:
        if shortcut not in ("pad", "conv"):
            raise ValueError(
                f"shortcut must be 'pad' (parameter-free, option A) or 'conv' (1x1 with batch norm, option B), not {shortcut!r}"
            )
        return ResNet(num_classes, in_channels, (depth - 2) // 6, positive("width", width), shortcut)

    build.__doc__ = f"Build ResNet-{depth} for CIFAR; `width` channels in the first stage."
    return build


for _depth in (8, 20, 32, 56):
    register(f"resnet{_depth}")(_builder(_depth))
