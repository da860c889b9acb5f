"""Data sets of small images, in memory, and seeded loaders."""

import difflib
from collections.abc import Callable
from pathlib import Path

from sam_core.data.augment import crop_and_flip
from sam_core.data.cifar import cifar10, cifar100
from sam_core.data.digits import digits
from sam_core.data.examples import Augmentation, Data, Examples
from sam_core.data.loader import Batch, Loader

__all__ = [
    "AUGMENTED", "SHAPES", "Augmentation", "Batch", "Data", "Examples", "Loader",
    "check", "cifar10", "cifar100", "crop_and_flip", "digits", "load", "names",
]  # fmt: skip

_EMBEDDED: dict[str, Callable[[], Data]] = {"digits": digits}
_FROM_FOLDER: dict[str, Callable[[str | Path], Data]] = {"cifar10": cifar10, "cifar100": cifar100}
SHAPES = {"digits": (1, 8, 10), "cifar10": (3, 32, 10), "cifar100": (3, 32, 100)}  # channels, height and width, classes
AUGMENTED = frozenset(_FROM_FOLDER)  # data sets that have a standard augmentation


def names() -> list[str]:
    """Return the names of all data sets."""
    return [*_EMBEDDED, *_FROM_FOLDER]


def check(name: str, data_dir: str | Path | None) -> None:
    """Refuse a name that is not known, or one that needs a folder without a folder.

    Args:
        name: one of `names()`.
        data_dir: the folder, for data sets that are read from files.

    Raises:
        ValueError: as said above.
    """
    if name not in names():
        close = difflib.get_close_matches(str(name).lower(), names(), n=2)
        hint = f"did you mean {' or '.join(close)}? " if close else ""
        raise ValueError(f"unknown data {name!r}: {hint}there are {', '.join(names())}")
    if name in _FROM_FOLDER and data_dir is None:
        raise ValueError(f"data {name!r} is read from files: set data_dir to the folder that holds them")


def load(name: str, data_dir: str | Path | None = None) -> Data:
    """Load a data set.

    Args:
        name: one of `names()`.
        data_dir: the folder, for data sets that are read from files.

    Returns:
        The data; a ValueError if the name is not known or the folder does not hold what it should.
    """
    check(name, data_dir)
    if name in _EMBEDDED:
        return _EMBEDDED[name]()
    assert data_dir is not None
    return _FROM_FOLDER[name](data_dir)
