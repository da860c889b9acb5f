"""Between result types and the plain groups of a file, checked against the schema on the way there and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import numpy as np
import torch

from landscape.results.errors import StoreError
from landscape.results.layout import Attribute, Layout, Variable
from landscape.results.names import escape_name
from landscape.results.schema import COST, LAYOUTS, PROVENANCE, layout_of
from landscape.results.types import Cost, Provenance, Result, Surface
from landscape.results.values import (
    Dataset,
    Group,
    Scalar,
    Values,
    decode_attribute,
    encode_attribute,
    sealed,
    storable_text,
    to_json,
    verify,
)


def array_of(variable: Variable, value: Any, owner: str) -> Values:
    """Return a field's values as they are stored.

    Raises:
        ValueError: The values are of a kind that the dataset does not keep.
    """
    if variable.kind == "text":
        return [storable_text(str(item)) for item in value]
    if variable.kind == "tensor" and isinstance(value, torch.Tensor):
        value = value.detach().cpu()
        value = value.numpy() if value.dtype in {torch.float32, torch.float64} else value.float().numpy()
    array = np.asarray(value)
    what = f"{owner}.{variable.field or variable.name}"
    if array.dtype.kind not in "fiu":
        raise ValueError(f"{what} has dtype {array.dtype}; numbers are allowed")
    if variable.kind in {"float", "tensor"}:
        array = array if array.dtype in (np.float32, np.float64) else array.astype(np.float64)
    elif array.dtype.kind == "f":
        raise ValueError(f"{what} has dtype {array.dtype}; integers are allowed")
    elif variable.kind == "status":
        if array.size and not 0 <= array.min() <= array.max() <= 255:
            raise ValueError(f"{what} holds {array.min()} ... {array.max()}; 0 ... 255 is allowed")
        array = array.astype(np.uint8)
    return array


def shape_of(values: Values) -> tuple[int, ...]:
    """Return the shape of an array or of a list of strings."""
    return (len(values),) if isinstance(values, list) else values.shape


def _dataset(variable: Variable, values: Values, dims: tuple[str, ...], scalars: str) -> Dataset:
    attributes: dict[str, Any] = {"units": variable.units, "long_name": variable.long_name}
    if variable.meanings:
        attributes["flag_values"] = np.array([value for value, _ in variable.meanings], dtype=np.uint8)
        attributes["flag_meanings"] = " ".join(text for _, text in variable.meanings)
    if scalars and not variable.scalar_coordinate and not variable.is_coordinate:
        attributes["coordinates"] = scalars  # netCDF's way to give a dataset coordinates without an axis
    return Dataset(values, dims, attributes)


def _datasets(layout: Layout, source: Mapping[str, Any], derived: Any, owner: str) -> dict[str, Dataset]:
    """Return the datasets of a layout from its fields, all of them of matching shapes."""
    dropped = {v.name for v in layout.variables if v.is_coordinate and v.optional and v.field and source[v.field] is None}
    lengths: dict[str, tuple[int, str]] = {}
    scalars = " ".join(v.name for v in layout.variables if v.scalar_coordinate)
    found: dict[str, Dataset] = {}

    def add(variable: Variable, values: Values) -> None:
        what = f"{owner}.{variable.field or variable.name}"
        dims, shape = tuple(d for d in variable.dims if d not in dropped), shape_of(values)
        if len(shape) != len(dims):
            raise ValueError(f"{what} has shape {shape}; its axes must be ({', '.join(dims)})")
        for dim, length in zip(dims, shape, strict=True):
            expected, said_by = lengths.setdefault(dim, (length, what))
            if length != expected:
                raise ValueError(f"{what} has shape {shape}; its axis {dim} must be of length {expected} as in {said_by}")
        found[variable.name] = _dataset(variable, values, dims, scalars)

    for variable in layout.variables:
        if variable.field and source[variable.field] is not None:
            add(variable, array_of(variable, source[variable.field], owner))
        elif variable.field and not variable.optional:
            raise ValueError(f"{owner}.{variable.field} is None; values are needed")
    for variable in layout.variables:
        if variable.derive is not None:
            add(variable, variable.derive(derived))
        elif not variable.field and variable.name in lengths:
            add(variable, np.arange(lengths[variable.name][0], dtype=np.int64))
    return {v.name: found[v.name] for v in layout.variables if v.name in found}


def pack(result: Result, name: str | None = None, vectors: bool = True) -> Group:
    """Return the group of a result, checked before anything touches the disk.

    Raises:
        ValueError: A name is given to a kind of result that a file holds once.
    """
    layout = layout_of(result)
    path, attributes = layout.group, {"kind": layout.type.kind}
    if layout.named:
        assert layout.default_name is not None
        name = layout.default_name(result) if name is None else name
        path = f"{layout.group}/{escape_name(name)}"
        attributes["name"] = name
    elif name is not None:
        raise ValueError(f"name is {name!r}; a file holds {layout.group} once, without a name")
    source = {v.field: getattr(result, v.field) for v in layout.variables if v.field}
    if not vectors and layout.type.kind == "eigen":
        source["vectors"] = None
    datasets = _datasets(layout, source, result, layout.type.__name__)
    parts = ((layout.attributes, result), (COST, result.cost), (PROVENANCE, result.provenance))
    return sealed(Group(path, attributes | _encoded(parts), datasets))


def _encoded(parts: tuple[tuple[tuple[Attribute, ...], Any], ...]) -> dict[str, Any]:
    pairs = {a.name: encode_attribute(a, getattr(owner, a.name)) for attributes, owner in parts for a in attributes}
    return {key: value for key, value in pairs.items() if value is not None}


def pack_partial(name: str, arrays: Mapping[str, Any], state: Mapping[str, Any]) -> Group:
    """Return the group of an unfinished surface: its points pending and NaN unless `arrays` says otherwise, and the state to resume from.

    Raises:
        ValueError: The coordinate x is missing, or an array is neither a number, nor along x or y, nor on the grid.
    """
    layout = next(entry for entry in LAYOUTS if entry.type is Surface)
    if arrays.get("x") is None:
        raise ValueError(f"arrays holds {', '.join(arrays) or 'nothing'}; the coordinate x is needed, and y on a plane")
    given = {key: np.asarray(value) for key, value in arrays.items() if value is not None}
    axes = {key: len(given[key]) for key in ("y", "x") if key in given and given[key].ndim == 1}
    grid = tuple(axes.values())
    blank = np.full(grid, np.nan)
    source: dict[str, Any] = {"y": None, "loss": blank, "accuracy": blank, "stderr": blank, "status": np.zeros(grid, np.uint8)}
    source |= dict.fromkeys(("error_estimate", "metric_names", "metric_values"))
    known = {v.field for v in layout.variables}
    datasets = _datasets(layout, source | {key: given[key] for key in given if key in known}, None, "arrays")
    allowed: dict[tuple[int, ...], tuple[str, ...]] = {(length,): (axis,) for axis, length in axes.items()}
    allowed |= {(): (), grid: tuple(axes)}
    for key, array in given.items():
        if key in known:
            continue
        if not key.isidentifier() or not key.isascii():
            raise ValueError(f"arrays has the key {key!r}; letters, digits and _ are allowed")
        dims = allowed.get(array.shape)
        if dims is None and array.ndim == len(grid) + 1 and array.shape[1:] == grid:
            row = f"{key}_row"
            dims = (row, *axes)
            datasets[row] = Dataset(np.arange(len(array)), (row,), {"units": "1", "long_name": f"index into {key}"})
        if dims is None or array.dtype.kind not in "fiu":
            raise ValueError(f"arrays[{key!r}] has shape {array.shape} and dtype {array.dtype}; numbers of shape (..., {grid}) are allowed")
        datasets[key] = Dataset(array, dims, {"units": "1", "long_name": f"{key}, to resume from"})
    state_text = to_json({"state": dict(state), "arrays": list(given)}, "attributes")
    plane = to_json(state.get("plane", {}), "plane")
    attributes: dict[str, Scalar] = {"kind": Surface.kind, "name": name, "plane": plane, "state": state_text}
    return sealed(Group(f"{layout.group}/{escape_name(name)}", attributes, datasets))


def unpack(layout: Layout, group: Group) -> Result:
    """Return the result that a group holds.

    Raises:
        StoreError: The group does not hold what the schema says, or its checksums do not fit.
    """
    verify(group.attributes, group.datasets)
    kind = group.attributes.get("kind")
    if kind != layout.type.kind:
        raise StoreError(f"kind is {kind!r} where {layout.type.kind!r} belongs")
    lengths: dict[str, int] = {}
    arguments: dict[str, Any] = {}
    dropped = {v.name for v in layout.variables if v.is_coordinate and v.optional and v.field and v.name not in group.datasets}
    for variable in layout.variables:
        dataset = group.datasets.get(variable.name)
        if dataset is None:
            if not variable.optional and variable.field:
                raise StoreError(f"the dataset {variable.name} is missing")
            if variable.field:
                arguments[variable.field] = None
            continue
        shape, dims = shape_of(dataset.values), tuple(d for d in variable.dims if d not in dropped)
        if len(shape) != len(dims) or any(lengths.setdefault(d, n) != n for d, n in zip(dims, shape, strict=True)):
            raise StoreError(f"the dataset {variable.name} has shape {shape}, which does not fit ({', '.join(dims)})")
        if variable.field:
            arguments[variable.field] = _field(variable, dataset.values)
    for attribute in layout.attributes:
        if attribute.name not in group.attributes:
            raise StoreError(f"the attribute {attribute.name} is missing")
        arguments[attribute.name] = decode_attribute(attribute, group.attributes[attribute.name])
    if any(f.name == "name" for f in fields(layout.type)):
        arguments["name"] = group.attributes.get("name")
        if not isinstance(arguments["name"], str):
            raise StoreError("the attribute name is missing")
    cost = Cost(**_decoded(COST, group.attributes))
    return layout.type(**arguments, cost=cost, provenance=Provenance(**_decoded(PROVENANCE, group.attributes)))


def _decoded(attributes: tuple[Attribute, ...], found: Mapping[str, Any]) -> dict[str, Any]:
    return {a.name: decode_attribute(a, found[a.name]) for a in attributes if a.name in found}


def _field(variable: Variable, values: Values) -> Any:
    if variable.kind == "text":
        if not isinstance(values, list):
            raise StoreError(f"the dataset {variable.name} holds no text")
        return tuple(values)
    kinds = "f" if variable.kind in {"float", "tensor"} else "iu"
    if isinstance(values, list) or values.dtype.kind not in kinds:
        raise StoreError(f"the dataset {variable.name} holds another type of values than the schema says")
    if variable.kind == "tensor":
        return torch.from_numpy(values)
    return values if variable.dims else values.item()


def unpack_partial(group: Group) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Return the arrays and the attributes that `pack_partial` was given.

    Raises:
        StoreError: The group is damaged or holds something else.
    """
    verify(group.attributes, group.datasets)
    state = decode_attribute(Attribute("state", "json", ""), group.attributes.get("state"))
    if not isinstance(state, dict) or not isinstance(state.get("state"), dict) or not isinstance(state.get("arrays"), list):
        raise StoreError("it holds no state to resume from")
    arrays: dict[str, np.ndarray] = {}
    for name in state["arrays"]:
        values = group.datasets[name].values if name in group.datasets else None
        if not isinstance(values, np.ndarray):
            raise StoreError(f"the dataset {name} is missing")
        arrays[name] = values
    return arrays, state["state"]
