"""Measure and draw the loss landscape of any PyTorch model.

What a name stands for is imported when the name is first used: `landscape --help` waits for nothing.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from landscape import plots
    from landscape.comparison import Comparison, Sizes, compare
    from landscape.curvature import (
        DenseOperator,
        EmpiricalFisherOperator,
        GGNOperator,
        HessianOperator,
        MeanOverRanks,
        MonteCarloFisherOperator,
        NotDeterministicError,
        check_deterministic,
        hessian_trace,
        spectral_density,
        subsampled,
        top_eigenpairs,
    )
    from landscape.curvature.tracking import CurvatureHook
    from landscape.objective import NonFiniteLossError, Objective
    from landscape.results.store import open as open
    from landscape.results.store import save
    from landscape.sharpness import m_sharpness, paired_difference
    from landscape.surfaces import (
        Basin,
        Connection,
        Plane,
        aligned,
        connect_modes,
        eigen_plane,
        linear_path,
        loss_surface,
        loss_trajectory,
        minima_plane,
        pca_plane,
        persistence,
        random_plane,
    )
    from landscape.traces import GradientTraceHook

__all__ = [
    "Basin",
    "Comparison",
    "Connection",
    "CurvatureHook",
    "DenseOperator",
    "EmpiricalFisherOperator",
    "GGNOperator",
    "GradientTraceHook",
    "HessianOperator",
    "MeanOverRanks",
    "MonteCarloFisherOperator",
    "NonFiniteLossError",
    "NotDeterministicError",
    "Objective",
    "Plane",
    "Sizes",
    "aligned",
    "check_deterministic",
    "compare",
    "connect_modes",
    "eigen_plane",
    "hessian_trace",
    "linear_path",
    "loss_surface",
    "loss_trajectory",
    "m_sharpness",
    "minima_plane",
    "open",
    "paired_difference",
    "pca_plane",
    "persistence",
    "plots",
    "random_plane",
    "save",
    "spectral_density",
    "subsampled",
    "top_eigenpairs",
]

_NAMES = {
    "comparison": ("Comparison", "Sizes", "compare"),
    "curvature": (
        "DenseOperator",
        "EmpiricalFisherOperator",
        "GGNOperator",
        "HessianOperator",
        "MeanOverRanks",
        "MonteCarloFisherOperator",
        "NotDeterministicError",
        "check_deterministic",
        "hessian_trace",
        "spectral_density",
        "subsampled",
        "top_eigenpairs",
    ),
    "curvature.tracking": ("CurvatureHook",),
    "objective": ("NonFiniteLossError", "Objective"),
    "results.store": ("open", "save"),
    "sharpness": ("m_sharpness", "paired_difference"),
    "surfaces": (
        "Basin",
        "Connection",
        "Plane",
        "aligned",
        "connect_modes",
        "eigen_plane",
        "linear_path",
        "loss_surface",
        "loss_trajectory",
        "minima_plane",
        "pca_plane",
        "persistence",
        "random_plane",
    ),
    "traces": ("GradientTraceHook",),
}
_HOME = {name: module for module, names in _NAMES.items() for name in names}
_MODULES = {"plots", "results", *_NAMES}


if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        if name in _HOME:
            found = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
        elif name in _MODULES:
            found = importlib.import_module(f"{__name__}.{name}")
        else:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        globals()[name] = found
        return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
