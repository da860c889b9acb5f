"""Run files: one HDF5 file per run that xarray, h5dump and MATLAB read, written so that a killed process spoils nothing.

Every write makes the whole new file in memory, puts it beside the old one and moves it into place: a reader sees the old file or the
new one, `kill -9` leaves one of the two, and a full disk leaves the old. Nothing is held open in between. A write costs a copy of the
file, some tens of milliseconds for a run of a few megabytes.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np

from landscape.results import encode
from landscape.results.files import check_signature, reason, replace, writing
from landscape.results.run import check_run, root_attributes
from landscape.results.schema import (
    LAYOUTS,
    PARTIAL,
    ROOT,
    SCHEMA_VERSION,
    StoreError,
    escape_name,
    layout_of_group,
    unescape_name,
)
from landscape.results.types import Provenance, Result
from landscape.results.values import Dataset, Group, decode_attribute, sealed_attributes, verify

if TYPE_CHECKING:
    from landscape.results.runfile import RunFile

PathLike = str | os.PathLike[str]

# Checksummed metadata, and readable by every HDF5 since 1.8, as netCDF-4 files are.
LIBVER = ("v108", "v108")
COMPRESSED_FROM = 1 << 16  # bytes: smaller datasets lie contiguous


class GroupMissingError(StoreError, KeyError):
    """A file holds no such group; the message lists what it holds."""

    def __str__(self) -> str:
        return str(self.args[0])


@dataclass(frozen=True)
class Row:
    """One dataset of a run file, as `landscape inspect` shows it; texts hold printable characters only."""

    group: str
    dataset: str
    dims: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: str
    units: str
    long_name: str
    attributes: dict[str, Any]  # of the group


class Description(list[Row]):
    """The rows of a file; it prints as a table."""

    def __str__(self) -> str:
        lines = []
        for i, row in enumerate(self):
            if i == 0 or row.group != self[i - 1].group:
                lines.append(f"/{row.group}  {_in_short(row.attributes)}")
            shape = " x ".join(f"{dim} {length}" for dim, length in zip(row.dims, row.shape, strict=True)) or "scalar"
            lines.append(f"    {row.dataset:<20} {shape:<24} {row.dtype:<8} [{row.units}] {row.long_name}")
        return "\n".join(lines) or "no results"


def _in_short(attributes: Mapping[str, Any]) -> str:
    keys = ("name", "examples", "seed", "tol", "p", "converged", "forwards", "gradients", "hvps", "seconds", "created_at")
    found = {key: attributes[key] for key in keys if attributes.get(key) not in (None, "")}
    return "  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in found.items())


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

    def change(file: h5py.File) -> None:
        _remove(file, f"{PARTIAL}/{group.path}")
        _put(file, group)

    _update(Path(path), change, given, result.provenance, wait)
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
    _update(Path(path), lambda file: _put(file, group), {}, Provenance(), wait)
    return group.path


def load_partial(path: PathLike, name: str) -> tuple[dict[str, np.ndarray], dict[str, Any]] | None:
    """Return the arrays and attributes of an unfinished surface; None where the file or the surface does not exist."""
    path, group = Path(path), f"{PARTIAL}/surfaces/{escape_name(name)}"
    if not path.exists():
        return None
    with _reading(path) as file, _about(path, group):
        if group not in file:
            return None
        return encode.unpack_partial(_get(file, group, lambda _: True))


def remove_partial(path: PathLike, name: str, *, wait: float = 10.0) -> None:
    """Remove an unfinished surface from a run file."""
    group = f"{PARTIAL}/surfaces/{escape_name(name)}"
    _update(Path(path), lambda file: _remove(file, group), {}, Provenance(), wait)


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
            with _reading(target) as file:
                _root(target, file)


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
    with _reading(path) as file:
        place = _find(path, file, group)
        layout = layout_of_group(place)
        assert layout is not None
        wanted = {v.name for v in layout.variables if vectors or v.kind != "tensor"}
        with _about(path, group):
            return encode.unpack(layout, _get(file, place, wanted.__contains__))


def find(path: PathLike, group: str) -> Result | None:
    """Return what `load` returns; None where the file or the group does not exist."""
    if not Path(path).exists():
        return None
    try:
        return load(path, group)
    except GroupMissingError:
        return None


def describe(path: PathLike) -> Description:
    """Return one row for every dataset of a file, with units, axes and the attributes of its group."""
    path = Path(path)
    rows: list[tuple[tuple[int, int], Row]] = []
    of_group: dict[str, dict[str, Any]] = {}

    def visit(place: str, item: Any) -> None:
        if not isinstance(item, h5py.Dataset):
            return
        group, _, name = place.rpartition("/")
        layout = layout_of_group(group)
        order = [variable.name for variable in layout.variables] if layout else []
        rank = (LAYOUTS.index(layout) if layout else len(LAYOUTS), order.index(name) if name in order else len(order))
        if group not in of_group:
            of_group[group] = {printable(k): _shown(v) for k, v in _attributes(item.parent).items() if k != "checksums"}
        dims = tuple(printable(axis or "?") for axis in _axes(item, name))
        units, long_name = (printable(str(item.attrs.get(key, ""))) for key in ("units", "long_name"))
        dtype = "str" if h5py.check_string_dtype(item.dtype) else str(item.dtype)
        rows.append((rank, Row(printable(group), printable(name), dims, item.shape, dtype, units, long_name, of_group[group])))

    with _reading(path) as file, _about(path, "the list of groups"):
        file.visititems(visit)
    return Description(row for _, row in sorted(rows, key=lambda entry: (entry[0][0], entry[1].group, entry[0][1])))


def file_name(name: str) -> str:
    """Return a name for a file, without a suffix, that stands for any name a user may give."""
    return escape_name(name, longest=200)


def printable(text: str) -> str:
    r"""Return text safe for a terminal: control characters and invisible marks become \x1b and the like."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _shown(value: Any) -> Any:
    return printable(value) if isinstance(value, str) else value


def groups(path: PathLike) -> list[str]:
    """Return the paths of the results in a file, with names as the user gave them; unfinished surfaces begin with partial/."""
    path = Path(path)
    with _reading(path) as file, _about(path, "the list of groups"):
        return [_true_path(place) for place in _places(file)]


def attributes(path: PathLike) -> dict[str, Any]:
    """Return what the root of a file says about the run."""
    path = Path(path)
    with _reading(path) as file:
        found = _root(path, file)
    return {a.name: decode_attribute(a, found[a.name]) for a in ROOT if a.name in found}


def open(path: PathLike) -> RunFile:
    """Return typed access to every result in a run file; a file that is missing, damaged or foreign is a StoreError now."""
    from landscape.results.runfile import RunFile  # which reads through this module

    return RunFile(path)


# Reading


@contextlib.contextmanager
def _about(path: Path, where: str) -> Iterator[None]:
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
def _reading(path: Path) -> Iterator[h5py.File]:
    """Open a run file for reading, its version checked."""
    check_signature(path)
    # Through a Python file HDF5 takes no lock, which nobody here needs, and does not mind that the process has the file open already.
    with contextlib.ExitStack() as stack:
        try:
            plain = stack.enter_context(path.open("rb"))
        except OSError as error:
            raise StoreError(f"cannot read {path}: {reason(error)}") from error
        yield stack.enter_context(_opened(path, lambda: h5py.File(plain, "r")))


@contextlib.contextmanager
def _opened(path: Path, make: Callable[[], h5py.File]) -> Iterator[h5py.File]:
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
    with _about(path, "the root"):
        found = _attributes(file)
    version = found.get("schema_version")
    if not isinstance(version, int) or "creation_library" not in found:
        raise StoreError(f"{path} is an HDF5 file but no run file (it has no schema_version); give a run file written by landscape")
    if version > SCHEMA_VERSION:
        text = f"{path} has schema version {version}, this library reads versions up to {SCHEMA_VERSION}; install a newer landscape-sam"
        raise StoreError(text)
    if version < 1:
        raise StoreError(f"{path} has schema version {version}, which never was; the file is damaged or foreign")


def _root(path: Path, file: h5py.File) -> dict[str, Any]:
    with _about(path, "the root"):
        found = _attributes(file)
        verify(found, {})
        return found


def _attributes(owner: Any) -> dict[str, Any]:
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


def _axes(dataset: h5py.Dataset, name: str) -> list[str]:
    """Return the name of the dimension scale on each axis, empty where there is none."""
    if dataset.is_scale and dataset.ndim == 1:
        return [name]
    return [h5py.h5ds.get_scale_name(axis[0].id).decode() if len(axis) else "" for axis in dataset.dims]


def _members(group: Any) -> list[str]:
    """Return the names in a group, without links that lead elsewhere."""
    return [name for name in group if isinstance(group.get(name, getlink=True), h5py.HardLink)]


def _get(file: h5py.File, place: str, wanted: Callable[[str], bool]) -> Group:
    node = file[place]
    datasets: dict[str, Dataset] = {}
    for name in _members(node):
        item = node[name]
        if not isinstance(item, h5py.Dataset) or not wanted(name):
            continue
        if item.is_virtual or item.external:
            raise StoreError(f"the dataset {name} lies in another file")
        text = h5py.check_string_dtype(item.dtype) is not None
        values = item.asstr()[...].tolist() if text else item[...] if item.shape else np.asarray(item[()])
        datasets[name] = Dataset(values, ())
    return Group(place, _attributes(node), datasets)


def _places(file: h5py.File) -> list[str]:
    """Return the paths of the groups that the schema knows, names escaped."""
    found = []
    for prefix in ("", f"{PARTIAL}/"):
        for layout in LAYOUTS:
            node = file.get(prefix + layout.group)
            if not isinstance(node, h5py.Group):
                continue
            found += [f"{prefix}{layout.group}/{name}" for name in _members(node)] if layout.named else [prefix + layout.group]
    return found


def _true_path(place: str) -> str:
    layout = layout_of_group(place)
    if layout is None or not layout.named:
        return place
    prefix, _, name = place.rpartition("/")
    return f"{prefix}/{unescape_name(name)}"


def _find(path: Path, file: h5py.File, group: str) -> str:
    """Return where a group lies: under its name as the user gave it, or as it is written in the file."""
    with _about(path, "the list of groups"):
        places = _places(file)
        by_name = {_true_path(place): place for place in places}
    wanted = group.strip("/") if group.strip("/") in by_name or group.strip("/") in places else group
    place = by_name.get(wanted) or (wanted if wanted in places else None)
    if place is None:
        there = ", ".join(map(printable, by_name)) or "no results"
        raise GroupMissingError(f"{path} holds no {printable(group)}; it holds {there}")
    return place


# Writing


def _update(path: Path, change: Callable[[h5py.File], None], run: Mapping[str, Any], provenance: Provenance, wait: float) -> None:
    """Make the new file in memory, from the old one if there is one, and replace it."""
    target = Path(os.path.realpath(path))  # a link stays a link
    with writing(target, wait):
        options: dict[str, Any] = {"driver": "core", "backing_store": False, "libver": LIBVER, "locking": False}
        with contextlib.ExitStack() as stack:
            if os.path.lexists(target):
                check_signature(target)
                file = stack.enter_context(_opened(target, lambda: h5py.File(target, "r+", **options)))
                old = _root(target, file)
            else:
                file, old = stack.enter_context(h5py.File(target, "w", **options)), None
            with _about(path, "writing"):
                change(file)
                root = sealed_attributes(root_attributes(old, run, provenance), {})
                if root != old:
                    _write_attributes(file, {key: value for key, value in root.items() if old is None or old.get(key) != value})
                image = _image(file)
                if len(image) > 1_000_000 and len(image) > 4 * _used(file):
                    image = _compacted(file, options)
        replace(target, image)


def _image(file: h5py.File) -> bytes:
    file.flush()
    return file.id.get_file_image()


def _remove(file: h5py.File, place: str) -> None:
    """Remove a group, and its parents where they become empty."""
    while place and place in file:
        del file[place]
        place = place.rpartition("/")[0]
        if place and (len(file[place]) or len(file[place].attrs)):
            return


def _put(file: h5py.File, group: Group) -> None:
    if group.path in file:
        del file[group.path]
    node = file.create_group(group.path)
    _write_attributes(node, group.attributes)
    is_scale = {name: data.dims == (name,) for name, data in group.datasets.items()}
    for name, data in sorted(group.datasets.items(), key=lambda item: not is_scale[item[0]]):
        dataset = _create(node, name, data)
        _write_attributes(dataset, data.attributes)
        if is_scale[name]:
            dataset.make_scale(name)
        else:
            for axis, dim in enumerate(data.dims):
                dataset.dims[axis].attach_scale(node[dim])


def _create(node: h5py.Group, name: str, data: Dataset) -> h5py.Dataset:
    if isinstance(data.values, list):
        return node.create_dataset(name, data=np.array(data.values, dtype=object), dtype=h5py.string_dtype())
    if data.values.nbytes < COMPRESSED_FROM or not data.dims:
        return node.create_dataset(name, data=data.values)
    *rest, last = data.values.shape
    chunk = (*(1 for _ in rest), last) if last >= 1024 else True
    if last > 1 << 18:
        chunk = (*(1 for _ in rest), 1 << 18)
    return node.create_dataset(name, data=data.values, chunks=chunk, compression="gzip", compression_opts=1, shuffle=True, fletcher32=True)


def _write_attributes(owner: Any, attributes: Mapping[str, Any]) -> None:
    for key, value in attributes.items():
        if isinstance(value, int):
            value = np.int64(value) if value < 2**63 else np.uint64(value)
        owner.attrs[key] = np.float64(value) if isinstance(value, float) else value


def _used(file: h5py.File) -> int:
    """Return about how many bytes the file needs: its datasets, and 16 kB for each of the rest."""
    sizes: list[int] = []
    file.visititems(lambda _, item: sizes.append(item.id.get_storage_size() + 1024 if isinstance(item, h5py.Dataset) else 16_384))
    return sum(sizes)


def _compacted(file: h5py.File, options: Mapping[str, Any]) -> bytes:
    """Return the file without the room that replaced groups left; HDF5 does not find it again after closing."""
    scales: dict[str, list[str]] = {}

    def note(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset) and not item.is_scale:
            scales[name] = [axis[0].name if len(axis) else "" for axis in item.dims]

    def forget(_: str, item: Any) -> None:
        for key in ("DIMENSION_LIST", "REFERENCE_LIST"):  # they point into the old file
            if key in item.attrs:
                del item.attrs[key]

    file.visititems(note)
    with h5py.File("compacted", "w", **options) as fresh:
        _write_attributes(fresh, _attributes(file))
        for name in file:
            file.copy(name, fresh)
        fresh.visititems(forget)
        for name, axes in scales.items():
            for axis, scale in enumerate(axes):
                if scale:
                    fresh[name].dims[axis].attach_scale(fresh[scale])
        return _image(fresh)
