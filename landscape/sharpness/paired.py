r"""The difference of two checkpoints, measured on the same shards and draws: "SAM is flatter by 0.31 ± 0.04".

The values of two models on one shard, or under one draw of noise, rise and fall together. Their difference shard by shard,

    value = sum_i w_i (a_i - b_i) / sum_i w_i,

has a smaller standard error than the values themselves: the right one for the question which of the two is sharper.
"""

from __future__ import annotations

import numpy as np

from landscape.results.types import Cost, Sharpness
from landscape.sharpness.measurement import mean_of_draws, weighted_mean

_OF_DRAWS = ("fisher_trace", "average_case", "low_pass", "relative_flatness")


def paired_difference(a: Sharpness, b: Sharpness) -> Sharpness:
    """Return how much sharper a is than b: the mean of the differences shard by shard, or draw by draw, and its standard error.

    Args:
        a: a measure of one model.
        b: the same measure of another, with the same settings on the same data.

    Returns:
        The difference a - b; `per_shard` holds the differences, `settings` those of both and the hashes of the two models' parameters.

    Raises:
        TypeError: one is no `Sharpness`.
        ValueError: they are not the same measure, or not measured alike.
    """
    for name, given in (("a", a), ("b", b)):
        if not isinstance(given, Sharpness):
            raise TypeError(f"{name} must be a Sharpness, got {type(given).__name__}")
    if a.measure != b.measure:
        raise ValueError(f"a is {a.measure} and b is {b.measure}: only the same measure can be compared")
    for key in [*a.settings, *(k for k in b.settings if k not in a.settings)]:
        one, other = a.settings.get(key), b.settings.get(key)
        if one != other:
            raise ValueError(f"a and b differ in {key}: {one!r} and {other!r}; measure both with the same settings on the same data")
    if (a.rho, a.m, a.p) != (b.rho, b.m, b.p):
        raise ValueError(f"a and b differ in rho, m or p: {(a.rho, a.m, a.p)} and {(b.rho, b.m, b.p)}")
    if a.provenance.data_sha256 != b.provenance.data_sha256:
        raise ValueError("a and b were measured on different data: their shards cannot be paired")
    if not np.array_equal(a.shard_sizes, b.shard_sizes):
        raise ValueError(f"a has {len(a.shard_sizes)} shards and b {len(b.shard_sizes)}, or of other sizes: they cannot be paired")
    differences = a.per_shard - b.per_shard
    value, stderr = mean_of_draws(differences) if a.measure in _OF_DRAWS else weighted_mean(differences, a.shard_sizes)
    total = {k: getattr(a.cost, k) + getattr(b.cost, k) for k in ("forwards", "gradients", "hvps", "seconds")}
    return Sharpness(
        f"{a.measure}_difference",
        value,
        stderr,
        differences,
        a.shard_sizes,
        a.rho,
        a.m,
        a.p,
        settings={**a.settings, "between": [a.provenance.parameter_sha256, b.provenance.parameter_sha256]},
        cost=Cost(**total),
        provenance=a.provenance,
    )
