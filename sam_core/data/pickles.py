"""The pickled batches of CIFAR, read without trusting them.

A pickle is a program. This reader knows four names, those that a NumPy array of bytes needs, and even they stand for inert
records of ours: NumPy's own constructors could be led to read foreign memory. Any other name ends the reading.
"""

import io
import math
import pickle
from pathlib import Path
from typing import Any

import numpy as np


class _DType:
    """What a pickled dtype says about itself."""

    def __init__(self, code: Any, *_: Any) -> None:
        self.code = code.decode("latin1") if isinstance(code, bytes) else code

    def __setstate__(self, state: Any) -> None:
        """Ignore byte order and flags: only bytes are read."""


class _Array:
    """What a pickled array says about itself."""

    state: Any = None

    def __setstate__(self, state: Any) -> None:
        """Take (version, shape, dtype, is_fortran, raw)."""
        self.state = state

    def read(self) -> np.ndarray:
        """Return the array of bytes.

        Raises:
            ValueError: it is of another dtype, or its size does not fit its shape.
        """
        _, shape, dtype, fortran, raw = self.state
        code = dtype.code if isinstance(dtype, _DType) else None
        if code not in ("u1", "|u1", "uint8") or not isinstance(raw, bytes | bytearray):
            raise ValueError(f"an array of dtype {code!r} where bytes were expected")
        if not all(isinstance(n, int) and n >= 0 for n in shape) or math.prod(shape) != len(raw):
            raise ValueError(f"{len(raw)} bytes for an array of shape {shape}")
        return np.frombuffer(raw, np.uint8).reshape(shape, order="F" if fortran else "C")


class _ArrayType:
    """Stands for the type `numpy.ndarray`."""


def _reconstruct(*_: Any) -> _Array:
    return _Array()


def _from_buffer(raw: Any, dtype: Any, shape: Any, order: Any) -> _Array:
    array = _Array()
    array.state = (1, shape, dtype, order == "F", raw)
    return array


def _latin1(text: Any, encoding: Any) -> bytes:
    if encoding not in ("latin1", "latin-1") or not isinstance(text, str):
        raise pickle.UnpicklingError(f"text in the encoding {encoding!r}")
    return text.encode("latin1")


_KNOWN: dict[tuple[str, str], Any] = {
    ("numpy", "dtype"): _DType,
    ("numpy", "ndarray"): _ArrayType,
    ("_codecs", "encode"): _latin1,
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _reconstruct for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _from_buffer for core in ("core", "_core")},
}


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        """Return our stand-in for a name, and refuse all others."""
        try:
            return _KNOWN[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no CIFAR batch needs; nothing was executed") from None


def read_batch(path: Path, label: str) -> tuple[np.ndarray, np.ndarray]:
    """Read images and labels from one pickled batch.

    Args:
        path: the file.
        label: the key of the labels, "labels" or "fine_labels".

    Returns:
        Images (n, 3, 32, 32) as bytes, labels (n,).

    Raises:
        ValueError: the file is no such batch, is cut off, or asks for code to be run.
    """
    raw = path.read_bytes()
    try:
        batch = _Reader(io.BytesIO(raw), encoding="bytes").load()
        # The published batches come from Python 2, whose strings arrive as bytes.
        entries = {key.decode("latin1") if isinstance(key, bytes) else key: value for key, value in batch.items()}
        images, labels = entries["data"].read(), entries[label]
        labels = labels.read() if isinstance(labels, _Array) else np.array([int(x) for x in labels], dtype=np.int64)
        return images.reshape(-1, 3, 32, 32), labels.astype(np.int64)
    except Exception as error:  # bytes from outside can make the unpickler raise anything
        said = f"no entry {error}" if isinstance(error, KeyError) else str(error) or type(error).__name__
        raise ValueError(f"{path} is no pickled CIFAR batch with 'data' and {label!r}: {said}") from None
