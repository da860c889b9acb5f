"""Loss surfaces: directions in parameter space, and the loss on lines and planes that they span."""

from landscape.surfaces.directions import Plane, eigen_plane, gaussian_draws, normalized, random_plane
from landscape.surfaces.grid import loss_surface

__all__ = ["Plane", "eigen_plane", "gaussian_draws", "loss_surface", "normalized", "random_plane"]
