"""The density of a spectrum by stochastic Lanczos quadrature."""

from __future__ import annotations

import math

import numpy as np

from landscape.curvature.lanczos import Lanczos, generator_for
from landscape.curvature.operators import Operator, as_operator, undisturbed
from landscape.objective import Objective
from landscape.progress import progress as progress_bar
from landscape.results.types import Array, Cost, Provenance, SpectralDensity

_WIDTH = 0.01  # of the Gaussians, as a share of the spectrum's range
_POINTS_PER_WIDTH = 5


def spectral_density(
    of: Objective | Operator,
    *,
    probes: int = 4,
    steps: int = 32,
    seed: int = 0,
    grid: int | Array | None = None,
    sigma: float | None = None,
    progress: bool | None = None,
) -> SpectralDensity:
    r"""Estimate the density of eigenvalues of the Hessian.

    For a random unit vector q, E[q . f(H) q] = tr f(H) / n, and Lanczos from q gives the Gauss quadrature of the left side: nodes are the
    Ritz values, weights the squared first components of their vectors (Golub and Welsch; Lin, Saad and Yang 2016). f is a Gaussian of
    width sigma around each point of the grid.

    Args:
        of: an objective, for its Hessian; or an operator.
        probes: random vectors; the standard error is the spread over them.
        steps: products per probe.
        seed: of the probes; no global random state is used.
        grid: eigenvalues at which to give the density, or how many of them; None for as many as `sigma` asks for.
        sigma: width of the Gaussians in units of eigenvalues; None for a hundredth of the spectrum's range.
        progress: show a progress bar; None if stderr is a terminal.

    Returns:
        The density, with the nodes and weights that any other function of the spectrum can be had from.

    Raises:
        ValueError: an argument is outside what is allowed.
    """
    for name, count in (("probes", probes), ("steps", steps)):
        if not isinstance(count, int) or count < 1:
            raise ValueError(f"{name} must be a positive integer, got {count!r}")
    if sigma is not None and not 0 < sigma < math.inf:
        raise ValueError(f"sigma must be positive, got {sigma!r}")
    if isinstance(grid, int) and grid < 2:
        raise ValueError(f"grid must have at least 2 points, got {grid}")
    operator = as_operator(of)
    meter = operator.objective.meter() if operator.objective else None
    generator = generator_for(operator, seed)
    steps = min(steps, operator.size)
    nodes, weights = np.zeros((probes, steps)), np.zeros((probes, steps))
    matvecs = 0
    with undisturbed(operator), progress_bar(probes * steps, "density", "product", show=progress) as bar:
        for i in range(probes):
            lanczos = Lanczos(operator, generator)
            while lanczos.size < steps and not lanczos.broken_down:
                lanczos.step()
                bar.update()
            matvecs += lanczos.products
            ritz = lanczos.ritz()
            # A Krylov space that closed early gives the exact measure of its vector: fewer nodes, the rest has no weight.
            nodes[i] = np.pad(ritz.values, (0, steps - lanczos.size), mode="edge")
            weights[i, : lanczos.size] = ritz.coefficients[0] ** 2
    low, high = float(nodes.min()), float(nodes.max())
    if sigma is None:
        sigma = _WIDTH * (high - low) or _WIDTH * abs(high) or _WIDTH
    if grid is None:
        grid = max(1024, math.ceil(_POINTS_PER_WIDTH * (high - low) / sigma))
    points = np.linspace(low - 6 * sigma, high + 6 * sigma, grid) if isinstance(grid, int) else np.asarray(grid, dtype=np.float64)
    each = np.stack([_broadened(points, x, w, sigma) for x, w in zip(nodes, weights, strict=True)])
    spread = each.std(0, ddof=1) / math.sqrt(probes) if probes > 1 else np.full(len(points), math.nan)
    return SpectralDensity(
        grid=points,
        density=each.mean(0),
        stderr=spread,
        nodes=nodes,
        weights=weights,
        sigma=sigma,
        matvecs=matvecs,
        cost=meter.cost() if meter else Cost(),
        provenance=operator.objective.provenance(seed) if operator.objective else Provenance(),
    )


def _broadened(points: Array, nodes: Array, weights: Array, sigma: float) -> Array:
    density = np.zeros(len(points))
    for node, weight in zip(nodes, weights, strict=True):
        density += weight * np.exp(-0.5 * ((points - node) / sigma) ** 2)
    return density / (sigma * math.sqrt(2 * math.pi))
