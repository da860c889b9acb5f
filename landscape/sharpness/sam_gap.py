r"""SAM's loss gap over a list of radii: L(w + eps) - L(w) for the climb of one full-batch SAM step (Foret et al. 2021, arXiv 2010.01412).

It is m-sharpness with m = n. One gradient serves every radius, so that a curve over rho costs one gradient and one forward pass for each
radius and one for w.

The standard error says how the gap varies over examples: it is that of the mean of l_b(w + eps) - l_b(w) over pieces of the data, with eps
held fixed. eps moves with the data too, but as it maximises the linearised loss that changes the gap to second order only.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from landscape.objective import Objective
from landscape.results.types import Sharpness
from landscape.sharpness.measurement import Known, Measurement, ascent_of
from landscape.sharpness.pieces import losses

RADII = (0.01, 0.02, 0.05, 0.1, 0.2)


def sam_gap(
    objective: Objective,
    rhos: Sequence[float] = RADII,
    *,
    p: float = 2.0,
    adaptive: bool = False,
    eta: float = 0.0,
    known: Known = (),
) -> tuple[Sharpness, ...]:
    """Return L(w + eps) - L(w) for each radius, eps along the gradient of all data.

    A radius, p or eta out of range is a ValueError, a loss that is not finite a NonFiniteLossError.

    Args:
        objective: the loss.
        rhos: radii of the climb.
        p: the ball is one of the p-norm, 1 <= p <= inf.
        adaptive: measure steps relative to |w| + eta, weight by weight.
        eta: see `adaptive`.
        known: earlier results; those of the same settings and weights are returned as they are.

    Returns:
        One result for each radius, in the order given; `per_shard` holds the gaps of pieces of the data. The cost of the gradient and of
        the forward pass at w is told by the first one that was measured.

    Raises:
        TypeError: rhos is no list.
        ValueError: no radius is given.
    """
    if not isinstance(rhos, Sequence) or isinstance(rhos, str):
        raise TypeError(f"rhos must be a list of radii, such as [0.01, 0.05], got {rhos!r}")
    if not rhos:
        raise ValueError("rhos is empty: give at least one radius")
    ascents = [ascent_of(rho, p, adaptive, eta) for rho in rhos]
    n, settings = objective.examples, {"adaptive": adaptive, "eta": float(eta)}
    measurements = [Measurement(objective, "sam_gap", rho=rho, m=n, p=p, settings=settings) for rho in rhos]
    found = [measurement.earlier(known) for measurement in measurements]
    missing = [i for i, earlier in enumerate(found) if earlier is None]
    if not missing:
        return tuple(r for r in found if r is not None)
    meter = objective.meter()
    params = objective.parameters
    weights = [params[name] for name in objective.names]
    gradient = objective.gradient()[1]
    before, sizes = losses(objective, [params])
    for i in missing:
        measurement = measurements[i]
        measurement.restart(meter if i == missing[0] else None)
        eps = ascents[i].perturbation([gradient[name] for name in objective.names], weights)
        after, _ = losses(objective, [{name: w + e for name, w, e in zip(objective.names, weights, eps, strict=True)}])
        measurement.check_finite(before[0], after[0], "piece")
        found[i] = measurement.result(np.asarray(after[0] - before[0]), sizes)
    return tuple(r for r in found if r is not None)
