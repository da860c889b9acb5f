"""The handwritten digits of scikit-learn: 1,797 real images of 8x8 pixels that come with the package."""

import torch
from torch import Tensor

from sam_core.data.examples import Data, Examples

# Mean and standard deviation of the pixels of the whole set, whose values are 0 to 16.
MEAN, STD = 4.8842, 6.0168


def digits(seed: int = 0, test_share: float = 0.2) -> Data:
    """Load the digits, split by class.

    Args:
        seed: decides the split; the same in every run unless somebody asks for another one.
        test_share: part of every class that goes to the test set.

    Returns:
        Images 1x8x8, in random order; 1,438 to train with and 359 to test by default.

    Raises:
        ValueError: `test_share` leaves one of the sets empty.
    """
    if not 0 < test_share < 1:
        raise ValueError(f"test_share must be in (0, 1), not {test_share!r}")
    from sklearn.datasets import load_digits  # takes a second, which only those who want the digits shall wait

    bunch = load_digits()
    inputs = torch.from_numpy(bunch.images).float().unsqueeze(1)
    targets = torch.from_numpy(bunch.target).long()
    train, test = stratified_split(targets, test_share, torch.Generator().manual_seed(seed))
    mean, std = torch.full((1, 1, 1), MEAN), torch.full((1, 1, 1), STD)
    first, second = (Examples(inputs[chosen], targets[chosen], mean, std) for chosen in (train, test))
    return Data("digits", first, second, num_classes=10)


def stratified_split(targets: Tensor, test_share: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return the indices of two parts, each in random order, with `test_share` of every class in the second."""
    train, test = [], []
    for label in targets.unique():
        members = torch.nonzero(targets == label).flatten()
        members = members[torch.randperm(len(members), generator=generator)]
        cut = round(test_share * len(members))
        test.append(members[:cut])
        train.append(members[cut:])
    first, second = torch.cat(train), torch.cat(test)
    return first[torch.randperm(len(first), generator=generator)], second[torch.randperm(len(second), generator=generator)]
