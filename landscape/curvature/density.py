"""The density of a spectrum by stochastic Lanczos quadrature, with known outliers taken out and put back as they are."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from scipy.special import ndtr
from torch import Tensor

from landscape.curvature.complement import Complement, Counted, signs
from landscape.curvature.given import Given
from landscape.curvature.lanczos import Lanczos, generator_for
from landscape.curvature.operators import Operator, as_operator, undisturbed
from landscape.intervals import student_factor
from landscape.objective import Objective
from landscape.progress import progress as progress_bar
from landscape.results.types import Array, Cost, Eigenpairs, Provenance, SpectralDensity

_PROBES, _MOST_PROBES = 4, 64
_WIDTH = 0.01  # of the Gaussians, as a share of the spectrum's range
_POINTS_PER_WIDTH = 5
_POINTS = 1024
_REACH = 9  # widths beyond a bump where the grid ends: what is left there times any gap up to the next bump is nothing
_SURE = 0.01  # residual, relative to the largest |eigenvalue|, up to which an eigenvector may be taken out


def spectral_density(
    of: Objective | Operator,
    *,
    probes: int | None = None,
    steps: int = 32,
    tol: float | None = None,
    eigenpairs: Eigenpairs | None = None,
    seed: int = 0,
    grid: int | Array | None = None,
    sigma: float | None = None,
    progress: bool | None = None,
) -> SpectralDensity:
    r"""Estimate the density of eigenvalues of the Hessian.

    For a random unit vector q, E[q . f(H) q] = tr f(H) / n, and Lanczos from q gives the Gauss quadrature of the left side: nodes are the
    Ritz values, weights the squared first components of their vectors (Golub and Welsch; Lin, Saad and Yang 2016). f is a Gaussian of
    width sigma around each point of the grid.

    With `eigenpairs`, their eigenvalues stand in the density with the weight 1 / n each, exactly, and the probes are orthogonal to their
    vectors: all steps go into the rest. Those that lie beyond every Ritz value of the rest are the outliers.

    Args:
        of: an objective, for its Hessian; or an operator.
        probes: random vectors; the standard error is the spread over them. None for 4, or with `tol` for as many as it takes, up to 64.
        steps: products per probe; more of them resolve finer structure.
        tol: the standard error of the share of eigenvalues below any one value (smeared by sigma) at which to stop; from 3 probes on, and
            at most `probes` of them. None takes all probes.
        eigenpairs: of the same operator; pairs with a residual above a hundredth of the largest |eigenvalue| are left in the rest.
        seed: of the probes; no global random state is used.
        grid: eigenvalues at which to give the density, or how many of them; None for as many as `sigma` asks for.
        sigma: width of the Gaussians in units of eigenvalues; None for a hundredth of the range of the spectrum (of its rest with
            `eigenpairs`), or for the typical distance of Ritz values that have not converged where that is more: finer structure is noise.
        progress: show a progress bar; None if stderr is a terminal.

    Returns:
        The density, with the nodes and weights that any other function of the spectrum can be had from. Its standard error holds the
        spread over probes (with Student's factor for few of them, and no less than random unit vectors must have), and the steps that
        are missing, by what an anti-Gauss rule from the same products gives instead (Laurie 1996); NaN for one probe.

    Raises:
        ValueError: an argument is outside what is allowed, or `eigenpairs` belongs to another operator.
    """
    for name, count in (("probes", probes), ("steps", steps)):
        if (name, count) != ("probes", None) and (not isinstance(count, int) or count < 1):
            raise ValueError(f"{name} must be a positive integer, got {count!r}")
    if sigma is not None and not 0 < sigma < math.inf:
        raise ValueError(f"sigma must be positive, got {sigma!r}")
    if tol is not None and not 0 < tol < 1:
        raise ValueError(f"tol must be between 0 and 1, got {tol!r}")
    if isinstance(grid, int) and grid < 2:
        raise ValueError(f"grid must have at least 2 points, got {grid}")
    operator = as_operator(of)
    objective = operator.objective
    provenance = objective.provenance(seed) if objective else Provenance()
    given = None if eigenpairs is None else Given(eigenpairs, operator, provenance)
    meter = objective.meter() if objective else None
    generator = generator_for(operator, seed)
    most = probes or (_PROBES if tol is None else _MOST_PROBES)
    with undisturbed(operator), progress_bar(None, "density", "product", show=progress) as bar:
        counted = Counted(operator, 2**62, bar.update)
        vectors, values, residuals = _known(given, counted, generator)
        rest = Complement(counted, vectors)
        size = operator.size - len(values)
        steps = min(steps, size)
        bar.total = counted.products + (_PROBES if probes is None else most) * steps
        rules: list[_Rule] = []
        # What products leave beside the known vectors is rounding at least: a rest of zeros is one bump, not the spectrum of that, and
        # no bump so narrow that the numbers of a grid around the largest value cannot tell its points.
        least = max(10 * torch.finfo(operator.dtype).eps, 1e-12) * float(np.abs(values).max(initial=0))
        while len(rules) < most and size:
            rules.append(_rule(rest, generator, steps))
            if tol is not None and len(rules) >= 3 and _share_stderr(rules, sigma or _width(rules, least), size, operator.size) <= tol:
                break
    nodes = np.stack([np.concatenate([values, rule.nodes]) for rule in rules]) if rules else values[None]
    share = size / operator.size
    known = np.full(len(values), 1 / operator.size)
    weights = np.stack([np.concatenate([known, share * rule.weights]) for rule in rules]) if rules else known[None]
    if sigma is None:
        sigma = _width(rules, least) if rules else _WIDTH * (float(np.ptp(values)) or float(np.abs(values).max()) or 1.0)
    points = _grid(grid, nodes, values, rules, sigma)
    each = np.stack([_broadened(points, x, w, sigma) for x, w in zip(nodes, weights, strict=True)])
    stderr = np.full(len(points), math.nan if rules else 0.0)
    if len(rules) > 1:
        anti = np.mean([share * _broadened(points, rule.anti_nodes, rule.anti_weights, sigma) for rule in rules], 0)
        missing = np.abs(each.mean(0) - _broadened(points, values, known, sigma) - anti)
        spread = np.maximum(_stderr(each), share * _expected_stderr(rules, size, *_peaks(points, rules, sigma, size)))
        stderr = np.hypot(spread, missing / 1.96)
    return SpectralDensity(
        grid=points,
        density=each.mean(0),
        stderr=stderr,
        nodes=nodes,
        weights=weights,
        sigma=sigma,
        matvecs=counted.products,
        outliers=None if given is None else _apart(values, residuals, rules, sigma),
        share_stderr=_share_stderr(rules, sigma, size, operator.size) if len(rules) > 1 else None if rules else 0.0,
        cost=meter.cost() if meter else Cost(),
        provenance=provenance,
    )


class _Rule(NamedTuple):
    """Gauss quadrature for the spectrum as one probe sees it, and the anti-Gauss rule of the same size."""

    nodes: Array  # (steps,)
    weights: Array  # (steps,), of sum one
    anti_nodes: Array  # (m,)
    anti_weights: Array  # (m,)
    residuals: Array  # (steps,) an eigenvalue lies within it of the node
    width: float  # typical distance of the nodes, where they are not eigenvalues


def _rule(operator: Complement, generator: torch.Generator, steps: int) -> _Rule:
    dtype = torch.promote_types(operator.dtype, torch.float32)
    # Drawn in float32, so that float64 starts from the same vector.
    normal = torch.randn(operator.size, generator=generator, dtype=torch.float32, device=operator.device).to(dtype)
    lanczos = Lanczos(operator, generator, operator.project(normal))
    while lanczos.size < steps and not lanczos.broken_down:
        lanczos.step()
    ritz = lanczos.ritz()
    weights = ritz.coefficients[0] ** 2
    anti = lanczos.matrix.copy()
    if not lanczos.broken_down and len(anti) > 1:
        anti[-1, -2] = anti[-2, -1] = math.sqrt(2) * anti[-1, -2]
    anti_nodes, anti_vectors = np.linalg.eigh(anti)
    # A Krylov space that closed early gives the exact measure of its vector: fewer nodes, the rest has no weight.
    missing = steps - lanczos.size
    gaps = np.diff(ritz.values)
    around = (np.append(gaps, 0) + np.insert(gaps, 0, 0)) / 2
    residuals = np.zeros(lanczos.size) if lanczos.broken_down else ritz.residuals
    width = _weighted_median(np.minimum(around / 2, residuals), weights)
    padded = np.pad(ritz.values, (0, missing), mode="edge"), np.pad(weights, (0, missing))
    return _Rule(*padded, anti_nodes, anti_vectors[0] ** 2, np.pad(residuals, (0, missing), constant_values=math.inf), width)


def _known(given: Given | None, operator: Counted, generator: torch.Generator) -> tuple[Tensor | None, Array, Array]:
    """Return the eigenvectors to take out, their values and residuals."""
    if given is None:
        return None, np.zeros(0), np.zeros(0)
    pairs = given.eigenpairs
    probe = signs(operator, 1, generator)
    if not given.belongs(probe, operator.matmat(probe)):
        raise ValueError("eigenpairs belongs to another operator: compute it with top_eigenpairs on this one")
    sure = pairs.residuals <= _SURE * np.abs(pairs.values).max(initial=0)
    return given.vectors[torch.as_tensor(np.flatnonzero(sure), device=given.vectors.device)], pairs.values[sure], pairs.residuals[sure]


def _apart(values: Array, residuals: Array, rules: list[_Rule], sigma: float) -> Array:
    """Return the known eigenvalues that lie beyond every Ritz value of the rest."""
    if not rules:
        return values[:0]
    low, high = min(r.nodes.min() for r in rules), max(r.nodes.max() for r in rules)
    margin = residuals + sigma
    return values[(values > high + margin) | (values < low - margin)]


def _width(rules: list[_Rule], least: float) -> float:
    low, high = min(float(r.nodes.min()) for r in rules), max(float(r.nodes.max()) for r in rules)
    typical = float(np.mean([r.width for r in rules]))
    return max(_WIDTH * (high - low), typical, least) or _WIDTH * abs(high) or _WIDTH


def _weighted_median(values: Array, weights: Array) -> float:
    order = np.argsort(values)
    return float(values[order][np.searchsorted(np.cumsum(weights[order]), 0.5 * weights.sum())])


def _grid(grid: int | Array | None, nodes: Array, values: Array, rules: list[_Rule], sigma: float) -> Array:
    if grid is not None and not isinstance(grid, int):
        return np.asarray(grid, dtype=np.float64)
    low, high = float(nodes.min()), float(nodes.max())
    if isinstance(grid, int):
        return np.linspace(low - 6 * sigma, high + 6 * sigma, grid)
    # One stretch for what the probes saw, and one for each known value that lies apart: in between there is nothing to see.
    ends = [(v - _REACH * sigma, v + _REACH * sigma) for v in values]
    ends += (
        [(min(float(r.nodes.min()) for r in rules) - _REACH * sigma, max(float(r.nodes.max()) for r in rules) + _REACH * sigma)]
        if rules
        else []
    )
    stretches: list[list[float]] = []
    for low, high in sorted(ends):
        if stretches and low <= stretches[-1][1]:
            stretches[-1][1] = max(stretches[-1][1], high)
        else:
            stretches.append([low, high])
    count = _POINTS if len(stretches) == 1 else 0
    return np.concatenate([np.linspace(a, b, max(count, 1 + math.ceil(_POINTS_PER_WIDTH * (b - a) / sigma))) for a, b in stretches])


def _stderr(each: Array) -> Array:
    count = len(each)
    return student_factor(count - 1) * each.std(0, ddof=1) / math.sqrt(count)


def _expected_stderr(rules: list[_Rule], size: int, f: Array, squared: Array, least: Array) -> Array:
    """Return the standard error that the mean of q . f(H) q over random unit vectors q must have.

    Its variance is 2 / (n + 2) (tr f^2 / n - (tr f / n)^2) per vector. A few probes that happen to agree say less than that.

    Args:
        rules: one per probe.
        size: n.
        f: tr f / n, as found (g,).
        squared: tr f^2 / n, as found (g,).
        least: what tr f^2 / n is at least (g,).

    Returns:
        The standard error (g,).
    """
    variance = np.maximum(np.maximum(squared, least) - f**2, 0)
    return np.sqrt(2 / (size + 2) / len(rules) * variance)


def _peaks(points: Array, rules: list[_Rule], sigma: float, size: int) -> tuple[Array, Array, Array]:
    """Return tr f / n and tr f^2 / n for the Gaussian f around each point, as found, and what the second is at least."""
    f, squared, largest = np.zeros(len(points)), np.zeros(len(points)), np.zeros(len(points))
    for rule in rules:
        gaussians = _gaussians(points, rule.nodes, sigma)
        f += rule.weights @ gaussians / len(rules)
        squared += rule.weights @ gaussians**2 / len(rules)
        for gaussian in gaussians[rule.residuals < sigma]:
            largest = np.maximum(largest, gaussian)  # there is an eigenvalue, however little of it the probes hold
    return f, squared, largest**2 / size


def _share_stderr(rules: list[_Rule], sigma: float, size: int, n: int) -> float:
    """Return the largest standard error of the share of eigenvalues below a value, of `size` that are not known among n."""
    low, high = min(r.nodes.min() for r in rules), max(r.nodes.max() for r in rules)
    points = np.linspace(low - 3 * sigma, high + 3 * sigma, 256)
    steps = [ndtr((points[:, None] - rule.nodes) / sigma) for rule in rules]
    each = np.stack([step @ rule.weights for step, rule in zip(steps, rules, strict=True)])
    squared = np.mean([step**2 @ rule.weights for step, rule in zip(steps, rules, strict=True)], 0)
    error = np.maximum(_stderr(each), _expected_stderr(rules, size, each.mean(0), squared, np.zeros(len(points))))
    return size / n * float(error.max())


def _broadened(points: Array, nodes: Array, weights: Array, sigma: float) -> Array:
    return weights @ _gaussians(points, nodes, sigma)


def _gaussians(points: Array, nodes: Array, sigma: float) -> Array:
    return np.exp(-0.5 * ((points - nodes[:, None]) / sigma) ** 2) / (sigma * math.sqrt(2 * math.pi))
