"""What an earlier, interrupted comparison left in a folder, and whether it answers the same question."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from landscape.comparison.costs import Costs
from landscape.comparison.plan import Plan
from landscape.comparison.sizes import Sizes
from landscape.objective import Objective
from landscape.provenance import differing, same_loss
from landscape.results import store
from landscape.results.files import replace as replace_file
from landscape.results.types import Eigenpairs, Provenance, Result, Sharpness, SpectralDensity, Subsampled, Surface, TraceEstimate
from landscape.surfaces import Plane

R = TypeVar("R", bound=Result)

_VERSION = 1
_OF_TEST_DATA = "subsampled/evaluation_test"
_INSTEAD = "choose another folder for out (-o or --results on the command line)"
_WORDS = {"parameter_sha256": "model", "data_sha256": "data set", "loss_at_parameters": "loss", "varied_sha256": "choice of parameters"}


def load(path: Path | None, group: str, kind: type[R], objective: Objective, seed: int, fits: Callable[[R], bool]) -> R | None:
    """Return a result from a file if it is of these weights, examples, loss and seed, and of the right size."""
    found = None if path is None else store.find(path, group)
    if not isinstance(found, kind) or differing(found.provenance, objective.provenance(seed)):
        return None
    return found if found.provenance.seed in (seed, None) and fits(found) else None


def sharpness_in(path: Path | None) -> list[Sharpness]:
    """Return the measures of sharpness in a file."""
    if path is None or not path.exists():
        return []
    found = [store.load(path, group) for group in store.groups(path) if group.startswith("sharpness/")]
    return [result for result in found if isinstance(result, Sharpness)]


def surface_to_go_on(
    path: Path | None, name: str, objective: Objective, plane: Plane, x: np.ndarray, y: np.ndarray | None, tolerance: float | None
) -> tuple[Surface | None, bool]:
    """Return the complete surface that a file holds, if it is this one, and else whether to go on with one that was begun.

    Args:
        path: the file.
        name: of the surface.
        objective: the loss.
        plane: around the model.
        x: (nx,) grid.
        y: (ny,) grid, None on a line.
        tolerance: of interpolated points.

    Returns:
        The surface or None, and whether `loss_surface` may resume: what was begun is the same, or there is nothing.
    """
    if path is None or not path.exists():
        return None, True
    dimensions = 1 if y is None else 2
    directions = list(plane.sha256)[:dimensions]
    found = store.find(path, f"surfaces/{name}")
    if isinstance(found, Surface):
        grid = (
            np.array_equal(found.x, x) and (y is None) == (found.y is None) and (y is None or found.y is None or np.array_equal(found.y, y))
        )
        there = found.plane.get("tolerance")
        enough = there is None or (tolerance is not None and there <= tolerance)
        placed = (list(found.plane["direction_sha256"])[:dimensions], found.plane["origin_sha256"]) == (directions, plane.origin_sha256)
        if grid and enough and placed and not differing(found.provenance, objective.provenance(plane.seed)):
            return found, True
    partial = store.load_partial(path, name)
    if partial is None:
        return None, found is None
    then, now = partial[1]["identity"], objective.provenance(plane.seed)
    same = then["x"] == x.tolist() and then["y"] == (None if y is None else y.tolist()) and then["tolerance"] == tolerance
    same = same and (then["directions"], then["origin"]) == (directions, plane.origin_sha256)
    same = same and (then["parameters"], then["data"]) == (now.parameter_sha256, now.data_sha256)
    return None, bool(same and then["batch_size"] == objective.batches.batch_size)


def refuse_another_question(path: Path, now: Provenance) -> None:
    """Stop before anything is measured where a file holds numbers of other weights, as many other examples, or another loss on the same.

    Fewer or more examples are no other question: such numbers are replaced.

    Args:
        path: the file.
        now: what is going to be measured.

    Raises:
        ValueError: it does.
    """
    if not path.exists():
        return
    for group in store.groups(path):
        if group.startswith("partial/"):
            continue
        then = store.load(path, group, vectors=False)
        if not isinstance(then, Eigenpairs | TraceEstimate | SpectralDensity | Sharpness | Subsampled):
            continue
        other = [n for n in ("parameter_sha256", "varied_sha256") if getattr(then.provenance, n) != getattr(now, n)]
        same_data = then.provenance.data_sha256 == now.data_sha256
        if not other and same_data and not same_loss(then.provenance, now):
            other = ["loss_at_parameters"]
        if not other and not same_data and then.provenance.examples == now.examples and group != _OF_TEST_DATA:
            other = ["data_sha256"]
        if other:
            raise ValueError(f"{path} holds measurements of another {_WORDS[other[0]]}: {_INSTEAD}")


def question_of(probes: Mapping[str, Provenance]) -> dict[str, Any]:
    """Return what the job is about, from a few examples with each model, ready for JSON."""
    keys = ("parameter_sha256", "data_sha256", "varied_sha256", "batch_norm", "dtype", "loss_at_parameters")
    return {name: {key: getattr(p, key) for key in keys} for name, p in probes.items()}


class Notebook:
    """The plan of a job in its folder: an interrupted one goes on with the sizes that were chosen then.

    Args:
        folder: of the results; None keeps nothing.
        question: what the job is about.
        asked: sizes and budget that were asked for.
    """

    def __init__(self, folder: Path | None, question: dict[str, Any], asked: dict[str, Any]) -> None:
        self._path = None if folder is None else folder / "plan.json"
        self._head = {"version": _VERSION, "question": question, "asked": json.loads(json.dumps(asked))}

    def read(self) -> tuple[Plan, dict[str, Costs], float] | None:
        """Return plan, costs and seconds spent of an earlier life of the same job; None where there is none.

        A folder with a job of other models or data is a ValueError.
        """
        if self._path is None or not self._path.exists():
            return None
        try:
            held = json.loads(self._path.read_text(encoding="utf-8"))
            if held["version"] != _VERSION or held["asked"] != self._head["asked"]:
                return None
            self._refuse(held["question"])
            now = self._head["question"]
            if set(held["question"]) != set(now):
                return None  # other models than before: sizes are chosen anew, and what fits is kept
            if any(held["question"][name][key] != of[key] for name, of in now.items() for key in ("batch_norm", "dtype")):
                return None  # other numbers at other costs
            plan = held["plan"]
            given: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in plan.pop("sizes").items()}
            sizes = Sizes(**given)
            costs = {name: Costs(**c) for name, c in held["costs"].items()}
            return Plan(sizes, **{**plan, "begun": tuple(plan["begun"])}), costs, float(held["spent"])
        except (KeyError, TypeError, json.JSONDecodeError, UnicodeDecodeError):
            return None  # of another version, or cut off: everything measured is in files of its own

    def _refuse(self, then: dict[str, Any]) -> None:
        for name, now in self._head["question"].items():
            before = then.get(name)
            if before is None:
                continue
            for key in ("parameter_sha256", "varied_sha256", "data_sha256"):
                if before[key] != now[key]:
                    raise ValueError(
                        f"{self._path.parent if self._path else ''} holds measurements of {name!r} with another {_WORDS[key]}: {_INSTEAD}"
                    )

    def write(self, plan: Plan, costs: Mapping[str, Costs], spent: float) -> None:
        """Keep plan, costs and seconds spent."""
        if self._path is None:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        held = self._head | {"plan": asdict(plan), "costs": {n: c.as_dict() for n, c in costs.items()}, "spent": spent}
        replace_file(self._path, json.dumps(held, indent=1).encode())
