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

# Blocks reach so far, in distances from their middle to the fourth known point.
_SMALL = 0.4

# Makes systems solvable whose points lie on a line; where they do not it changes predictions in the tenth digit.
_RIDGE = 1e-10


class Predictions(NamedTuple):
    """Predicted values, and what they were predicted from."""

    values: Array  # (m, c)
    power: Array  # (m,) the power function
    neighbours: NDArray[np.intp]  # (m, k) known points, nearest first


def predict(known: Array, values: Array, at: Array, blocks: NDArray[np.intp] | None = None) -> Predictions:
    """Predict values at places from those at known ones.

    Args:
        known: (n, d) coordinates, d = 1 or 2, n > d, no two the same.
        values: (n, c) finite numbers.
        at: (m, d) coordinates.
        blocks: (m,) numbers of the blocks in which places lie; those of a block that is small beside the distances of known points are
            predicted from the points nearest to its middle, by one system of equations.

    Returns:
        The predictions.
    """
    count = min(NEIGHBOURS[known.shape[1]], len(known))
    if blocks is None or not len(at):
        return _predict(known, values, at, *_nearest(known, at, count))
    _, block, sizes = np.unique(blocks, return_inverse=True, return_counts=True)
    middles = np.stack([np.bincount(block, column) for column in at.T], axis=1) / sizes[:, None]
    reach = np.zeros(len(sizes))
    np.maximum.at(reach, block, np.linalg.norm(at - middles[block], axis=1))
    distance, nearest = _nearest(known, middles, count)
    small = (reach <= _SMALL * distance[:, min(3, count - 1)]) & (sizes > 1)
    alone = ~small[block]
    found = Predictions(np.empty((len(at), values.shape[1])), np.empty(len(at)), nearest[block])
    one_by_one = _predict(known, values, at[alone], *_nearest(known, at[alone], count))
    for whole, part in zip(found, one_by_one, strict=True):
        whole[alone] = part
    members = np.argsort(block, kind="stable")
    slots = members[np.minimum(np.cumsum(sizes)[:, None] - 1, (np.cumsum(sizes) - sizes)[:, None] + np.arange(sizes.max()))]
    chunk = max(1, _CHUNK // 2)
    for start in range(0, int(small.sum()), chunk):
        part = np.flatnonzero(small)[start : start + chunk]
        weights, power = _weights(known, at[slots[part]], distance[part, -1], nearest[part])
        found.power[slots[part]] = power
        found.values[slots[part]] = np.matmul(weights, values[nearest[part]])
    return found


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
        weights, energies = _weights(known, at[part, None], distance[part, -1], nearest[part])
        predicted[part], power[part] = np.einsum("mk,mkc->mc", weights[:, 0], values[nearest[part]]), energies[:, 0]
    return Predictions(predicted, power, nearest)


def _weights(known: Array, at: Array, radius: Array, nearest: NDArray[np.intp]) -> tuple[Array, Array]:
    """Return weights (m, s, k) of the neighbours (m, k), and the power function (m, s), of s places (m, s, d) with the same neighbours.

    With A = phi(|x_i - x_j|), b = phi(|x_i - x|) and linear polynomials p they solve [A p; p' 0] [w; v] = [b; p(x)]; P^2 = w'Aw - 2 w'b.
    """
    (m, k), s, d = nearest.shape, at.shape[1], at.shape[2]
    origin, unit = at[:, :1], radius[:, None, None]  # lengths in units of the neighbourhood's
    places, there = (known[nearest] - origin) / unit, (at - origin) / unit
    between, right = np.zeros((m, k, k)), np.zeros((m, k + d + 1, s))
    for axis in range(d):
        between += np.square(places[:, :, None, axis] - places[:, None, :, axis])
        right[:, :k] += np.square(places[:, :, None, axis] - there[:, None, :, axis])
    between *= np.sqrt(between)
    right[:, :k] *= np.sqrt(right[:, :k])
    right[:, k], right[:, k + 1 :] = 1, there.transpose(0, 2, 1)
    system = np.zeros((m, k + d + 1, k + d + 1))
    system[:, :k, :k] = between
    system[:, :k, k] = system[:, k, :k] = 1
    system[:, :k, k + 1 :] = places
    system[:, k + 1 :, :k] = places.transpose(0, 2, 1)
    diagonal = np.arange(k, k + d + 1)
    system[:, diagonal, diagonal] = -_RIDGE
    weights = np.ascontiguousarray(np.linalg.solve(system, right)[:, :k].transpose(0, 2, 1))
    energy = np.einsum("msi,msi->ms", np.matmul(weights, between), weights) - 2 * np.einsum("msi,mis->ms", weights, right[:, :k])
    return weights, np.sqrt(np.maximum(energy, 0)) * radius[:, None] ** 1.5
