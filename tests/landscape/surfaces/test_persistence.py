"""Basins of functions whose minima and saddles are known."""

import math
import sys

import numpy as np
import pytest

from landscape.results.types import Surface
from landscape.surfaces import persistence

gudhi = pytest.importorskip("gudhi", reason="gudhi is not installed: pip install 'landscape-sam[topology]'")


def surface(loss: np.ndarray, x: np.ndarray, y: np.ndarray | None) -> Surface:
    nothing = np.full(loss.shape, np.nan)
    return Surface("wells", x, y, loss, nothing, nothing, np.ones(loss.shape, np.uint8), {})


def test_two_wells_merge_at_their_saddle() -> None:
    x, y = np.linspace(-2, 2, 41), np.linspace(-1, 1, 21)
    loss = (x[None] ** 2 - 1) ** 2 + 0.1 * x[None] + y[:, None] ** 2
    deep, shallow = persistence(surface(loss, x, y))
    assert deep.minimum == pytest.approx((-1, 0)) and deep.saddle is None and deep.persistence == math.inf
    assert deep.birth == pytest.approx(-0.1)
    assert shallow.minimum == pytest.approx((1, 0)) and shallow.saddle == pytest.approx((0, 0), abs=0.11)
    assert (shallow.birth, shallow.death) == pytest.approx((0.1, loss[10, 20]), abs=0.01)
    assert persistence(surface(loss, x, y), at_least=2) == [deep]


def test_a_line_and_a_wall() -> None:
    x = np.linspace(-2, 2, 41)
    one, two = persistence(surface((x**2 - 1) ** 2 + 0.1 * x, x, None))
    assert one.minimum == pytest.approx((-1,)) and two.minimum == pytest.approx((1,)) and two.saddle == pytest.approx((0,), abs=0.11)
    walled = (x**2 - 1) ** 2
    walled[20] = np.nan
    assert sorted(b.minimum for b in persistence(surface(walled, x, None))) == [pytest.approx((-1,)), pytest.approx((1,))]
    assert all(b.saddle is None and b.persistence == math.inf for b in persistence(surface(walled, x, None)))


def test_a_bowl_has_one_basin_and_ties_make_none() -> None:
    x = np.linspace(-1, 1, 9)
    (basin,) = persistence(surface(x[None] ** 2 + x[:, None] ** 2, x, x))
    assert basin.minimum == (0, 0)
    (flat,) = persistence(surface(np.ones((3, 4)), np.arange(4.0), np.arange(3.0)))
    assert flat.birth == 1


def test_what_cannot_be_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    x = np.arange(3.0)
    with pytest.raises(ValueError, match="no finite loss"):
        persistence(surface(np.full(3, np.nan), x, None))
    with pytest.raises(ValueError, match="at_least"):
        persistence(surface(x, x, None), at_least=-1)
    monkeypatch.setitem(sys.modules, "gudhi", None)
    with pytest.raises(ImportError, match=r"landscape-sam\[topology\]"):
        persistence(surface(x, x, None))
