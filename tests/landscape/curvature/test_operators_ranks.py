"""Two processes with a part of the data each against one process with all of it, in float64."""

from pathlib import Path
from typing import Any

import pytest
import torch
from problems import network
from processes import together
from torch import Tensor

from landscape.curvature import (
    EmpiricalFisherOperator,
    GGNOperator,
    HessianOperator,
    MeanOverRanks,
    MonteCarloFisherOperator,
    Operator,
    top_eigenpairs,
)
from landscape.objective import NonFiniteLossError, Objective


def probe(n: int) -> Tensor:
    return torch.randn(n, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def operators(objective: Objective, first_example: int = 0) -> dict[str, Operator]:
    return {
        "hessian": HessianOperator(objective),
        "ggn": GGNOperator(objective),
        "empirical": EmpiricalFisherOperator(objective),
        "sampled": MonteCarloFisherOperator(objective, seed=2, first_example=first_example),
        "damped": HessianOperator(objective).block("0.*") * 2 + 0.3,
    }


def products(rank: int, world: int, kind: str) -> dict[str, Any]:
    problem = network(kind)
    x, y = problem.data
    part = slice(0, 5) if rank == 0 else slice(5, 13)  # uneven
    objective = Objective(problem.model, problem.loss, (x[part], y[part]), batch_size=3)
    found: dict[str, Any] = {}
    for name, operator in operators(objective, part.start).items():
        whole = MeanOverRanks(operator)
        found[name] = whole.matmat(probe(whole.size))
        assert (whole.matvec(probe(whole.size)[:, 0]) - found[name][:, 0]).norm() < 1e-12 * found[name].norm()
    found["values"] = torch.from_numpy(top_eigenpairs(MeanOverRanks(HessianOperator(objective)), 2, tol=1e-6).values.copy())
    # One rank's data are broken: all of them stop, each with its reason.
    broken = Objective(problem.model, problem.loss, (x[part] * (torch.nan if rank else 1.0), y[part]))
    try:
        MeanOverRanks(HessianOperator(broken)).matvec(probe(broken.size)[:, 0])
    except NonFiniteLossError as error:
        found["broken"] = str(error)
    # The ranks stand at different points.
    with torch.no_grad():
        problem.model[0].bias.add_(1e-9 * rank)
    try:
        MeanOverRanks(HessianOperator(objective))
    except ValueError as error:
        found["elsewhere"] = str(error)
    return found


@pytest.mark.distributed
def test_ranks_have_the_operator_of_all_the_data(tmp_path: Path) -> None:
    first, second = together(2, products, tmp_path, "mlp")
    problem = network("mlp")
    objective = Objective(*problem)
    for name, operator in operators(objective).items():
        expected = operator.matmat(probe(operator.size))
        assert torch.equal(first[name], second[name]), "the same bits, or the ranks would part"
        assert (first[name] - expected).norm() < 1e-12 * expected.norm()
    values = torch.from_numpy(top_eigenpairs(objective, 2, tol=1e-6).values.copy())
    assert torch.allclose(first["values"], values, rtol=1e-8) and torch.equal(first["values"], second["values"])
    assert "another rank" in first["broken"] and "loss is nan on batch 0" in second["broken"]
    assert "parameters differ" in first["elsewhere"] and "parameters differ" in second["elsewhere"]


def test_without_ranks_it_says_how_to_get_them() -> None:
    with pytest.raises(ValueError, match="torchrun"):
        MeanOverRanks(HessianOperator(Objective(*network("mlp"))))
