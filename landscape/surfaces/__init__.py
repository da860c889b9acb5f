"""Loss surfaces: directions, grids, paths."""
