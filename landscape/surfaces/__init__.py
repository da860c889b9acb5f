"""Loss surfaces and paths: directions in parameter space, and the loss on the lines, planes and curves that they span."""

from landscape.surfaces.directions import Plane, gaussian_draws, normalized, random_plane
from landscape.surfaces.grid import loss_surface
from landscape.surfaces.planes import eigen_plane, minima_plane, pca_plane

__all__ = ["Plane", "eigen_plane", "gaussian_draws", "loss_surface", "minima_plane", "normalized", "pca_plane", "random_plane"]
