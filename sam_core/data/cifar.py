"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009) from a folder: the binary version, or the pickled one through a reader that runs nothing.

A record of the binary version is the label (CIFAR-100: coarse, then fine) and 3,072 pixels, channels first.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from sam_core.data.augment import crop_and_flip
from sam_core.data.examples import Data, Examples
from sam_core.data.pickles import read_batch

_PIXELS = 3 * 32 * 32
_BATCHES = tuple(f"data_batch_{i}" for i in range(1, 6))
_Reader = Callable[[Path], tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class _Layout:
    """Where the files of one version are, and how to read one."""

    folder: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    read: _Reader


@dataclass(frozen=True)
class _Kind:
    name: str
    classes: int
    mean: tuple[float, float, float]  # of the training images, pixels in [0, 1]
    std: tuple[float, float, float]
    layouts: tuple[_Layout, ...]


def _binary(path: Path, labels: int) -> tuple[np.ndarray, np.ndarray]:
    raw = np.fromfile(path, dtype=np.uint8)
    record = labels + _PIXELS
    if not raw.size or raw.size % record:
        raise ValueError(
            f"{path} has {raw.size:,} bytes, which is no whole number of records of {record:,} bytes: "
            "it is cut off, or no CIFAR file in the binary version"
        )
    rows = raw.reshape(-1, record)
    return rows[:, labels:].reshape(-1, 3, 32, 32), rows[:, labels - 1].astype(np.int64)


_CIFAR10 = _Kind(
    name="cifar10",
    classes=10,
    mean=(0.4914, 0.4822, 0.4465),
    std=(0.2470, 0.2435, 0.2616),
    layouts=(
        _Layout("cifar-10-batches-bin", tuple(f"{b}.bin" for b in _BATCHES), ("test_batch.bin",), lambda p: _binary(p, 1)),
        _Layout("cifar-10-batches-py", _BATCHES, ("test_batch",), lambda p: read_batch(p, "labels")),
    ),
)
_CIFAR100 = _Kind(
    name="cifar100",
    classes=100,
    mean=(0.5071, 0.4865, 0.4409),
    std=(0.2673, 0.2564, 0.2762),
    layouts=(
        _Layout("cifar-100-binary", ("train.bin",), ("test.bin",), lambda p: _binary(p, 2)),
        _Layout("cifar-100-python", ("train",), ("test",), lambda p: read_batch(p, "fine_labels")),
    ),
)


def cifar10(data_dir: str | Path) -> Data:
    """Load CIFAR-10 from `data_dir`, or from the folder with the standard name in it; see `cifar100` for the errors."""
    return _load(_CIFAR10, data_dir)


def cifar100(data_dir: str | Path) -> Data:
    """Load CIFAR-100 with its 100 fine classes.

    Args:
        data_dir: the folder with the files, or the one above it.

    Returns:
        Images 3x32x32 as bytes, in the order of the files. If the folder or a file in it has another layout, a ValueError says
        what was found and what is expected.
    """
    return _load(_CIFAR100, data_dir)


def _load(kind: _Kind, data_dir: str | Path) -> Data:
    if not isinstance(data_dir, str | Path):
        raise TypeError(f"data_dir must be a path, not {data_dir!r}")
    folder, layout = _find(kind, Path(data_dir))
    scale = [torch.tensor(x).mul(255).reshape(3, 1, 1) for x in (kind.mean, kind.std)]
    parts = []
    sizes: dict[str, int] = {}
    for files in (layout.train, layout.test):
        read = [_checked(folder / name, layout.read, kind.classes) for name in files]
        images, labels = (torch.from_numpy(np.concatenate(arrays)) for arrays in zip(*read, strict=True))
        sizes |= {name: len(labels) for name, (_, labels) in zip(files, read, strict=True)}
        parts.append(Examples(images, labels, *scale))
    if len(layout.train) > 1 and len(set(sizes.values())) > 1:  # CIFAR-10: all six files are equally long
        found = ", ".join(f"{name} {size:,}" for name, size in sizes.items())
        raise ValueError(f"{folder}: the batches must have equally many records, one is cut off: {found}")
    train, test = parts
    return Data(kind.name, train, test, num_classes=kind.classes, augmentation=crop_and_flip)


def _checked(path: Path, read: _Reader, classes: int) -> tuple[np.ndarray, np.ndarray]:
    try:
        images, labels = read(path)
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None
    if len(images) != len(labels):
        raise ValueError(f"{path} has {len(images)} images and {len(labels)} labels")
    wrong = np.flatnonzero((labels < 0) | (labels >= classes))
    if wrong.size:
        raise ValueError(
            f"{path}: the label of record {wrong[0]} is {labels[wrong[0]]}, allowed are 0 to {classes - 1}: "
            "the file is damaged, or of another data set"
        )
    return images, labels


def _find(kind: _Kind, data_dir: Path) -> tuple[Path, _Layout]:
    """Return the folder that has all files of one layout, the binary version first."""
    wanted = " or ".join(f"{layout.folder}/ with {', '.join((*layout.train, *layout.test))}" for layout in kind.layouts)
    if not data_dir.is_dir():
        what = "is a file" if data_dir.is_file() else "does not exist"
        raise ValueError(f"data_dir {data_dir} {what}; {kind.name} needs a folder that holds {wanted}")
    missing: list[str] = []
    for layout in kind.layouts:
        for folder in (data_dir, data_dir / layout.folder):
            files = [*layout.train, *layout.test]
            absent = [name for name in files if not (folder / name).is_file()]
            if not absent:
                return folder, layout
            if len(absent) < len(files):
                missing.append(f"{folder} lacks {', '.join(absent)}")
    there = sorted(path.name + "/" * path.is_dir() for path in data_dir.iterdir())
    found = (", ".join(there[:8]) + (f" and {len(there) - 8} more" if len(there) > 8 else "")) or "nothing"
    archives = [name for name in there if name.endswith((".tar.gz", ".tgz", ".tar", ".zip"))]
    hint = f" (unpack {archives[0]} first)" if archives else ""
    because = f"; {'; '.join(missing)}" if missing else ""
    raise ValueError(f"data_dir {data_dir} is no {kind.name} folder: found {found}{because}; expected {wanted}{hint}")
