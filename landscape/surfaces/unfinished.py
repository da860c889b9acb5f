"""The state of a path under way, in a file beside the result file, such that the same call goes on after an interrupt or `kill -9`.

Bends of a curve and their momenta are as large as the network, so they lie apart from the results: a result file is written whole at
every change. The file goes when the path is complete.
"""

from __future__ import annotations

import hashlib
import io
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from landscape.objective import Objective
from landscape.provenance import same_loss, tensors_sha256
from landscape.results.errors import StoreError, reason
from landscape.results.files import replace
from landscape.results.names import escape_name
from landscape.results.types import Provenance
from landscape.surfaces.weights import Weights

Stage = dict[str, Any]

# Saving takes at most this share of the time.
_SHARE = 0.05

_WORDS = {
    "path": "kinds of path",
    "points": "points",
    "options": "options",
    "seed": "seeds",
    "statistics": "statistics of batch norm",
    "statistics_data": "data of the statistics",
    "parameters": "parameters or buffers of the model",
    "data": "data",
    "batch_size": "batch sizes",
    "batch_norm": "batch-norm modes",
    "varied": "choices of parameters",
    "dtype": "dtypes",
    "device": "devices",
}


def question(objective: Objective, places: Sequence[Weights], path: str, points: Sequence[float], **further: Any) -> dict[str, Any]:
    """Return all that the numbers on a path depend on.

    Args:
        objective: the loss.
        places: the ends of the path, or its steps.
        path: its type.
        points: where on it.
        further: options, by the keys of `_WORDS`.

    Returns:
        The values by name, ready for JSON.
    """
    provenance = objective.provenance()
    return {
        "path": path,
        "points": [[tensors_sha256(place.parameters | place.statistics) for place in places], [float(p) for p in points]],
        "parameters": provenance.parameter_sha256,
        "data": provenance.data_sha256,
        "batch_size": objective.batches.batch_size,
        "batch_norm": provenance.batch_norm,
        "varied": provenance.varied_sha256,
        "loss_at_parameters": provenance.loss_at_parameters,
        "dtype": provenance.dtype,
        "device": provenance.device,
        **json.loads(json.dumps(further)),
    }


def differing(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """Return in words what differs between two questions."""
    found = [words for what, words in _WORDS.items() if one.get(what) != other.get(what)]
    losses = (Provenance(loss_at_parameters=asked.get("loss_at_parameters"), dtype=asked["dtype"]) for asked in (one, other))
    return found if found or same_loss(*losses) else ["loss functions"]


class Unfinished:
    """Keeps the stages of one path while they are computed.

    Args:
        out: the result file.
        name: of the path.
        asked: the question, see `question`.
        every: seconds between savings.
        resume: go on from what the file holds; False begins anew.

    Raises:
        ValueError: the file holds the state of another path, or is none.
    """

    def __init__(self, out: str | Path, name: str, asked: dict[str, Any], *, every: float, resume: bool) -> None:
        self.file = file_of(out, name)
        self._asked, self._every = asked, every
        self._stages: dict[str, Stage] = self._found(name) if resume else {}
        self._saved_at, self._took = time.perf_counter(), 0.0

    def stage(self, name: str) -> Stage | None:
        """Return the state of a stage, if there is one."""
        return self._stages.get(name)

    def keep(self, name: str, state: Callable[[], Stage], *, now: bool = False) -> None:
        """Keep the state of a stage if the last time is long enough ago, or `now`."""
        started = time.perf_counter()
        if not now and started - self._saved_at < max(self._every, self._took / _SHARE):
            return
        self._stages[name] = state()
        content = io.BytesIO()
        torch.save({"question": json.dumps(self._asked), "stages": self._stages}, content)
        self.file.parent.mkdir(parents=True, exist_ok=True)
        replace(self.file, content.getbuffer())
        self._saved_at = time.perf_counter()
        self._took = self._saved_at - started

    def note(self, name: str, state: Stage) -> None:
        """Take note of the state of a stage for the next saving."""
        self._stages[name] = state

    def finish(self) -> None:
        """Remove the file: the path is where it belongs."""
        self.file.unlink(missing_ok=True)

    def _found(self, name: str) -> dict[str, Stage]:
        if not self.file.exists():
            return {}
        try:
            held = torch.load(self.file, map_location="cpu", weights_only=True)
            asked, stages = json.loads(held["question"]), dict(held["stages"])
        except Exception as error:  # whatever a damaged file makes of torch.load
            text = f"{self.file} is no state of an unfinished path ({reason(error)[:100]}): remove it, or resume=False to begin anew"
            raise StoreError(text) from None
        differ = differing(asked, self._asked)
        if differ:
            raise ValueError(
                f"{self.file} holds the state of another path {name!r}: the {' and '.join(differ)} differ. "
                "Ask for that one again to go on, choose another name, or remove the file (resume=False) to begin anew"
            )
        return stages


def file_of(out: str | Path, name: str) -> Path:
    """Return where the state of a path lies."""
    out, escaped = Path(out), escape_name(name)
    short = escaped if len(escaped.encode()) <= 100 else hashlib.sha256(name.encode()).hexdigest()[:20]
    return out.with_name(f"{out.name}.{short}.unfinished")
