"""Two processes that share the shards and draws out against one that does all."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from problems import network
from processes import together

from landscape import sharpness
from landscape.objective import NonFiniteLossError, Objective
from landscape.results.types import Sharpness


def measured(objective: Objective, ranks: bool) -> dict[str, Sharpness]:
    return {
        "shards": sharpness.m_sharpness(objective, 0.1, 4, ranks=ranks),
        "one shard": sharpness.m_sharpness(objective, 0.1, 13, steps=2, ranks=ranks),
        "single": sharpness.fisher_trace(objective, ranks=ranks, vectorize=True),
        "ascent": sharpness.worst_case(objective, 0.1, 2, p=2, steps=4, restarts=1, ranks=ranks),
        "draws": sharpness.average_case(objective, 0.1, draws=5, ranks=ranks),
        "smoothed": sharpness.low_pass(objective, 0.1, draws=3, ranks=ranks),
    }


def shared(rank: int, world: int) -> dict[str, Any]:
    problem = network("mlp")
    found: dict[str, Any] = {name: (r.per_shard, r.value, r.stderr) for name, r in measured(Objective(*problem), True).items()}
    # The data that one rank reads are broken: both stop, each with its reason.
    x = problem.data[0].clone()
    x[5] = float("nan")  # in shard 1, which is the second rank's
    broken = Objective(problem.model, problem.loss, (x, problem.data[1]))
    try:
        sharpness.m_sharpness(broken, 0.1, 4, ranks=True)
    except NonFiniteLossError as error:
        found["broken"] = str(error)
    calls = []

    def failing(outputs: Any, target: Any) -> Any:
        calls.append(1)
        if rank == 1 and len(calls) > 2:
            raise OSError("the disk is gone")
        return problem.loss(outputs, target)

    try:
        sharpness.m_sharpness(Objective(problem.model, failing, problem.data), 0.1, 2, ranks=True)
    except (OSError, RuntimeError) as error:
        found["failed"] = str(error)
    return found


@pytest.mark.distributed
def test_ranks_that_share_the_work_find_the_same(tmp_path: Path) -> None:
    first, second = together(2, shared, tmp_path)
    for name, alone in measured(Objective(*network("mlp")), False).items():
        np.testing.assert_array_equal(first[name][0], second[name][0])
        np.testing.assert_allclose(first[name][0], alone.per_shard, rtol=1e-12)
        np.testing.assert_allclose(first[name][1:], (alone.value, alone.stderr), rtol=1e-12)
    assert "shard 1" in first["broken"] and "shard 1" in second["broken"]
    assert "another rank failed" in first["failed"] and "the disk is gone" in second["failed"]
