"""Kendall's tau against counted pairs, and its interval against many samples of a known correlation."""

import itertools
import math

import numpy as np
import pytest

from landscape.correlation import kendall_tau


def test_tau_is_the_share_of_ordered_pairs_and_p_that_of_all_orders() -> None:
    x, y = np.arange(6.0), np.array([0.0, 2.0, 1.0, 3.0, 5.0, 4.0])
    found = kendall_tau(np.append(x, 9.0), np.append(y, np.nan))

    def tau(of: tuple[float, ...]) -> float:
        return sum(math.copysign(1, of[j] - of[i]) for i, j in itertools.combinations(range(6), 2)) / 15

    assert found.n == 6 and found.tau == pytest.approx(tau(tuple(y)))
    orders = [tau(order) for order in itertools.permutations(y)]
    assert found.p == pytest.approx(np.mean(np.abs(orders) >= found.tau - 1e-12))
    assert "n = 6" in str(found) and "τ = 0.73" in str(found)


@pytest.mark.parametrize(("n", "r"), [(4, 0.95), (8, 0.5), (8, 0.95), (16, 0.0)])
def test_the_interval_covers_the_tau_of_normal_variables(n: int, r: float) -> None:
    rng, true, covered = np.random.default_rng(0), 2 / math.pi * math.asin(r), 0
    for _ in range(200):
        x, z = rng.normal(size=(2, n))
        found = kendall_tau(x, r * x + math.sqrt(1 - r * r) * z)
        assert -1 <= found.low <= found.tau <= found.high <= 1 and found.high - found.low > 0.1
        covered += found.low <= true <= found.high
    assert covered >= 0.925 * 200  # 95 % less two standard errors of 200 samples


def test_too_few_points_have_no_correlation() -> None:
    for x, y in (([1.0, 2.0], [1.0, 2.0]), ([1.0, 1.0, 1.0], [1.0, 2.0, 3.0])):
        assert math.isnan(kendall_tau(np.array(x), np.array(y)).tau)
    with pytest.raises(ValueError, match="one length"):
        kendall_tau(np.zeros(3), np.zeros(4))
