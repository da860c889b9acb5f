"""Measure and draw the loss landscape of any PyTorch model."""

from landscape import plots
from landscape.compare import Comparison, Sizes, compare
from landscape.curvature import hessian_trace, spectral_density, top_eigenpairs
from landscape.objective import NonFiniteLossError, Objective
from landscape.results.store import open as open
from landscape.results.store import save
from landscape.sharpness import m_sharpness
from landscape.surfaces import Plane, eigen_plane, loss_surface, random_plane
from landscape.traces import GradientTraceHook

__all__ = [
    "Comparison",
    "GradientTraceHook",
    "NonFiniteLossError",
    "Objective",
    "Plane",
    "Sizes",
    "compare",
    "eigen_plane",
    "hessian_trace",
    "loss_surface",
    "m_sharpness",
    "open",
    "plots",
    "random_plane",
    "save",
    "spectral_density",
    "top_eigenpairs",
]
