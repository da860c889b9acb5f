"""Random numbers that belong to an example: a function of seed and place, the same for any batch size and on any device."""

from __future__ import annotations

import math

import torch
from torch import Tensor

_GOLDEN, _FIRST, _SECOND = -0x61C8864680B583EB, -0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15


def uniforms(seed: int, first: int, shape: tuple[int, ...], draws: int, device: torch.device) -> Tensor:
    """Return numbers uniform on (0, 1), float64, for `shape[0]` examples from number `first` on.

    SplitMix64 (Steele, Lea, Flood 2014) of the place: number j of example i in a draw is always the same.

    Args:
        seed: any integer.
        first: number of the first example.
        shape: (examples, ...).
        draws: how many.
        device: where to compute.

    Returns:
        The numbers (draws, examples, ...).
    """

    def counted(start: int, count: int) -> Tensor:
        return torch.arange(start, start + count, dtype=torch.int64, device=device)

    key = int(mix(torch.tensor([seed % 2**63])))
    rows = mix(mix(counted(0, draws) ^ key)[:, None] + counted(first, shape[0]))  # wraps around, as it should
    bits = mix(rows[:, :, None] + counted(1, math.prod(shape[1:])) * _GOLDEN)
    return (((bits >> 12) & (2**52 - 1)).double() + 0.5).mul_(2.0**-52).view(draws, *shape)


def mix(z: Tensor) -> Tensor:
    """Return SplitMix64's scrambling of integers (int64): a bijection in which every bit depends on every other."""
    z = z + _GOLDEN
    z = (z ^ ((z >> 30) & (2**34 - 1))) * _FIRST
    z = (z ^ ((z >> 27) & (2**37 - 1))) * _SECOND
    return z ^ ((z >> 31) & (2**33 - 1))
