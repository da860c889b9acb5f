"""Plain groups into the HDF5 of a run file, which is made whole in memory and then moved into place."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from landscape.results.errors import StoreError
from landscape.results.files import check_signature, replace, writing
from landscape.results.hdf5_reading import about, attributes_of, get_group, opened, places, root_of
from landscape.results.run import root_attributes
from landscape.results.schema import SCHEMA_VERSION
from landscape.results.types import Provenance
from landscape.results.values import Dataset, Group, sealed_attributes

File = h5py.File

# Checksummed metadata, and readable by every HDF5 since 1.8, as netCDF-4 files are.
LIBVER = ("v108", "v108")
COMPRESSED_FROM = 1 << 16  # bytes: smaller datasets lie contiguous


def update(path: Path, change: Callable[[h5py.File], None], run: Mapping[str, Any], provenance: Provenance, wait: float) -> None:
    """Make the new file in memory, from the old one if there is one, and replace it."""
    target = Path(os.path.realpath(path))  # a link stays a link
    with writing(target, wait):
        options: dict[str, Any] = {"driver": "core", "backing_store": False, "libver": LIBVER, "locking": False}
        with contextlib.ExitStack() as stack:
            if os.path.lexists(target):
                check_signature(target)
                file = stack.enter_context(opened(target, lambda: h5py.File(target, "r+", **options)))
                old = root_of(target, file)
            else:
                file, old = stack.enter_context(h5py.File(target, "w", **options)), None
            with about(path, "writing"):
                if old is not None and old["schema_version"] < SCHEMA_VERSION:
                    _renew(file, old["schema_version"])
                change(file)
                root = sealed_attributes(root_attributes(old, run, provenance), {})
                if root != old:
                    _write_attributes(file, {key: value for key, value in root.items() if old is None or old.get(key) != value})
                image = _image(file)
                if len(image) > 1_000_000 and len(image) > 4 * _used(file):
                    image = _compacted(file, options)
        replace(target, image)


def _renew(file: h5py.File, version: int) -> None:
    """Bring every group of an older file to the version that is written now; what is damaged stays so, and is reported as before."""
    for place in places(file):
        with contextlib.suppress(StoreError):
            _write_attributes(file[place], get_group(file, place, lambda _: True, version).attributes)


def _image(file: h5py.File) -> bytes:
    file.flush()
    return file.id.get_file_image()


def remove(file: h5py.File, place: str) -> None:
    """Remove a group, and its parents where they become empty."""
    while place and place in file:
        del file[place]
        place = place.rpartition("/")[0]
        if place and (len(file[place]) or len(file[place].attrs)):
            return


def put(file: h5py.File, group: Group) -> None:
    """Write a group, in place of one that is there, with a dimension scale on every axis."""
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
        _write_attributes(fresh, attributes_of(file))
        for name in file:
            file.copy(name, fresh)
        fresh.visititems(forget)
        for name, axes in scales.items():
            for axis, scale in enumerate(axes):
                if scale:
                    fresh[name].dims[axis].attach_scale(fresh[scale])
        return _image(fresh)
