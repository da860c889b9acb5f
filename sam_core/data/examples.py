"""A data set in memory: raw images and classes, and how to normalise them."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

# Changes the raw images of a batch at random; draws come from a CPU generator, so that they are the same on every device.
Augmentation = Callable[[Tensor, torch.Generator], Tensor]

_SUBSET_SEED = 0x5EED


@dataclass(frozen=True, eq=False)
class Examples:
    """Images with their classes."""

    inputs: Tensor  # (n, channels, height, width), raw: bytes or floats
    targets: Tensor  # (n,), int64
    mean: Tensor | None = None  # (channels, 1, 1), in raw units
    std: Tensor | None = None  # (channels, 1, 1), in raw units

    def __post_init__(self) -> None:
        """Refuse what does not fit together."""
        if len(self.inputs) != len(self.targets):
            raise ValueError(f"inputs and targets must have the same length, not {len(self.inputs)} and {len(self.targets)}")
        if not len(self.inputs):
            raise ValueError("a data set must have at least one example")

    def __len__(self) -> int:
        return len(self.inputs)

    def normalised(self, raw: Tensor) -> Tensor:
        """Return raw images as the network gets them: floats, (x - mean) / std for each channel."""
        x = raw if raw.is_floating_point() else raw.float()
        return x if self.mean is None or self.std is None else (x - self.mean) / self.std

    def tensors(self) -> tuple[Tensor, Tensor]:
        """Return all images, normalised, and their classes: what a measurement takes as its data."""
        return self.normalised(self.inputs), self.targets

    def to(self, device: torch.device | str) -> "Examples":
        """Return the examples on a device."""
        mean, std = (None if x is None else x.to(device) for x in (self.mean, self.std))
        return replace(self, inputs=self.inputs.to(device), targets=self.targets.to(device), mean=mean, std=std)

    def take(self, count: int | None, name: str = "count") -> "Examples":
        """Return `count` examples, the same ones every time, and those of a smaller count among them.

        They are drawn at random, because files may be sorted by class.

        Args:
            count: how many; None for all, in their own order.
            name: what to call the number in an error.

        Returns:
            The examples.

        Raises:
            ValueError: there are fewer.
        """
        if count is None or count == len(self):
            return self
        if not 1 <= count <= len(self):
            raise ValueError(f"{name} must be between 1 and {len(self)}, the number of examples there are, not {count}")
        chosen = torch.randperm(len(self), generator=torch.Generator().manual_seed(_SUBSET_SEED))[:count]
        chosen = chosen.to(self.inputs.device)
        return replace(self, inputs=self.inputs[chosen], targets=self.targets[chosen])

    def sha256(self) -> str:
        """Return a hash of everything that is in here."""
        digest = hashlib.sha256()
        for tensor in (self.inputs, self.targets, self.mean, self.std):
            if tensor is not None:
                digest.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
                digest.update(tensor.contiguous().cpu().numpy().data)
        return digest.hexdigest()


@dataclass(frozen=True, eq=False)
class Data:
    """A data set with its two parts."""

    name: str
    train: Examples
    test: Examples
    num_classes: int
    augmentation: Augmentation | None = None  # the standard one, where there is one

    @property
    def in_channels(self) -> int:
        """Channels of the images."""
        return self.train.inputs.shape[1]

    @property
    def image_size(self) -> int:
        """Height and width of the images."""
        return self.train.inputs.shape[2]
