r"""The low-pass filter measure (Bisla, Wang and Choromanska 2022, arXiv 2201.08025): the loss convolved with a Gaussian, at w,

    value = (L * K)(w) = E_delta [L(w + delta)],    delta ~ N(0, sigma^2 diag(T^2))

with T = 1 as in the paper's measure, or T the norm of each filter as in its optimizer ("filter"; biases and gains by |w|), which makes it
invariant to rescaling the layers of a ReLU network. It is the smoothed loss itself, no difference: where two models' training losses
differ, so do their values; `average_case` takes L(w) away.

It costs `draws` forward passes (the paper takes 100, sigma = 0.01), twice that with pairs of draws. The standard error is over draws.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from landscape.objective import Objective
from landscape.results.types import Sharpness
from landscape.sharpness.draws import check_draws, noisy_losses
from landscape.sharpness.measurement import Known, Measurement


def low_pass(
    objective: Objective,
    sigma: float = 0.01,
    *,
    draws: int = 100,
    normalize: Literal["none", "filter"] = "none",
    antithetic: bool = False,
    seed: int = 0,
    ranks: bool = False,
    known: Known = (),
    progress: bool | None = None,
) -> Sharpness:
    """Return the mean over draws of L(w + delta).

    Args:
        objective: the loss.
        sigma: width of the noise in every weight; in units of the filter's norm with normalize="filter".
        draws: number of draws, at least 3.
        normalize: "none", or "filter" to scale the noise by the norms of filters.
        antithetic: pair every delta with -delta.
        seed: of the noise.
        ranks: deal the draws out over the processes of torch.distributed; all of them call alike, on the same data.
        known: earlier results; one of the same settings and weights is returned as it is.
        progress: show a bar; None shows it on a terminal.

    Returns:
        The value (`rho` holds sigma), its standard error over draws, and the loss of each draw.

    Raises:
        ValueError: normalize is neither; or another argument is out of range.
    """
    if normalize not in ("none", "filter"):
        raise ValueError(f"normalize must be 'none' or 'filter', got {normalize!r}")
    check_draws(sigma, draws, seed)
    settings = {"normalize": normalize, "draws": draws, "antithetic": antithetic}
    measurement = Measurement(objective, "low_pass", rho=sigma, m=objective.examples, settings=settings, seed=seed)
    if (earlier := measurement.earlier(known)) is not None:
        return earlier
    noisy = noisy_losses(
        objective, sigma, draws, scale=normalize, antithetic=antithetic, seed=seed, label="low pass", ranks=ranks, progress=progress
    )
    return measurement.result(noisy.reshape(draws, -1).mean(1), np.ones(draws), of_draws=True)
