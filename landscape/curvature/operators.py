"""The operators of a loss, in one place. The algorithms of this package see an operator, never a model."""

from __future__ import annotations

from contextlib import AbstractContextManager

from landscape import stateless
from landscape.curvature.determinism import check_deterministic
from landscape.curvature.fisher import EmpiricalFisherOperator, MonteCarloFisherOperator
from landscape.curvature.ggn import GGNOperator
from landscape.curvature.hessian import HessianOperator
from landscape.curvature.linear import DenseOperator, LinearCombination, Operator
from landscape.curvature.over_ranks import MeanOverRanks
from landscape.objective import Objective

__all__ = [
    "DenseOperator",
    "EmpiricalFisherOperator",
    "GGNOperator",
    "HessianOperator",
    "LinearCombination",
    "MeanOverRanks",
    "MonteCarloFisherOperator",
    "Operator",
    "as_operator",
    "undisturbed",
]


def undisturbed(operator: Operator) -> AbstractContextManager[None]:
    """Run an algorithm: no autograd graph of its own, no autocast of the caller's, everybody's random state as it was."""
    return stateless.undisturbed(operator.device)


def as_operator(given: Objective | Operator) -> Operator:
    """Return an operator as it is, and an objective as its Hessian; an objective that differs from pass to pass is refused first.

    Args:
        given: an operator or an objective.

    Returns:
        The operator.

    Raises:
        TypeError: it is neither.
    """
    parts = [operator for _, operator in given.terms] if isinstance(given, LinearCombination) else [given]
    for part in parts:
        objective = part if isinstance(part, Objective) else getattr(part, "objective", None)
        if objective is not None:
            check_deterministic(objective)
    if isinstance(given, Objective):
        return HessianOperator(given)
    if not isinstance(given, Operator):
        raise TypeError(f"expected an Objective or an Operator, got {type(given).__name__}; for a matrix use DenseOperator(matrix)")
    return given
