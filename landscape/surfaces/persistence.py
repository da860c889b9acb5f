"""Basins of a surface and how deep they are: persistence of its sublevel sets, by gudhi (`pip install landscape-sam[topology]`).

As the level rises, basins appear at minima of the grid and merge at saddles, the younger into the older: the merge tree. A basin that
appears at loss b and merges at loss d has the persistence d - b; small ones are noise, large ones are separate minima on this plane.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from landscape.results.types import Surface


@dataclass(frozen=True)
class Basin:
    """A basin: where its bottom and the saddle lie at which it merges into a deeper one."""

    minimum: tuple[float, ...]  # (x,) or (x, y)
    birth: float  # the loss there
    saddle: tuple[float, ...] | None  # None for the deepest basin of all
    death: float  # the loss there; infinity without

    @property
    def persistence(self) -> float:
        """How far the loss has to rise to leave the basin for a deeper one."""
        return self.death - self.birth


def persistence(surface: Surface, at_least: float = 0.0) -> list[Basin]:
    """Return the basins of a surface by descending persistence; points without a finite loss are walls.

    Args:
        surface: a line or a plane. Points of the grid are neighbours along x and along y.
        at_least: leave out basins that persist for less.

    Returns:
        The basins, the deepest first.

    Raises:
        ImportError: gudhi is not installed.
        ValueError: no loss is finite, or `at_least` is negative.
    """
    try:
        import gudhi
    except ImportError as error:
        raise ImportError("persistence needs gudhi: pip install 'landscape-sam[topology]'") from error
    if not at_least >= 0:
        raise ValueError(f"at_least must not be negative, got {at_least!r}")
    loss = np.where(np.isfinite(surface.loss), surface.loss, np.inf)
    if not np.isfinite(loss).any():
        raise ValueError(f"surface {surface.name!r} has no finite loss")
    # Vertices carry the losses and an edge the larger of its two: sublevel sets are connected through edges. On a line there is one row.
    complex_ = gudhi.CubicalComplex(vertices=loss)
    complex_.compute_persistence()
    pairs, essential = complex_.vertices_of_persistence_pairs()
    # gudhi numbers vertices with the first axis fastest.
    grid = np.stack(np.unravel_index(np.arange(loss.size), loss.shape, order="F"), axis=1)

    def place(vertex: int) -> tuple[tuple[float, ...], float]:
        index = tuple(grid[vertex])
        at = (surface.x[index[-1]],) if surface.y is None else (surface.x[index[1]], surface.y[index[0]])
        return tuple(float(v) for v in at), float(loss[index])

    basins = []
    for low, high in np.asarray(pairs[0] if pairs else [], dtype=int).reshape(-1, 2).tolist():
        (minimum, birth), (saddle, death) = place(low), place(high)
        if math.isfinite(birth):
            basins.append(Basin(minimum, birth, saddle if math.isfinite(death) else None, death))
    for low in np.asarray(essential[0] if essential else [], dtype=int).reshape(-1).tolist():
        minimum, birth = place(low)
        basins.append(Basin(minimum, birth, None, math.inf))
    kept = [basin for basin in basins if basin.persistence > 0 and basin.persistence >= at_least]
    return sorted(kept, key=lambda basin: (-basin.persistence, basin.birth))
