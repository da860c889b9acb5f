"""Going on with an interrupted surface: what is kept in the file, and the proof that it belongs to the same question."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from landscape.results import store
from landscape.results.types import Provenance, Surface

State = dict[str, Any]  # "sums" (5, points), "batch", "point", "seconds"

_WORDS = {
    "x": "grids on x",
    "y": "grids on y",
    "directions": "directions",
    "origin": "origins of the plane",
    "parameters": "parameters or buffers of the model",
    "data": "data",
    "batch_size": "batch sizes",
    "batch_norm": "batch-norm modes",
    "loss_function": "loss functions",
    "dtype": "dtypes",
    "device": "devices",
}


def identity(x: NDArray[Any], y: NDArray[Any] | None, plane: dict[str, Any], provenance: Provenance) -> dict[str, Any]:
    """Return all that the numbers on a grid depend on, ready for JSON."""
    dimensions = 1 if y is None else 2
    return {
        "x": [float(v) for v in x],
        "y": None if y is None else [float(v) for v in y],
        "directions": list(plane["direction_sha256"])[:dimensions],
        "origin": plane["origin_sha256"],
        "parameters": provenance.parameter_sha256,
        "data": provenance.data_sha256,
        "batch_size": plane["batch_size"],
        "batch_norm": provenance.batch_norm,
        "loss_function": plane["loss_function"],
        "dtype": provenance.dtype,
        "device": provenance.device,
    }


class Keeper:
    """Keeps a surface in a file while it grows, under the rule that a surface is continued only if it is the same one."""

    def __init__(self, path: str | Path, name: str, identity_: dict[str, Any], every: float) -> None:
        self._path, self._name, self._identity, self._every = Path(path), name, json.loads(json.dumps(identity_)), every
        self._saved_at = time.perf_counter()
        store.check_writable(self._path)

    def finished(self) -> Surface | None:
        """Return the complete surface if it is in the file already."""
        surface = store.load_surface(self._path, self._name)
        if surface is None:
            return None
        self._compare(json.loads(json.dumps(identity(surface.x, surface.y, surface.plane, surface.provenance))))
        return surface

    def begun(self) -> State | None:
        """Return the state to go on from, if there is one in the file."""
        state = store.load_partial_surface(self._path, self._name)
        if state is None:
            return None
        self._compare(json.loads(state["identity"]))
        return state

    def _compare(self, other: dict[str, Any]) -> None:
        differ = [what for what, value in self._identity.items() if other.get(what) != value]
        if differ:
            what = " and ".join(_WORDS[d] for d in differ)
            raise ValueError(
                f"{self._path} holds a surface {self._name!r} that is another one: the {what} differ. "
                "Choose another name or file, or resume=False to overwrite it"
            )

    def save(self, state: Callable[[], State], *, now: bool = False) -> None:
        """Keep the state if the last time is long enough ago, or `now`."""
        if now or time.perf_counter() - self._saved_at >= self._every:
            store.save_partial_surface(self._path, self._name, {**state(), "identity": json.dumps(self._identity)})
            self._saved_at = time.perf_counter()

    def finish(self, surface: Surface) -> None:
        """Put the complete surface in place of the growing one."""
        store.save(self._path, surface)


def as_sums(state: State, points: int) -> NDArray[np.float64]:
    """Return the kept sums.

    Raises:
        ValueError: they do not fit the grid.
    """
    sums = np.asarray(state["sums"], dtype=np.float64)
    if sums.shape != (5, points):
        raise ValueError(
            f"the kept part of the surface has shape {sums.shape} where {(5, points)} is needed; use resume=False to start over"
        )
    return sums
