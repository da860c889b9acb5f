r"""Interpolation of values at scattered points of a line or plane, and how far to trust it.

Every value is predicted from the nearest known ones alone, by the polyharmonic spline that minimises the energy of phi(r) = r^3 with a
linear polynomial added (Duchon 1977; in one dimension it is the natural cubic spline). Its weights depend on the places only, not on the
values; so does its power function P(x), the norm of the error functional: |f(x) - s(x)| <= P(x) |f|. The norm |f| is not known, but a
known point that is left out and predicted from the others gives |f(x) - s(x)| / P(x) there (Rippa 1999 for the leaving out).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from landscape.results.types import Array

NEIGHBOURS = {1: 12, 2: 32}  # known points that a prediction uses, by dimension
_CHUNK = 256  # predictions solved at once: their systems take 3 MB

# Makes systems solvable whose points lie on a line; where they do not it changes predictions in the tenth digit.
_RIDGE = 1e-10


class Predictions(NamedTuple):
    """Predicted values, and what they were predicted from."""

    values: Array  # (m, c)
    power: Array  # (m,) the power function
    neighbours: NDArray[np.intp]  # (m, k) known points, nearest first


def predict(known: Array, values: Array, at: Array) -> Predictions:
    """Predict values at places from those at known ones.

    Args:
        known: (n, d) coordinates, d = 1 or 2, n > d, no two the same.
        values: (n, c) finite numbers.
        at: (m, d) coordinates.

    Returns:
        The predictions.
    """
    count = min(NEIGHBOURS[known.shape[1]], len(known))
    distance, nearest = _nearest(known, at, count)
    return _predict(known, values, at, distance, nearest)


def leave_one_out(known: Array, values: Array) -> Predictions:
    """Predict the value at every known point from the others; `known` and `values` as in `predict`, n > d + 1."""
    count = min(NEIGHBOURS[known.shape[1]], len(known) - 1)
    distance, nearest = _nearest(known, known, count + 1)
    return _predict(known, values, known, distance[:, 1:], nearest[:, 1:])


def _nearest(known: Array, at: Array, count: int) -> tuple[Array, NDArray[np.intp]]:
    distance, nearest = cKDTree(known).query(at, count)
    return distance.reshape(len(at), count), nearest.reshape(len(at), count)


def _predict(known: Array, values: Array, at: Array, distance: Array, nearest: NDArray[np.intp]) -> Predictions:
    predicted, power = np.empty((len(at), values.shape[1])), np.empty(len(at))
    for start in range(0, len(at), _CHUNK):
        part = slice(start, start + _CHUNK)
        weights, power[part] = _weights(known, at[part], distance[part], nearest[part])
        predicted[part] = np.einsum("mk,mkc->mc", weights, values[nearest[part]])
    return Predictions(predicted, power, nearest)


def _weights(known: Array, at: Array, distance: Array, nearest: NDArray[np.intp]) -> tuple[Array, Array]:
    """Return weights (m, k) of the neighbours, and the power function (m,).

    With A = phi(|x_i - x_j|), b = phi(|x_i - x|) and linear polynomials p they solve [A p; p' 0] [w; v] = [b; p(x)]; P^2 = w'Aw - 2 w'b.
    """
    m, k = nearest.shape
    radius = distance[:, -1:]  # lengths in units of the neighbourhood's
    places = (known[nearest] - at[:, None]) / radius[:, :, None]
    d = places.shape[2]
    between = np.zeros((m, k, k))
    for axis in range(d):
        between += np.square(places[:, :, None, axis] - places[:, None, :, axis])
    between *= np.sqrt(between)
    system, right = np.zeros((m, k + d + 1, k + d + 1)), np.zeros((m, k + d + 1, 1))
    system[:, :k, :k] = between
    system[:, :k, k] = system[:, k, :k] = 1
    system[:, :k, k + 1 :] = places
    system[:, k + 1 :, :k] = places.transpose(0, 2, 1)
    diagonal = np.arange(k, k + d + 1)
    system[:, diagonal, diagonal] = -_RIDGE
    right[:, :k, 0] = (distance / radius) ** 3
    right[:, k] = 1
    weights = np.linalg.solve(system, right)[:, :k, 0]
    energy = np.einsum("mi,mij,mj->m", weights, between, weights) - 2 * np.einsum("mi,mi->m", weights, right[:, :k, 0])
    return weights, np.sqrt(np.maximum(energy, 0)) * radius[:, 0] ** 1.5
