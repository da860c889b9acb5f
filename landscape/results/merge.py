"""Several files of one run, such as the parts of it that several jobs measured, made into one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from landscape.results import encode, store
from landscape.results.hdf5_writing import put, remove, update
from landscape.results.names import printable
from landscape.results.schema import COST, PARTIAL, PROVENANCE, ROOT, layout_of
from landscape.results.types import Provenance
from landscape.results.values import Group, encode_attribute

_OF_THE_PROCESS = {"schema_version", "created_at", "creation_library", "creation_library_version", "torch_version", "numpy_version"}


class _Held(NamedTuple):
    path: Path
    group: Group
    weights: str  # hash of the parameters; empty where a file of one model may hold others


def merge(paths: Sequence[Path], out: store.PathLike) -> list[str]:
    """Put the results of several files of one run into one file, such as the shards that several jobs measured.

    All of it is compared before anything is written, and written at once. An unfinished surface is taken along where no file has it
    finished. What the root says of the run (command, configuration, seed, commit, ...) is kept where all files say the same.

    Args:
        paths: result files; they are only read.
        out: file to write to; what it holds already takes part.

    Returns:
        The groups that were added.

    Raises:
        ValueError: two files hold different results under one name, or results of different weights, or one cannot be read.
    """
    target = Path(out)
    for path in paths:
        if not Path(path).exists():
            raise ValueError(f"{path} does not exist")
    files = [target, *map(Path, paths)] if target.exists() else [*map(Path, paths)]
    held: dict[str, _Held] = {}
    first: _Held | None = None
    for path in files:
        for name, found in _contents(path):
            if found.weights:
                first = first or found
                if first.weights != found.weights:
                    raise ValueError(f"{path} holds results of other weights than {first.path}: merge files of one model")
            if name in held and not _same(held[name].group, found.group):
                said = f"{path} and {held[name].path} hold different results named {printable(name)}"
                raise ValueError(f"{said}: leave one of them out, or measure it under another name")
            held.setdefault(name, found)
    there = set(store.groups(target)) if target.exists() else set()
    finished = {name for name in held if not name.startswith(f"{PARTIAL}/")}
    superseded = {name for name in held if name not in finished and name.removeprefix(f"{PARTIAL}/") in finished}
    added = [name for name in held if name not in there | superseded]
    if added or superseded & there:

        def change(file: Any) -> None:
            for name in superseded & there:
                remove(file, held[name].group.path)
            for name in added:
                put(file, held[name].group)

        provenance = Provenance() if first is None else _provenance(first.group)
        update(target, change, {} if target.exists() else _root([store.attributes(path) for path in files]), provenance, wait=10.0)
    return added


def _contents(path: Path) -> Iterator[tuple[str, _Held]]:
    """Return what a file holds, ready to be written again."""
    for name in store.groups(path):
        if name.startswith(f"{PARTIAL}/"):
            surface = name.removeprefix(f"{PARTIAL}/surfaces/")
            partial = store.load_partial(path, surface)
            if partial is not None:
                group = encode.pack_partial(surface, *partial)
                group.path = f"{PARTIAL}/{group.path}"
                yield name, _Held(path, group, str(partial[1].get("identity", {}).get("parameters", "")))
            continue
        result = store.load(path, name)
        layout = layout_of(result)
        group = encode.pack(result, name.removeprefix(f"{layout.group}/") if layout.named else None)
        yield name, _Held(path, group, "" if name.startswith("traces/") else result.provenance.parameter_sha256)


def _same(one: Group, other: Group) -> bool:
    """Return whether two groups hold the same numbers, measured in the same way; when and at what cost does not matter."""
    aside = {a.name for a in (*COST, *PROVENANCE)} | {"checksums"}
    told = [{key: value for key, value in group.attributes.items() if key not in aside} for group in (one, other)]
    return told[0] == told[1] and one.datasets.keys() == other.datasets.keys() and all(
        _equal(one.datasets[name].values, other.datasets[name].values) for name in one.datasets
    )  # fmt: skip


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, list) or isinstance(other, list):
        return bool(one == other)
    return bool(np.array_equal(one, other, equal_nan=np.asarray(one).dtype.kind == "f"))


def _provenance(group: Group) -> Provenance:
    return Provenance(**{a.name: group.attributes[a.name] for a in PROVENANCE if a.name in group.attributes})  # type: ignore[arg-type]


def _root(of_files: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return what the roots of all files agree on, as it is written."""
    agreed = {}
    for attribute in ROOT:
        values = [found.get(attribute.name) for found in of_files]
        value = encode_attribute(attribute, values[0])
        if attribute.name not in _OF_THE_PROCESS and value is not None and all(v == values[0] for v in values):
            agreed[attribute.name] = value
    return agreed
