"""Loss surfaces and paths: directions in parameter space, and the loss on the lines, planes and curves that they span."""

from landscape.surfaces.alignment import aligned
from landscape.surfaces.connection import Connection, connect_modes
from landscape.surfaces.directions import Plane, gaussian_draws, normalized, random_plane
from landscape.surfaces.grid import loss_surface
from landscape.surfaces.metrics import METRICS
from landscape.surfaces.paths import linear_path
from landscape.surfaces.persistence import Basin, persistence
from landscape.surfaces.planes import eigen_plane, minima_plane, pca_plane
from landscape.surfaces.trajectory import around_coordinates, loss_trajectory

__all__ = [
    "METRICS",
    "Basin",
    "Connection",
    "Plane",
    "aligned",
    "around_coordinates",
    "connect_modes",
    "eigen_plane",
    "gaussian_draws",
    "linear_path",
    "loss_surface",
    "loss_trajectory",
    "minima_plane",
    "normalized",
    "pca_plane",
    "persistence",
    "random_plane",
]
