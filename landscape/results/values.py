"""The plain groups of a file: dictionaries of strings, numbers and arrays, with checksums that make a flipped bit an error."""

from __future__ import annotations

import dataclasses
import json
import os
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from landscape.results.errors import StoreError
from landscape.results.layout import Attribute

CHECKSUMS = Attribute("checksums", "json", "")
DESCRIPTION = ("units", "long_name", "flag_values", "flag_meanings", "coordinates")  # attributes of a dataset
Scalar = str | int | float
Values = np.ndarray | list[str]


@dataclass
class Dataset:
    """Values with the names of their axes, as they stand in a file."""

    values: Values
    dims: tuple[str, ...]
    attributes: dict[str, Any] = field(default_factory=dict)


@dataclass
class Group:
    """What one group of a file holds."""

    path: str  # with the name escaped
    attributes: dict[str, Scalar]
    datasets: dict[str, Dataset]


def to_json(value: Any, where: str) -> str:
    """Return JSON text of a configuration; arrays become lists, paths become strings; a TypeError names what cannot be kept."""

    def plain(item: Any, at: str) -> Any:
        if item is None or isinstance(item, bool | str):
            return item
        if isinstance(item, int | float):
            return int(item) if isinstance(item, int) else float(item)
        if isinstance(item, Mapping):
            for key in item:
                if not isinstance(key, str):
                    raise TypeError(f"{at} has the key {key!r}; keys must be strings")
            return {key: plain(part, f"{at}[{key!r}]") for key, part in item.items()}
        if isinstance(item, list | tuple):
            return [plain(part, f"{at}[{i}]") for i, part in enumerate(item)]
        if isinstance(item, np.ndarray | np.generic | torch.Tensor):
            return plain(item.tolist(), at)
        if dataclasses.is_dataclass(item) and not isinstance(item, type):
            return plain({f.name: getattr(item, f.name) for f in dataclasses.fields(item)}, at)
        if isinstance(item, os.PathLike):
            return str(item)
        raise TypeError(f"{at} is a {type(item).__name__}; allowed are numbers, strings, None, lists, dictionaries and arrays")

    return json.dumps(plain(value, where))


def storable_text(text: str) -> str:
    r"""Return text that HDF5 can keep: a NUL or a lone surrogate, as in odd file names, is written as \x00 or \udc80."""
    return text.encode("utf-8", "backslashreplace").decode().replace("\0", "\\x00")


def encode_attribute(attribute: Attribute, value: Any) -> Scalar | None:
    """Return an attribute's value as a string, int or float; None where there is none.

    Raises:
        TypeError: The value is of another kind than the schema says.
        ValueError: An integer takes more than 64 bits.
    """
    if value is None:
        return None
    if attribute.kind == "json":
        return to_json(value, attribute.name)
    if attribute.kind == "str":
        return storable_text(str(value))
    try:
        number: int | float = float(value) if attribute.kind == "float" else int(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise TypeError(f"{attribute.name} is {value!r}; it must be of type {attribute.kind}") from error
    if isinstance(number, int) and not -(2**63) <= number < 2**64:
        raise ValueError(f"{attribute.name} is {number}; a file keeps integers of at most 64 bits")
    return number


def decode_attribute(attribute: Attribute, value: Any) -> Any:
    """Return the Python value of an attribute as read.

    Raises:
        StoreError: It is of another kind than the schema says.
    """
    try:
        match attribute.kind:
            case "float":
                return float(value)
            case "int" | "bool":
                return int(value) if attribute.kind == "int" else bool(int(value))
            case _ if isinstance(value, str):
                return json.loads(value) if attribute.kind == "json" else value
    except (TypeError, ValueError, OverflowError, RecursionError):
        pass
    raise StoreError(f"the attribute {attribute.name} is not of type {attribute.kind}")


def checksum(values: Any) -> str:
    """Return the CRC-32 of an array, of its dtype and shape; of anything else that of its JSON text."""
    if isinstance(values, np.ndarray):
        seed = zlib.crc32(f"{values.dtype.str}{values.shape}".encode())
        return f"{zlib.crc32(np.ascontiguousarray(values).tobytes(), seed):08x}"
    return f"{zlib.crc32(json.dumps(values, sort_keys=True).encode()):08x}"


def sealed(group: Group) -> Group:
    """Return the group with the checksums of its attributes and datasets among the attributes."""
    return Group(group.path, sealed_attributes(group.attributes, group.datasets), group.datasets)


def sealed_attributes(attributes: Mapping[str, Scalar], datasets: Mapping[str, Dataset]) -> dict[str, Scalar]:
    """Return attributes with their own checksum and those of the datasets as one more."""
    attributes = {key: value for key, value in attributes.items() if key != "checksums"}
    sums = {
        "attributes": checksum(attributes),
        "names": sorted(attributes),  # what somebody adds by hand later is none of ours
        "datasets": {name: checksum(dataset.values) for name, dataset in datasets.items()},
        **descriptions(datasets),
    }
    return {**attributes, "checksums": json.dumps(sums)}


def descriptions(datasets: Mapping[str, Dataset]) -> dict[str, dict[str, Any]]:
    """Return what the checksums of a group say of its datasets beside their values: how to read them, and how much is there."""
    return {
        "described": {name: described(dataset) for name, dataset in datasets.items()},
        "shapes": {name: shape_text(*_kind_and_shape(dataset.values)) for name, dataset in datasets.items()},
    }


def shape_text(dtype: str, shape: tuple[int, ...]) -> str:
    """Return dtype and shape in a few words, such as "<f8 3 x 5"; the dtype of strings is "text"."""
    return f"{dtype} {' x '.join(map(str, shape))}".rstrip()


def _kind_and_shape(values: Values) -> tuple[str, tuple[int, ...]]:
    return ("text", (len(values),)) if isinstance(values, list) else (values.dtype.str, values.shape)


def described(dataset: Dataset) -> str:
    """Return the CRC-32 of what says how to read a dataset: its axes, units and names."""
    ours = {key: dataset.attributes[key] for key in DESCRIPTION if key in dataset.attributes}
    return checksum([list(dataset.dims), {key: v.tolist() if isinstance(v, np.ndarray) else v for key, v in ours.items()}])


def sums_of(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the checksums among the attributes of a group.

    Raises:
        StoreError: There are none, or they are damaged themselves.
    """
    if "checksums" not in attributes:
        raise StoreError("its checksums are missing")
    sums = decode_attribute(CHECKSUMS, attributes["checksums"])
    try:
        same = sums["attributes"] == checksum({name: attributes[name] for name in sums["names"]})
        same = same and all(isinstance(sums.get(key, {}), dict) for key in ("datasets", "described", "shapes"))
    except (TypeError, KeyError, ValueError):
        same = False
    if not same:
        raise StoreError("its attributes are not as they were written (checksum)")
    return dict(sums)


def verify(attributes: Mapping[str, Any], datasets: Mapping[str, Dataset], with_axes: bool = True) -> None:
    """Compare what was read with its checksums; datasets that were not read are not compared.

    Raises:
        StoreError: Something is not as it was written.
    """
    sums = sums_of(attributes)
    for name, dataset in datasets.items():
        if sums.get("datasets", {}).get(name) != checksum(dataset.values):
            raise StoreError(f"the dataset {name} is not as it was written (checksum)")
        if with_axes and sums.get("described", {}).get(name) != described(dataset):
            raise StoreError(f"the axes, units or names of the dataset {name} are not as they were written (checksum)")
