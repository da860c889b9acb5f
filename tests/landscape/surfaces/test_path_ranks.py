"""Paths on two processes are those of one, bit for bit, also going on where one was interrupted; a rank that fails ends both."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from processes import together
from test_path_resume import Interruptible, connected, linear, numbers, objective_with, points, recomputed, trajectory

import landscape
from landscape.surfaces import linear_path
from landscape.surfaces.over_ranks import RankFailedError
from landscape.surfaces.unfinished import file_of

pytestmark = pytest.mark.distributed
MEASURES = {"linear": linear, "recomputed": recomputed, "connected": connected, "trajectory": trajectory}
BEGUN = {"linear": 5, "recomputed": 17}  # at which call of the loss they are interrupted


def work(rank: int, world: int, folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = {
        name: numbers(measure(objective_with(Interruptible()), ranks=True, out=folder / "run.h5", name=name))
        for name, measure in MEASURES.items()
    }
    for name in BEGUN:  # by one process alone
        path = MEASURES[name](objective_with(Interruptible()), ranks=True, out=folder / "begun.h5", name=name)
        found[f"{name}, continued"] = numbers(path) | {"forwards": None}  # the first rank's running statistics are computed by all again
    for words, arguments in (("failed", {"at": 4 if rank == 1 else -1}), ("other", {"smoothing": 0.1 * rank})):
        try:
            linear_path(objective_with(Interruptible(**arguments)), *points()[:2], 40, ranks=True, out=folder / f"{words}.h5", save_every=0)
        except (RankFailedError, ValueError, KeyboardInterrupt) as error:
            found[words] = f"{type(error).__name__}: {error}"
    return found


@pytest.mark.slow
def test_two_processes_and_one(tmp_path: Path) -> None:
    for name, at in BEGUN.items():
        with pytest.raises(KeyboardInterrupt):
            MEASURES[name](objective_with(Interruptible(at)), out=tmp_path / "begun.h5", name=name)
    found = together(2, work, tmp_path, tmp_path)
    for name, measure in MEASURES.items():
        expected = numbers(measure(objective_with(Interruptible()), name=name))
        for rank in range(2):
            for which in (name, f"{name}, continued"):
                for field, value in found[rank].get(which, {}).items():
                    np.testing.assert_equal(value, value if value is None else expected[field], err_msg=f"{which} {field}")
        np.testing.assert_equal(landscape.open(tmp_path / "run.h5").paths[name].loss, expected["loss"])
    assert found[0]["failed"] == "RankFailedError: rank 1 failed: KeyboardInterrupt: "
    assert found[1]["other"].startswith("ValueError: rank 1 was given other loss functions than rank 0")
    alone = linear_path(objective_with(Interruptible()), *points()[:2], 40, out=tmp_path / "failed.h5")
    assert not file_of(tmp_path / "failed.h5", "linear").exists()
    plain = linear_path(objective_with(Interruptible()), *points()[:2], 40)
    assert np.array_equal(alone.loss, plain.loss)


def test_without_processes_it_is_refused() -> None:
    with pytest.raises(ValueError, match="ranks=True needs an initialised"):
        linear(objective_with(Interruptible()), ranks=True)
