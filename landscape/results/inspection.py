"""What is in a run file, as a table: every dataset with axes and units, every result with its error bar and cost."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py

from landscape.results import encode
from landscape.results.errors import StoreError
from landscape.results.hdf5_reading import about, attributes_of, axes_of, get_group, members, places, reading, root_of
from landscape.results.names import printable
from landscape.results.schema import LAYOUTS, PARTIAL, layout_of_group


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
    """The rows of a file; it prints as a table.

    Attributes:
        root: what the root says about the run.
        summaries: for every group of the schema its result in one line; of a damaged one what is wrong.
        damaged: the groups that cannot be read.
    """

    def __init__(self, rows: Iterable[Row], root: Mapping[str, Any], summaries: Mapping[str, str], damaged: Iterable[str]) -> None:
        super().__init__(rows)
        self.root, self.summaries, self.damaged = dict(root), dict(summaries), tuple(damaged)

    def __str__(self) -> str:
        lines = [f"{key:<24} {value}" for key, value in self.root.items() if value != ""]
        for i, row in enumerate(self):
            if i == 0 or row.group != self[i - 1].group:
                lines += ["", f"/{row.group}  {_in_short(row.attributes)}".rstrip()]
                lines += [f"    {self.summaries[row.group]}"] if row.group in self.summaries else []
            shape = " x ".join(f"{dim} {length}" for dim, length in zip(row.dims, row.shape, strict=True)) or "scalar"
            lines.append(f"    {row.dataset:<20} {shape:<24} {row.dtype:<8} [{row.units}] {row.long_name}".rstrip())
        return "\n".join(lines if self else [*lines, "", "no results"])


def _in_short(attributes: Mapping[str, Any]) -> str:
    keys = ("name", "examples", "seed", "tol", "p", "converged", "forwards", "gradients", "hvps", "seconds", "created_at")
    found = {key: attributes[key] for key in keys if isinstance(attributes.get(key), str | int | float) and attributes[key] != ""}
    return "  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in found.items())


def describe(path: str | Path) -> Description:
    """Return one row for every dataset of a file, with units, axes and the attributes of its group, and a line for every result.

    Every result is read, without its vectors, and compared with its checksums: a damaged group is told in its line and in `damaged`.
    """
    path = Path(path)
    rows: list[tuple[tuple[int, int], Row]] = []
    of_group: dict[str, dict[str, Any]] = {}
    summaries: dict[str, str] = {}
    damaged: list[str] = []

    def add(group: str, name: str, item: Any, parent: Any) -> None:
        layout = layout_of_group(group)
        order = [variable.name for variable in layout.variables] if layout else []
        rank = (LAYOUTS.index(layout) if layout else len(LAYOUTS), order.index(name) if name in order else len(order))
        if group not in of_group:
            of_group[group] = {printable(k): _shown(v) for k, v in attributes_of(parent).items() if k != "checksums"}
        dims = tuple(printable(axis or "?") for axis in axes_of(item, name))
        units, long_name = (printable(str(item.attrs.get(key, ""))) for key in ("units", "long_name"))
        dtype = "str" if h5py.check_string_dtype(item.dtype) else str(item.dtype)
        rows.append((rank, Row(printable(group), printable(name), dims, item.shape or (), dtype, units, long_name, of_group[group])))

    def others(place: str, item: Any) -> None:
        group, _, name = place.rpartition("/")
        if isinstance(item, h5py.Dataset) and group not in ours:
            add(group, name, item, item.parent)

    with reading(path) as file:
        with about(path, "the list of groups"):
            ours = places(file)
            for place in ours:  # by their own names, even where another link leads there, too
                node = file[place]
                for name in members(node) if isinstance(node, h5py.Group) else ():
                    if isinstance(node[name], h5py.Dataset):
                        add(place, name, node[name], node)
            file.visititems(others)
        try:
            root = {key: _shown(value) for key, value in root_of(path, file).items() if key != "checksums"}
        except StoreError as error:
            root = {"DAMAGED": printable(str(error))}
            damaged.append("the root")
        for place in ours:
            try:
                with about(path, place):
                    summaries[printable(place)] = _summary(file, place)
            except StoreError as error:
                summaries[printable(place)] = f"DAMAGED: {printable(str(error))}"
                damaged.append(place)
    ordered = [row for _, row in sorted(rows, key=lambda entry: (entry[0][0], entry[1].group, entry[0][1]))]
    return Description(ordered, root, summaries, damaged)


def _summary(file: h5py.File, place: str) -> str:
    layout = layout_of_group(place)
    assert layout is not None
    wanted = {variable.name for variable in layout.variables if variable.kind != "tensor"}
    if place.startswith(f"{PARTIAL}/"):
        encode.unpack_partial(get_group(file, place, lambda _: True))
    return printable(repr(encode.unpack(layout, get_group(file, place, wanted.__contains__))))


def _shown(value: Any) -> Any:
    return printable(value) if isinstance(value, str) else value
