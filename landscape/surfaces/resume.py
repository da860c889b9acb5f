"""Going on with an interrupted surface: what is kept in the file, and the proof that it belongs to the same question."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from landscape.provenance import same_loss
from landscape.results import store
from landscape.results.types import Array, Provenance, Surface
from landscape.surfaces.metrics import same_metrics

# What is summed over batches for every point, with n the weight of a batch, L its loss and L_0 that of the first batch. Relative to L_0
# the squares do not cancel where losses are large and alike.
SUMS = ("first_loss", "n_loss", "nn_loss", "nn_loss_squared", "right_answers")  # L_0, n (L - L_0), n^2 (L - L_0), n^2 (L - L_0)^2

_METRICS = "metric_sums"  # n times each metric, n the number of examples


class State(NamedTuple):
    """How far a surface has come: in round `round`, batches before `batch` are done, and that one for the points before `point`."""

    sums: Array  # (5 and one for each metric, points)
    rounds: NDArray[np.int64]  # (points,) in which round a point is evaluated, from 1; 0 for in none so far
    round: int
    batch: int
    point: int
    seconds: float
    way: str = "plain"  # in which points were evaluated, see `points.ways`


_WORDS = {
    "x": "grids on x",
    "y": "grids on y",
    "tolerance": "tolerances",
    "directions": "directions",
    "origin": "origins of the plane",
    "parameters": "parameters or buffers of the model",
    "data": "data",
    "batch_size": "batch sizes",
    "batch_norm": "batch-norm modes",
    "statistics": "running statistics",
    "varied": "choices of parameters",
    "loss_function": "loss functions",
    "metrics": "metrics",
    "precision": "precisions",
    "statistics_data": "data of the running statistics",
    "dtype": "dtypes",
    "device": "devices",
}


def identity(x: Array, y: Array | None, plane: dict[str, Any], provenance: Provenance) -> dict[str, Any]:
    """Return all that the numbers on a grid depend on, ready for JSON."""
    dimensions = 1 if y is None else 2
    return {
        "x": [float(v) for v in x],
        "y": None if y is None else [float(v) for v in y],
        "tolerance": plane.get("tolerance"),
        "statistics": plane.get("statistics"),
        "directions": list(plane["direction_sha256"])[:dimensions],
        "origin": plane["origin_sha256"],
        "parameters": provenance.parameter_sha256,
        "data": provenance.data_sha256,
        "batch_size": plane["batch_size"],
        "batch_norm": provenance.batch_norm,
        "varied": provenance.varied_sha256,
        "loss_at_parameters": provenance.loss_at_parameters,
        "loss_function": plane["loss_function"],
        "metrics": plane.get("metrics", {}),
        "precision": plane.get("precision"),
        "statistics_data": plane.get("statistics_data"),
        "dtype": provenance.dtype,
        "device": provenance.device,
    }


class Keeper:
    """Keeps a surface in a file while it grows, under the rule that a surface is continued only if it is the same one."""

    def __init__(
        self, path: str | Path, name: str, x: Array, y: Array | None, plane: dict[str, Any], provenance: Provenance, every: float
    ) -> None:
        self._path, self._name, self._x, self._y, self._plane, self._every = Path(path), name, x, y, plane, every
        self._identity = identity(x, y, plane, provenance)
        self._shape = (len(x),) if y is None else (len(y), len(x))
        self._saved_at = time.perf_counter()

    def found(self) -> tuple[Surface | None, State | None]:
        """Return the complete surface if the file holds it; else the state to go on from if there is one.

        Raises:
            ValueError: the file holds another surface under this name.
        """
        if not self._path.exists():
            return None, None
        differ: list[str] = []
        try:
            surface = store.load(self._path, f"surfaces/{self._name}")
        except store.GroupMissingError:
            pass
        else:
            assert isinstance(surface, Surface)
            found = identity(surface.x, surface.y, surface.plane, surface.provenance)
            found["metrics"] = {name: found["metrics"][name] for name in self._identity["metrics"] if name in found["metrics"]}
            differ = self._differing(found | {"tolerance": self._enough(found["tolerance"])})
            if not differ:
                return surface, None
        partial = store.load_partial(self._path, self._name)
        if partial is not None:
            arrays, attributes = partial
            differ = self._differing(attributes["identity"])
            if not differ:
                sums = np.stack([arrays[name].reshape(-1) for name in SUMS])
                if self._identity["metrics"]:
                    sums = np.concatenate([sums, arrays[_METRICS].reshape(-1, sums.shape[1])])
                rounds = arrays.get("round", np.ones(self._shape, dtype=np.int64)).reshape(-1)
                batch, point, seconds = (attributes[key] for key in ("batch", "point", "seconds"))
                way = attributes["plane"].get("way", "plain")
                return None, State(sums, rounds, attributes.get("round", 1), batch, point, seconds, way)
        if differ:
            raise ValueError(
                f"{self._path} holds another surface {self._name!r}: the {' and '.join(differ)} differ. "
                "Choose another name or file, or resume=False to replace it"
            )
        return None, None

    def _enough(self, tolerance: float | None) -> float | None:
        """Return the tolerance that was asked for if a surface of this one meets it."""
        asked = self._identity["tolerance"]
        return asked if tolerance is None or (asked is not None and tolerance <= asked) else tolerance

    def _differing(self, other: dict[str, Any]) -> list[str]:
        found = [words for what, words in _WORDS.items() if what != "metrics" and other.get(what) != self._identity[what]]
        if not same_metrics(other.get("metrics", {}), self._identity["metrics"]):
            found.append(_WORDS["metrics"])
        # Functions of one name: by what they give. Other data or weights give other numbers of themselves.
        one, two = (Provenance(loss_at_parameters=i.get("loss_at_parameters"), dtype=i["dtype"]) for i in (self._identity, other))
        return found if found or same_loss(one, two) else [_WORDS["loss_function"]]

    def save(self, state: Callable[[], State], *, now: bool = False) -> None:
        """Keep the state if the last time is long enough ago, or `now`."""
        if not now and time.perf_counter() - self._saved_at < self._every:
            return
        values = state()
        arrays = {"x": self._x, "y": self._y} | {name: row.reshape(self._shape) for name, row in zip(SUMS, values.sums, strict=False)}
        if self._identity["metrics"]:
            arrays[_METRICS] = values.sums[len(SUMS) :].reshape(-1, *self._shape)
        arrays["round"] = values.rounds.reshape(self._shape)
        where = {"round": values.round, "batch": values.batch, "point": values.point, "seconds": values.seconds}
        store.save_partial(self._path, self._name, arrays, {"plane": self._plane, "identity": self._identity, **where})
        self._saved_at = time.perf_counter()

    def discard(self) -> None:
        """Remove the growing surface: it will never be one."""
        if store.load_partial(self._path, self._name) is not None:
            store.remove_partial(self._path, self._name)

    def finish(self, surface: Surface) -> None:
        """Put the complete surface in place of the growing one."""
        store.save(self._path, surface)
