"""Run files from HDF5 to plain groups. Whatever is wrong with a file becomes one line that names it, never h5py's own error."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from landscape.results.errors import GroupMissingError, StoreError, reason
from landscape.results.files import check_signature
from landscape.results.migration import migrated
from landscape.results.names import printable, unescape_name
from landscape.results.schema import LAYOUTS, PARTIAL, SCHEMA_VERSION, layout_of_group
from landscape.results.values import Dataset, Group, shape_text, sums_of, verify

MOST_COMPRESSED = 1032  # what DEFLATE reaches where all is zero


@contextlib.contextmanager
def about(path: Path, where: str) -> Iterator[None]:
    """Turn whatever h5py raises about a damaged file into one line, and name the file in the schema's errors."""
    try:
        yield
    except GroupMissingError:
        raise
    except StoreError as error:
        text = f"{path} is damaged at {printable(where)}: {error}; restore the file or measure again"
        raise StoreError(text) from error
    except MemoryError as error:
        raise StoreError(f"{path} does not fit into memory at {printable(where)}; the file may be damaged") from error
    except (OSError, KeyError, RuntimeError, ValueError, TypeError, AttributeError, IndexError, OverflowError) as error:
        text = f"{path} is damaged at {printable(where)}: {reason(error)}; restore the file or measure again"
        raise StoreError(text) from error


@contextlib.contextmanager
def reading(path: Path) -> Iterator[h5py.File]:
    """Open a run file for reading, its version checked."""
    check_signature(path)
    # Through a Python file HDF5 takes no lock, which nobody here needs, and does not mind that the process has the file open already.
    with contextlib.ExitStack() as stack:
        try:
            plain = stack.enter_context(path.open("rb"))
        except OSError as error:
            raise StoreError(f"cannot read {path}: {reason(error)}") from error
        yield stack.enter_context(opened(path, lambda: h5py.File(plain, "r")))


@contextlib.contextmanager
def opened(path: Path, make: Callable[[], h5py.File]) -> Iterator[h5py.File]:
    """Hold the file that `make` opens, its version checked.

    Yields:
        The file, closed in the end.

    Raises:
        StoreError: It is damaged, foreign, or of a newer version.
    """
    try:
        file = make()
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        what = "truncated" if "truncated" in str(error) else f"damaged: {reason(error)}"
        raise StoreError(f"{path} is {what}; restore it from a copy or measure again") from error
    try:
        _check_version(path, file)
        yield file
    finally:
        with contextlib.suppress(RuntimeError, OSError):
            file.close()


def _check_version(path: Path, file: h5py.File) -> None:
    with about(path, "the root"):
        found = attributes_of(file)
    version = found.get("schema_version")
    if not isinstance(version, int) or "creation_library" not in found:
        raise StoreError(f"{path} is an HDF5 file but no run file (it has no schema_version); give a run file written by landscape")
    if version > SCHEMA_VERSION:
        text = f"{path} has schema version {version}, this library reads versions up to {SCHEMA_VERSION}; install a newer landscape-sam"
        raise StoreError(text)
    if version < 1:
        raise StoreError(f"{path} has schema version {version}, which never was; the file is damaged or foreign")


def root_of(path: Path, file: h5py.File) -> dict[str, Any]:
    """Return the attributes of the root, compared with their checksum."""
    with about(path, "the root"):
        found = attributes_of(file)
        verify(found, {})
        return found


def attributes_of(owner: Any) -> dict[str, Any]:
    """Return attributes as Python strings and numbers; what is neither stays as h5py gives it."""
    hidden = {"CLASS", "NAME", "DIMENSION_LIST", "REFERENCE_LIST"}
    found = {}
    for key in owner.attrs:
        if key not in hidden:
            value = owner.attrs[key]
            if isinstance(value, np.ndarray) and value.size == 1:  # as other writers keep scalars
                value = value.reshape(-1)[0]
            if isinstance(value, bytes):
                value = value.decode()
            found[key] = value.item() if isinstance(value, np.generic) else value
    return found


def axes_of(dataset: h5py.Dataset, name: str) -> list[str]:
    """Return the name of the dimension scale on each axis, empty where there is none."""
    if dataset.is_scale and dataset.ndim == 1:
        return [name]
    return [h5py.h5ds.get_scale_name(axis[0].id).decode() if len(axis) else "" for axis in dataset.dims]


def members(group: Any) -> list[str]:
    """Return the names in a group, without links that lead elsewhere."""
    return [name for name in group if isinstance(group.get(name, getlink=True), h5py.HardLink)]


def get_group(file: h5py.File, place: str, wanted: Callable[[str], bool], version: int | None = None) -> Group:
    """Return a group with the datasets that are wanted, as the present version of the schema has it.

    Raises:
        StoreError: A dataset lies in another file or is larger than its file can hold, or a group of an older version is damaged.
    """
    node = file[place]
    found = attributes_of(node)
    written = sums_of(found).get("shapes", {})
    datasets: dict[str, Dataset] = {}
    room = _memory()
    for name in members(node):
        item = node[name]
        if not isinstance(item, h5py.Dataset) or not wanted(name):
            continue
        if item.is_virtual or item.external:
            raise StoreError(f"the dataset {name} lies in another file")
        text = h5py.check_string_dtype(item.dtype) is not None
        shape = shape_text("text" if text else item.dtype.str, item.shape)
        if written.get(name, shape) != shape:  # found before anything is read, be it larger than any memory
            raise StoreError(f"the dataset {name} is {shape}, where {written[name]} was written")
        room -= _size(name, item, room)
        values = item.asstr()[...].tolist() if text else item[...] if item.shape else np.asarray(item[()])
        datasets[name] = Dataset(values, tuple(axes_of(item, name)), attributes_of(item))
    return migrated(Group(place, found, datasets), attributes_of(file)["schema_version"] if version is None else version)


def _size(name: str, item: h5py.Dataset, room: int) -> int:
    """Return the bytes that a dataset takes in memory; a few bytes of a file can declare more than any machine has."""
    declared, held = item.size * item.dtype.itemsize, item.id.get_storage_size()
    if declared > MOST_COMPRESSED * held:
        raise StoreError(f"the dataset {name} declares {declared} bytes, of which {held} are in the file")
    if declared > room:
        raise StoreError(f"the dataset {name} takes {declared / 1e9:.3g} GB, more than this machine has")
    return declared


def _memory() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # not every system tells
        return 1 << 62


def places(file: h5py.File) -> list[str]:
    """Return the paths of the groups that the schema knows, names escaped."""
    found = []
    for prefix in ("", f"{PARTIAL}/"):
        for layout in LAYOUTS:
            node = file.get(prefix + layout.group)
            if not isinstance(node, h5py.Group):
                continue
            found += [f"{prefix}{layout.group}/{name}" for name in members(node)] if layout.named else [prefix + layout.group]
    return found


def true_path(place: str) -> str:
    """Return the path of a group with its name as the user gave it."""
    layout = layout_of_group(place)
    if layout is None or not layout.named:
        return place
    prefix, _, name = place.rpartition("/")
    return f"{prefix}/{unescape_name(name)}"


def find_place(path: Path, file: h5py.File, group: str) -> str:
    """Return where a group lies: under its name as the user gave it, or as it is written in the file."""
    with about(path, "the list of groups"):
        there = places(file)
        by_name = {true_path(place): place for place in there}
    wanted = group.strip("/") if group.strip("/") in by_name or group.strip("/") in there else group
    place = by_name.get(wanted) or (wanted if wanted in there else None)
    if place is None:
        held = ", ".join(map(printable, by_name)) or "no results"
        raise GroupMissingError(f"{path} holds no {printable(group)}; it holds {held}")
    return place
