"""Result files for other programs: CSV for spreadsheets, NPZ for NumPy, netCDF for geoscientists, VTP for ParaView."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from xml.sax.saxutils import quoteattr

import numpy as np

from landscape.results import store
from landscape.results.encode import pack
from landscape.results.files import replace
from landscape.results.names import escape_name
from landscape.results.types import Result, Surface
from landscape.results.values import Dataset, Group

__all__ = ["FORMATS", "export"]

LONGEST = 200  # bytes of a file name, which gets an ending and, while it is written, a beginning


def export(path: store.PathLike, to: str, out: store.PathLike | None = None) -> list[Path]:
    """Write what a result file holds in another format.

    * "csv": a folder for every group with one table for every set of dimensions (y-x.csv; numbers.csv where there are none), a row for each
      point, coordinates first; and attributes.json.
    * "npz": one archive of arrays named group/dataset, and `attributes`, a JSON text.
    * "netcdf": one netCDF-4 file, which a result file is as it stands.
    * "vtp": a folder with one VTK polygon mesh for every surface on a plane: the loss is the height, everything else point data.

    Names that users gave are written in all of them as they are in the file, with %XX for what a path or a shell could trip over.

    Args:
        path: the result file; it is only read.
        to: the format.
        out: file or folder to write, replaced if it is there; None for one beside `path`.

    Returns:
        The files that were written.

    Raises:
        ValueError: there is no such format, the file cannot be read, or has no surface on a plane for "vtp".
    """
    if to not in FORMATS:
        raise ValueError(f"to must be one of {', '.join(FORMATS)}, not {to!r}")
    path = Path(path)
    ending, write = FORMATS[to]
    place = Path(out) if out is not None else path.with_name(path.stem + ending)
    if place.resolve() == path.resolve():
        raise ValueError(f"{place} is the result file itself: give another place")
    written = []
    for file, content in write(path, place):
        file.parent.mkdir(parents=True, exist_ok=True)
        replace(file, content)
        written.append(file)
    return written


Written = Iterator[tuple[Path, bytes]]


def _results(path: Path) -> Iterator[tuple[str, Result]]:
    for group in store.open(path).groups():
        yield group, store.load(path, group)


def _csv(path: Path, place: Path) -> Written:
    for _, result in _results(path):
        packed = pack(result)
        folder = place / packed.path
        yield folder / "attributes.json", json.dumps(_attributes(packed), indent=1).encode()
        for dims in dict.fromkeys(d.dims for d in packed.datasets.values()):
            columns = {name: d for name, d in packed.datasets.items() if d.dims == dims and d.dims != (name,)}
            if columns or len(dims) == 1:
                yield folder / f"{'-'.join(dims) or 'numbers'}.csv", _table(dims, columns, packed.datasets).encode()


def _attributes(group: Group) -> dict[str, Any]:
    return {name: value for name, value in group.attributes.items() if name != "checksums"}


def _table(dims: tuple[str, ...], columns: Mapping[str, Dataset], datasets: Mapping[str, Dataset]) -> str:
    shape = tuple(len(datasets[d].values) for d in dims)
    axes = [list(datasets[d].values) for d in dims]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*dims, *columns])
    for place in np.ndindex(*shape):
        row = [axis[i] for axis, i in zip(axes, place, strict=True)] + [np.asarray(d.values)[place] for d in columns.values()]
        writer.writerow([repr(v.item()) if isinstance(v, np.floating) else v for v in row])
    return text.getvalue()


def _npz(path: Path, place: Path) -> Written:
    arrays: dict[str, np.ndarray] = {}
    about: dict[str, Any] = {"": store.attributes(path)}
    for _, result in _results(path):
        packed = pack(result)
        about[packed.path] = _attributes(packed)
        for name, dataset in packed.datasets.items():
            values = dataset.values
            arrays[f"{packed.path}/{name}"] = np.array(values, dtype=str) if isinstance(values, list) else np.asarray(values)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays, attributes=np.array(json.dumps(about, default=_plain)))
    yield place, buffer.getvalue()


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else str(value)


def _netcdf(path: Path, place: Path) -> Written:
    store.open(path)  # it must be one of ours
    yield place, path.read_bytes()


def _vtp(path: Path, place: Path) -> Written:
    surfaces = [(group, r) for group, r in _results(path) if isinstance(r, Surface) and r.y is not None]
    if not surfaces:
        raise ValueError(f"{path} holds no surface on a plane, which VTP files are for")
    for group, surface in surfaces:
        stem = escape_name(group.removeprefix("surfaces/"))
        if len(stem.encode()) > LONGEST:  # file systems stop at 255 bytes
            stem = f"{stem[: LONGEST // 8]}-{hashlib.sha256(stem.encode()).hexdigest()[:16]}"
        yield place / f"{stem}.vtp", _mesh(surface).encode()


def _mesh(surface: Surface) -> str:
    """Return a VTK PolyData file: a quadrilateral for each cell whose four losses are numbers."""
    assert surface.y is not None
    ny, nx = surface.loss.shape
    x, y = np.meshgrid(surface.x, surface.y)
    fine = np.isfinite(surface.loss)
    number = np.where(fine, np.cumsum(fine).reshape(fine.shape) - 1, -1)
    corners = np.stack([number[:-1, :-1], number[:-1, 1:], number[1:, 1:], number[1:, :-1]], -1).reshape(-1, 4)
    cells = corners[(corners >= 0).all(1)] if ny > 1 and nx > 1 else corners[:0]
    points = np.stack([x[fine], y[fine], surface.loss[fine]], 1)
    data = {"loss": surface.loss, "accuracy": surface.accuracy, "stderr": surface.stderr, "error_estimate": surface.error_estimate}
    arrays = [_array(name, values[fine]) for name, values in data.items() if values is not None]
    if (surface.loss[fine] > 0).all() and fine.any():
        arrays.append(_array("log10_loss", np.log10(surface.loss[fine])))
    offsets = 4 * np.arange(1, len(cells) + 1)
    return (
        '<?xml version="1.0"?>\n<VTKFile type="PolyData" version="1.0" byte_order="LittleEndian">\n<PolyData>\n'
        f'<Piece NumberOfPoints="{len(points)}" NumberOfVerts="0" NumberOfLines="0" NumberOfStrips="0" NumberOfPolys="{len(cells)}">\n'
        f'<PointData Scalars="loss">\n{"".join(arrays)}</PointData>\n'
        f"<Points>\n{_array('Points', points, components=3)}</Points>\n"
        f"<Polys>\n{_array('connectivity', cells)}{_array('offsets', offsets)}</Polys>\n"
        "</Piece>\n</PolyData>\n</VTKFile>\n"
    )


def _array(name: str, values: np.ndarray, components: int = 1) -> str:
    whole = values.dtype.kind in "iu"
    numbers = " ".join(map(str, values.reshape(-1).tolist())) if whole else " ".join(map(_number, values.reshape(-1).tolist()))
    kind = "Int64" if whole else "Float64"
    return f'<DataArray type="{kind}" Name={quoteattr(name)} NumberOfComponents="{components}" format="ascii">\n{numbers}\n</DataArray>\n'


def _number(value: float) -> str:
    return repr(value) if np.isfinite(value) else "NaN"


# format: what takes the place of .h5, and the writer
FORMATS: dict[str, tuple[str, Callable[[Path, Path], Written]]] = {
    "csv": ("-csv", _csv),
    "npz": (".npz", _npz),
    "netcdf": (".nc", _netcdf),
    "vtp": ("-vtp", _vtp),
}
