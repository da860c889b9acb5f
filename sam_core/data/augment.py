"""Augmentation in tensor code: a whole batch at once, from a generator that is handed in."""

import torch
import torch.nn.functional as F
from torch import Tensor


def crop_and_flip(images: Tensor, generator: torch.Generator, padding: int = 4) -> Tensor:
    """Pad with black, cut the original size out at random, and mirror every second image on average.

    Args:
        images: (n, channels, height, width), raw, so that zero is black.
        generator: on the CPU; the draws do not depend on the device of the images.
        padding: pixels on each side.

    Returns:
        Images of the same shape and dtype.
    """
    n, _, height, width = images.shape
    shifts = torch.randint(0, 2 * padding + 1, (2, n), generator=generator)
    mirrored = torch.randint(0, 2, (n,), generator=generator, dtype=torch.bool)
    # Not waiting for the device: the draws are staged before the copy returns.
    shifts, mirrored = (t.to(images.device, non_blocking=True) for t in (shifts, mirrored))
    down, right = shifts
    windows = F.pad(images, (padding,) * 4).unfold(2, height, 1).unfold(3, width, 1)
    cut = windows[torch.arange(n, device=images.device), :, down, right]
    return torch.where(mirrored[:, None, None, None], cut.flip(-1), cut)
