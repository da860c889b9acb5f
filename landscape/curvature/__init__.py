"""Curvature: operators and what is computed from their products."""

from landscape.curvature.density import spectral_density
from landscape.curvature.determinism import NotDeterministicError, check_deterministic
from landscape.curvature.eigen import top_eigenpairs
from landscape.curvature.operators import (
    DenseOperator,
    EmpiricalFisherOperator,
    GGNOperator,
    HessianOperator,
    MeanOverRanks,
    MonteCarloFisherOperator,
    Operator,
)
from landscape.curvature.subsamples import subsampled
from landscape.curvature.trace import hessian_trace

__all__ = [
    "DenseOperator",
    "EmpiricalFisherOperator",
    "GGNOperator",
    "HessianOperator",
    "NotDeterministicError",
    "MeanOverRanks",
    "MonteCarloFisherOperator",
    "Operator",
    "check_deterministic",
    "hessian_trace",
    "spectral_density",
    "subsampled",
    "top_eigenpairs",
]
