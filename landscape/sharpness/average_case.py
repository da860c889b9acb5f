r"""Average-case sharpness (Andriushchenko et al. 2023, arXiv 2302.07011): how far the loss rises in a random direction.

    value = E_delta [L(w + delta)] - L(w),    delta ~ N(0, rho^2 diag(T^2)),    T = 1, or |w| if adaptive

For small rho it is rho^2 / 2 tr(T H T): half the trace of the Hessian, or of the adaptive one, which is invariant to rescaling the layers
of a ReLU network. rho is the width of the noise in every weight, so that ||delta|| is about rho sqrt(n).

Draws come in pairs +delta and -delta, in whose mean the slope cancels; without that the slope's noise would hide the curvature at small
rho. It costs 2 `draws` + 1 forward passes. The standard error is over draws, with the data as they are; two models measured with the
same seed see the same noise, so that their difference is known better than either (`paired_difference`).
"""

from __future__ import annotations

import numpy as np

from landscape.objective import Objective
from landscape.results.types import Sharpness
from landscape.sharpness.draws import check_draws, noisy_losses
from landscape.sharpness.measurement import Known, Measurement
from landscape.sharpness.pieces import losses
from landscape.sharpness.worst_case import normalized


def average_case(
    objective: Objective,
    rho: float = 0.01,
    *,
    draws: int = 50,
    adaptive: bool = False,
    antithetic: bool = True,
    normalize_logits: bool = False,
    seed: int = 0,
    ranks: bool = False,
    known: Known = (),
    progress: bool | None = None,
) -> Sharpness:
    """Return the mean over draws of L(w + delta) - L(w).

    Arguments out of range are a ValueError, a loss that is not finite a NonFiniteLossError.

    Args:
        objective: the loss.
        rho: width of the noise in every weight; relative to the weight if adaptive.
        draws: number of pairs of draws, at least 3.
        adaptive: scale the noise by |w|, weight by weight.
        antithetic: pair every delta with -delta.
        normalize_logits: centre each example's outputs (N, classes) and divide them by their length.
        seed: of the noise.
        ranks: deal the draws out over the processes of torch.distributed; all of them call alike, on the same data.
        known: earlier results; one of the same settings and weights is returned as it is.
        progress: show a bar; None shows it on a terminal.

    Returns:
        The value, its standard error over draws, and the value of each draw (of the pair's mean).
    """
    check_draws(rho, draws, seed)
    evaluate = normalized(objective) if normalize_logits else None
    measurement = Measurement(
        objective,
        "average_case",
        rho=rho,
        m=objective.examples,
        settings={"adaptive": adaptive, "draws": draws, "antithetic": antithetic, "normalize_logits": normalize_logits},
        seed=seed,
    )
    if (earlier := measurement.earlier(known)) is not None:
        return earlier
    base, sizes = losses(objective, [objective.parameters], evaluate, small=False)
    measurement.check_finite(base[0], base[0], "piece")
    noisy = noisy_losses(
        objective,
        rho,
        draws,
        scale="weight" if adaptive else "none",
        antithetic=antithetic,
        seed=seed,
        label="average case",
        evaluate=evaluate,
        ranks=ranks,
        progress=progress,
    )
    gains = noisy.reshape(draws, -1).mean(1) - float(base[0] @ sizes / sizes.sum())
    return measurement.result(gains, np.ones(draws), of_draws=True)
