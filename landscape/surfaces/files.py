"""Planes in result files, so that the surfaces of several models, measured on several days, lie on the same one."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor

from landscape.objective import Parameters
from landscape.results import store
from landscape.results.types import PlaneRecord
from landscape.surfaces.directions import Plane


def save_plane(plane: Plane, path: str | Path, name: str) -> None:
    """Put a plane into a result file: origin and directions as vectors, with hashes that are compared on reading."""
    layout = {
        "shapes": [list(t.shape) for t in plane.origin.values()],
        "dtypes": [str(t.dtype).removeprefix("torch.") for t in plane.origin.values()],
        "direction_dtypes": [[str(d[n].dtype).removeprefix("torch.") for n in plane.origin] for d in plane.directions],
    }
    record = PlaneRecord(
        name,
        tuple(plane.origin),
        _flat(plane.origin, plane.origin),
        torch.stack([_flat(d, plane.origin) for d in plane.directions]),
        layout,
        plane.describe(),
    )
    store.save(path, record)


def load_plane(path: str | Path, name: str | None) -> Plane:
    """Return a plane from a result file.

    Args:
        path: the file.
        name: of the plane; None where the file holds one.

    Returns:
        The plane, on the CPU, equal to the saved one bit for bit.

    Raises:
        ValueError: there is no such plane, or what was read is not what was saved.
    """
    if name is None:
        names = [group.removeprefix("planes/") for group in store.groups(path) if group.startswith("planes/")]
        if len(names) != 1:
            held = f"the planes {', '.join(map(repr, names))}: say which by name" if names else "no plane: save one with Plane.save"
            raise ValueError(f"{path} holds {held}")
        name = names[0]
    record = store.load(path, f"planes/{name}")
    assert isinstance(record, PlaneRecord) and record.origin is not None and record.directions is not None
    layout, said = record.layout, record.plane
    try:
        origin = _named(record.origin, record, layout["dtypes"])
        directions = [_named(v, record, d) for v, d in zip(record.directions, layout["direction_dtypes"], strict=True)]
        plane = Plane(
            origin,
            tuple(directions),
            said["kind"],
            said["normalize"],
            said["seed"],
            said["include_norm_and_bias"],
            tuple(said["eigenvalues"]),
            tuple(said.get("explained_variance", ())),
            {mark: tuple(place) for mark, place in said.get("marks", {}).items()},
            tuple(tuple(row) for row in said.get("eigenvector_cosines", ())),
        )
        same = [plane.origin_sha256, *plane.sha256] == [said["origin_sha256"], *said["direction_sha256"]]
    except (KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise ValueError(f"{path} is damaged at planes/{name}: {error}; save the plane again") from error
    if not same:
        raise ValueError(f"{path} is damaged at planes/{name}: its tensors do not have the hashes that were saved with them")
    return plane


def _flat(tensors: Parameters, like: Parameters) -> Tensor:
    # Half precision fits into float32 bit for bit, and files know no bfloat16.
    wide = torch.float64 if any(tensors[n].dtype == torch.float64 for n in like) else torch.float32
    return torch.cat([tensors[n].detach().cpu().reshape(-1).to(wide) for n in like])


def _named(vector: Tensor, record: PlaneRecord, dtypes: list[str]) -> Parameters:
    shapes: list[list[int]] = record.layout["shapes"]
    parts = torch.split(vector, [math.prod(shape) for shape in shapes])
    named = zip(record.tensors, parts, shapes, dtypes, strict=True)
    return {name: part.reshape(shape).to(getattr(torch, dtype)).clone() for name, part, shape, dtype in named}
