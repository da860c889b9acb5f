"""What pictures of a plane share: the names of its axes, its points of interest and the edges of its cells."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from landscape.plots.style import label
from landscape.results.types import Array, Surface


def direction(surface: Surface, axis: int) -> str:
    """Return the label of an axis: which direction it follows, in units of how it was normalised."""
    plane = surface.plane if isinstance(surface.plane, dict) else {}
    kind, normalize = str(plane.get("kind") or "random").lower(), plane.get("normalize")
    name = f"direction {axis}"
    if "eigen" in kind:
        name = f"eigenvector {axis}"
    elif "pca" in kind:
        name = f"principal component {axis}"
        explained = plane.get("explained_variance")
        if isinstance(explained, list | tuple) and len(explained) >= axis:
            name = f"component {axis} ({100 * explained[axis - 1]:.3g} % of variance)"
    elif kind == "minima":
        name = "from a to b" if axis == 1 else "towards c" if "c" in (plane.get("marks") or {}) else name
    elif kind == "interpolation":
        name = "interpolation"
    return f"{name} ({label(normalize, 12)}-normalised)" if normalize and str(normalize).lower() != "none" else name


def shared_direction(surfaces: Sequence[Surface], axis: int) -> str:
    """Return the label that holds for all the surfaces."""
    names = list(dict.fromkeys(direction(surface, axis) for surface in surfaces))
    return names[0] if len(names) == 1 else f"direction {axis}"


def lowest_point(surface: Surface) -> tuple[float, float, float] | None:
    """Return x, y and loss of the lowest finite point of the grid."""
    loss = np.where(np.isfinite(surface.loss), surface.loss, np.inf)
    if surface.y is None or not np.isfinite(loss).any():
        return None
    row, column = np.unravel_index(int(np.argmin(loss)), loss.shape)
    return float(surface.x[column]), float(surface.y[row]), float(surface.loss[row, column])


def has_centre(surface: Surface) -> bool:
    """Say whether the point that the plane goes through lies on the picture."""
    axes = [a for a in (surface.x, surface.y) if a is not None]
    return all(a.min() <= 0 <= a.max() for a in axes)


def edges(centres: Array) -> Array:
    """Return the edges of the cells around points in ascending order."""
    if len(centres) == 1:
        return np.array([centres[0] - 0.5, centres[0] + 0.5])
    middle = (centres[1:] + centres[:-1]) / 2
    return np.array([2 * centres[0] - middle[0], *middle, 2 * centres[-1] - middle[-1]])


def same_axes(surfaces: Sequence[Surface]) -> bool:
    """Say whether all surfaces lie on the same grid."""
    first = surfaces[0]
    return all(np.array_equal(s.x, first.x) and np.array_equal(np.asarray(s.y), np.asarray(first.y)) for s in surfaces[1:])
