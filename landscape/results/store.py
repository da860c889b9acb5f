"""Run files: one HDF5 file per run that xarray, h5dump and MATLAB read, written so that a killed process spoils nothing.

Every write makes the whole new file in memory, puts it beside the old one and moves it into place: a reader sees the old file or the
new one, `kill -9` leaves one of the two, and a full disk leaves the old. Nothing is held open in between. A write costs a copy of the
file, some tens of milliseconds for a run of a few megabytes.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from landscape.results import encode
from landscape.results.errors import GroupMissingError, StoreError
from landscape.results.files import writing
from landscape.results.hdf5_reading import about, find_place, get_group, places, reading, root_of, true_path
from landscape.results.hdf5_writing import File, put, remove, update
from landscape.results.inspection import describe
from landscape.results.names import escape_name, file_name, printable
from landscape.results.run import check_run
from landscape.results.schema import PARTIAL, ROOT, layout_of_group
from landscape.results.types import Provenance, Result
from landscape.results.values import decode_attribute

if TYPE_CHECKING:
    from landscape.results.runfile import RunFile

__all__ = [
    "GroupMissingError",
    "PathLike",
    "StoreError",
    "attributes",
    "check_writable",
    "describe",
    "file_name",
    "find",
    "groups",
    "load",
    "load_partial",
    "open",
    "printable",
    "remove_partial",
    "save",
    "save_partial",
]

PathLike = str | os.PathLike[str]


def save(
    path: PathLike,
    result: Result,
    name: str | None = None,
    run: Mapping[str, Any] | None = None,
    *,
    vectors: bool = True,
    wait: float = 10.0,
) -> str:
    """Put a result into a run file, which is made if need be; a result of the same kind and name is replaced.

    Args:
        path: The file; missing folders are made.
        result: Any result type.
        name: For surfaces and sharpness, instead of the name that they have by themselves.
        run: Attributes of the root, e.g. seed, command, git_commit, world_size, config; the rest come from the result and the process.
        vectors: Whether to keep eigenvectors; every later write copies them.
        wait: Seconds to wait for another writer.

    Returns:
        The path of the group in the file, e.g. surfaces/filter.
    """
    group, given = encode.pack(result, name, vectors), check_run(run)

    def change(file: File) -> None:
        remove(file, f"{PARTIAL}/{group.path}")
        put(file, group)

    update(Path(path), change, given, result.provenance, wait)
    return group.path


def save_partial(path: PathLike, name: str, arrays: Mapping[str, Any], attributes: Mapping[str, Any], *, wait: float = 10.0) -> str:
    """Put an unfinished surface into a run file, to resume from; `save` of the surface of that name removes it.

    Args:
        path: The file; missing folders are made.
        name: Of the surface.
        arrays: x (nx,), on a plane y (ny,), and numbers on the grid (..., ny, nx), along an axis, or alone; readers see loss, accuracy,
            stderr and status where these are among them, otherwise NaN and pending.
        attributes: What `load_partial` returns again: anything JSON keeps. The key plane is shown as the surface's plane.
        wait: Seconds to wait for another writer.

    Returns:
        The path of the group in the file.
    """
    group = encode.pack_partial(name, arrays, attributes)
    group.path = f"{PARTIAL}/{group.path}"
    update(Path(path), lambda file: put(file, group), {}, Provenance(), wait)
    return group.path


def load_partial(path: PathLike, name: str) -> tuple[dict[str, np.ndarray], dict[str, Any]] | None:
    """Return the arrays and attributes of an unfinished surface; None where the file or the surface does not exist."""
    path, group = Path(path), f"{PARTIAL}/surfaces/{escape_name(name)}"
    if not path.exists():
        return None
    with reading(path) as file, about(path, group):
        if group not in file:
            return None
        return encode.unpack_partial(get_group(file, group, lambda _: True))


def remove_partial(path: PathLike, name: str, *, wait: float = 10.0) -> None:
    """Remove an unfinished surface from a run file."""
    group = f"{PARTIAL}/surfaces/{escape_name(name)}"
    update(Path(path), lambda file: remove(file, group), {}, Provenance(), wait)


def check_writable(path: PathLike, *, wait: float = 10.0) -> None:
    """Find out before a long computation whether its result can be stored in a file; nothing is changed."""
    target = Path(os.path.realpath(path))
    nearest = next(folder for folder in target.parents if folder.exists())
    if nearest != target.parent:  # made when there is something to put into it
        if not (nearest.is_dir() and os.access(nearest, os.W_OK | os.X_OK)):
            raise StoreError(f"cannot write {path}: {nearest} is no folder that can be written to; choose another place")
        return
    with writing(target, wait):
        if target.exists():
            with reading(target) as file:
                root_of(target, file)


def load(path: PathLike, group: str, *, vectors: bool = True) -> Result:
    """Return the result that lies in a group, e.g. training, hessian/eigen or surfaces/filter.

    Args:
        path: The file.
        group: Its path in the file; for a named result with the name as the user gave it.
        vectors: Whether to read eigenvectors.

    Returns:
        The result, equal to the saved one bit for bit; tensors are on the CPU.
    """
    path = Path(path)
    with reading(path) as file:
        place = find_place(path, file, group)
        layout = layout_of_group(place)
        assert layout is not None
        wanted = {v.name for v in layout.variables if vectors or v.kind != "tensor"}
        with about(path, group):
            return encode.unpack(layout, get_group(file, place, wanted.__contains__))


def find(path: PathLike, group: str) -> Result | None:
    """Return what `load` returns; None where the file or the group does not exist."""
    if not Path(path).exists():
        return None
    try:
        return load(path, group)
    except GroupMissingError:
        return None


def groups(path: PathLike) -> list[str]:
    """Return the paths of the results in a file, with names as the user gave them; unfinished surfaces begin with partial/."""
    path = Path(path)
    with reading(path) as file, about(path, "the list of groups"):
        return [true_path(place) for place in places(file)]


def attributes(path: PathLike) -> dict[str, Any]:
    """Return what the root of a file says about the run."""
    path = Path(path)
    with reading(path) as file:
        found = root_of(path, file)
    return {a.name: decode_attribute(a, found[a.name]) for a in ROOT if a.name in found}


def open(path: PathLike) -> RunFile:
    """Return typed access to every result in a run file; a file that is missing, damaged or foreign is a StoreError now."""
    from landscape.results.runfile import RunFile  # which reads through this module

    return RunFile(path)
