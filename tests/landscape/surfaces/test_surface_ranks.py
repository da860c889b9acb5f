"""A surface on two processes is that of one, also when it goes on from a file; a rank that fails ends both."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from problems import network
from processes import together

from landscape.objective import Objective
from landscape.results import store
from landscape.results.types import Surface
from landscape.surfaces import METRICS, loss_surface, random_plane
from landscape.surfaces.over_ranks import RankFailedError

pytestmark = pytest.mark.distributed
GRID: dict[str, Any] = {"x": (-1, 1, 9), "y": (-1, 1, 7)}


def surface(ranks: bool, **options: Any) -> Surface:
    objective = Objective(*network("cnn"), batch_size=5)
    return loss_surface(objective, random_plane(objective, seed=1), **GRID | options, ranks=ranks)


def numbers(found: Surface) -> dict[str, Any]:
    own = {name: getattr(found, name) for name in ("loss", "accuracy", "stderr", "status")} | found.metrics
    return own if found.test is None else own | {f"test {name}": values for name, values in numbers(found.test).items()}


def both() -> dict[str, Any]:
    return {"metrics": {"margin": METRICS["margin"]}, "test_data": network("cnn", examples=7).data, "x": (-1, 1, 3), "y": (-1, 1, 2)}


def work(rank: int, world: int, folder: Path) -> dict[str, Any]:
    found = {
        "full": numbers(surface(True)),
        "tolerance": numbers(surface(True, tolerance=0.02, x=(-1, 1, 33), y=(-1, 1, 33))),
        "kept": numbers(surface(True, out=folder / "run.h5", name="kept")),
        "both": numbers(surface(True, **both(), out=folder / "both.h5")),
        "again": numbers(surface(True, out=folder / "run.h5", name="kept")),
    }
    calls = 0

    def failing(outputs: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if rank == 1 and calls > 9:
            raise ArithmeticError("no more")
        return torch.nn.functional.cross_entropy(outputs, target)

    failing.__qualname__ = "cross_entropy"
    problem = network("cnn")
    objective = Objective(problem.model, failing, problem.data, takes="outputs", batch_size=5)
    plane = random_plane(objective, seed=1)
    try:
        loss_surface(objective, plane, **GRID, ranks=True, out=folder / "broken.h5", name="broken")
    except (RankFailedError, ArithmeticError) as error:
        found["error"] = f"{type(error).__name__}: {error}"
    return found


def test_two_processes_and_one(tmp_path: Path) -> None:
    found = together(2, work, tmp_path, tmp_path)
    alone = {"full": surface(False), "tolerance": surface(False, tolerance=0.02, x=(-1, 1, 33), y=(-1, 1, 33))}
    alone["both"] = surface(False, **both())
    for rank in range(2):
        for name, expected in (("full", "full"), ("tolerance", "tolerance"), ("kept", "full"), ("again", "full"), ("both", "both")):
            for column, values in numbers(alone[expected]).items():
                np.testing.assert_allclose(found[rank][name][column], values, rtol=1e-12, err_msg=f"{name} {column}")
    assert found[0]["error"] == "RankFailedError: rank 1 failed: ArithmeticError: no more"
    assert found[1]["error"] == "ArithmeticError: no more"
    assert found[0]["both"].keys() >= {"margin", "test margin", "test loss"}
    assert store.groups(tmp_path / "both.h5") == ["surfaces/surface", "surfaces/surface-test"]
    for file, name in (("run.h5", "kept"), ("broken.h5", "broken")):  # the second was left unfinished
        resumed = surface(False, out=tmp_path / file, name=name)
        np.testing.assert_allclose(resumed.loss, alone["full"].loss, rtol=1e-12)


def test_without_processes_it_is_refused() -> None:
    with pytest.raises(ValueError, match="ranks=True needs an initialised"):
        surface(True)
