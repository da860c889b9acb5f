"""Bases on which a trace is known, for Hutchinson's estimator on the rest: a Lanczos basis, or the range of random images."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from landscape.curvature.complement import Complement, Counted, Known, column_dots, inside, length_of, signs, without
from landscape.curvature.hutchinson import MIN_PROBES, Hutchinson
from landscape.curvature.lanczos import Lanczos, generator_for
from landscape.results.types import Array

_PILOTS = 8  # probes before the basis: they tell how far it should grow, and count as samples in the end
_WIDENED = 1.5  # the square of what error bars are longer than the spread over the usual number of probes
_BESIDE = 0x5DEECE66  # makes one seed another
_PATIENCE = 3  # steps that do not pay before the basis is taken as it is


class Deflated(Hutchinson):
    """Hutchinson's estimator on the complement of a Lanczos basis, which costs one product a vector: Q H Q^T comes with it.

    A few probes come first. They say how large the rest ||P H P||_F^2 is, and so how many probes a step of Lanczos spares: the basis
    grows while that is more than one (the rule of Persson, Cortinovis and Kressner 2022 for their sketch). A basis that is there
    already, from eigenvalues, is where it begins.

    Args:
        operator: H.
        generator: draws the probes and the start vector.
        given: a basis that is there already.
        check: called with the operator, the first probes and their products before anything relies on `given`; it returns what to use.
        memory_budget: bytes that the basis may take.
    """

    name = "deflated"

    def __init__(
        self,
        operator: Counted,
        generator: torch.Generator,
        given: Known | None,
        check: Callable[[Counted, Tensor, Tensor], Known] | None,
        memory_budget: float,
    ) -> None:
        super().__init__(operator, generator, given)
        self._check = check
        self._pilots: tuple[Tensor, Tensor] | None = None
        self._grown = False
        itemsize = torch.promote_types(operator.dtype, torch.float32).itemsize
        self._room = int(memory_budget // (operator.size * itemsize)) - (len(given.basis) if given else 0)

    def needed(self, tol: float) -> int:
        """Return how many products are still needed, as far as can be seen now."""
        return super().needed(tol) if self._grown else MIN_PROBES

    def advance(self, tol: float) -> bool:
        """Take a few more products; False where the operator allows no more."""
        if self._pilots is None and not self._grown:
            count = min(_PILOTS, self.operator.left)
            if count < 1:
                return False
            probes = signs(self.operator, count, self.generator)
            self._pilots = probes, self.operator.matmat(probes)
            if self._check is not None:
                self.known = self._check(self.operator, *self._pilots)
            return True
        if self._pilots is not None:
            probes, products = self._pilots
            self._grow(tol, probes, products)
            self.take(probes, products)
            self._pilots, self._grown = None, True
            return True
        return super().advance(tol)

    def _grow(self, tol: float, probes: Tensor, products: Tensor) -> None:
        """Extend the basis by Lanczos on P H P as long as a step spares more than a probe."""
        pilot = Hutchinson(self.operator, self.generator, self.known)
        pilot.take(probes, products)
        samples, left = pilot.samples, self.operator.left
        given = None if self.known is None else self.known.basis
        most = min(self._room, left // 2, left - MIN_PROBES + len(samples), self.operator.size // 2 - (0 if given is None else len(given)))
        if len(samples) < 3 or most < 1:
            return
        target = tol * abs(float(samples.mean()))
        rest = without(products, given)
        norm = _mean_square(rest)
        # Twice the squared norm bounds the variance. Probes that agree say that most of it is on the diagonal, where it does no harm.
        share = min(1.0, 2 * float(samples.var(ddof=1)) / norm) if norm else 0.0
        if _WIDENED * 2 * share * norm <= MIN_PROBES * target**2:
            return
        complement = _Recorded(self.operator, given)
        # Drawn beside the probes: these are the same for all operators of this size, so that two traces can be compared probe by probe.
        beside = generator_for(self.operator, self.generator.initial_seed() ^ _BESIDE)
        start = torch.randn(self.operator.size, generator=beside, dtype=torch.float32, device=self.operator.device)
        start = complement.project(start.to(torch.promote_types(self.operator.dtype, torch.float32)))
        lanczos = Lanczos(complement, beside, start)
        idle = 0
        while lanczos.size < most and not lanczos.broken_down:
            lanczos.step()
            gain, beyond = complement.gain(lanczos.matrix[:, -1])
            rest = without(rest, complement.asked[-1][None])
            norm = share * _mean_square(rest)
            # A step pays if it spares a probe: of those that the target needs, or of those that there is room for.
            worth = max(target**2 / (2 * _WIDENED), norm / max(self.operator.left, 1))
            idle = idle + 1 if gain < worth else 0
            if idle >= _PATIENCE or beyond <= math.sqrt(torch.finfo(self.operator.dtype).eps) * lanczos.scale:
                break
        self.known = complement.joined(self.known, lanczos.matrix)


class _Recorded(Complement):
    """P H P that remembers what it was asked."""

    def __init__(self, operator: Counted, basis: Tensor | None) -> None:
        super().__init__(operator, basis)
        self.asked: list[Tensor] = []
        self._beside: list[Array] = []  # Q H q for every q asked
        self._length = 0.0  # of the last product

    def matvec(self, vector: Tensor) -> Tensor:
        """Return P H P v for a vector (n,)."""
        self.asked.append(self.project(vector))
        product = self.operator.matvec(self.asked[-1])
        if self.basis is not None:
            self._beside.append((self.basis @ product.to(self.basis.dtype)).double().cpu().numpy())
        product = self.project(product)
        self._length = float(torch.linalg.vector_norm(product, dtype=torch.float64))
        return product

    def gain(self, column: Array) -> tuple[float, float]:
        """Return by how much the last vector lowers ||P H P||_F^2 once it is taken out too, and the norm of its product beyond the basis.

        Args:
            column: the product's coefficients along all vectors asked, the last one included.
        """
        before, own = float(np.square(column[:-1]).sum()), float(column[-1])
        beyond = max(self._length**2 - before - own**2, 0.0)
        return 2 * beyond + own**2, math.sqrt(beyond)

    def joined(self, known: Known | None, matrix: Array) -> Known:
        """Return all that is known now: on what was taken out before, and on the vectors asked."""
        new = torch.stack(self.asked)
        if known is None:
            return Known(new, matrix)
        across = np.stack(self._beside, 1)
        return Known(torch.cat([known.basis.to(new.dtype), new]), np.block([[known.projected, across], [across.T, matrix]]))


class HutchPlusPlus(Hutchinson):
    """Hutch++ (Meyer, Musco, Musco and Woodruff 2021): the complement of the range of H S for random signs S.

    Two products a vector, for the image and for Q H Q^T. Like the sketch of Persson, Cortinovis and Kressner (2022) it grows while a vector
    spares more products than it costs; at most two thirds of the products go into it.

    Args:
        operator: H.
        generator: draws sketch and probes.
        memory_budget: bytes that the basis may take.
    """

    name = "hutch++"

    def __init__(self, operator: Counted, generator: torch.Generator, memory_budget: float) -> None:
        super().__init__(operator, generator)
        itemsize = torch.promote_types(operator.dtype, torch.float32).itemsize
        room = int(memory_budget // (operator.size * itemsize))
        self._most = max(0, min(operator.limit // 3, (operator.limit - MIN_PROBES) // 2, operator.size // 4, room))
        self._first: list[float] = []  # s . H s of the sketch: a first idea of the trace
        self._sketched = False

    def needed(self, tol: float) -> int:
        """Return how many products are still needed, as far as can be seen now."""
        return super().needed(tol) if self._sketched else MIN_PROBES

    def advance(self, tol: float) -> bool:
        """Take a few more products; False where the operator allows no more."""
        if self._sketched:
            return super().advance(tol)
        have = 0 if self.known is None else len(self.known.basis)
        count = min(_PILOTS, self._most - have, self.operator.left // 2)
        if count < 1:
            self._sketched = True
            return super().advance(tol)
        sketch = signs(self.operator, count, self.generator)
        images = self.operator.matmat(sketch)
        self._first += column_dots(sketch, images).tolist()
        self._sketched = not self._extend(images, tol)
        return True

    def _extend(self, images: Tensor, tol: float) -> bool:
        """Take the range of the images into the basis; tell whether more would pay."""
        dtype = torch.promote_types(self.operator.dtype, torch.float32)
        basis = torch.zeros(0, self.operator.size, dtype=dtype, device=self.operator.device) if self.known is None else self.known.basis
        old = len(basis)
        noise = 100 * torch.finfo(self.operator.dtype).eps
        for image in images.unbind(1):
            length = length_of(image)
            rest = without(image.to(dtype), basis)
            left = length_of(rest)
            if left > noise * length:
                basis = torch.cat([basis, without(rest / left, basis)[None]])
        if len(basis) == old:
            return False  # the range is complete
        products = self.operator.matmat(basis[old:].T.to(self.operator.dtype))
        columns = inside(products, basis).double().cpu().numpy()
        projected = np.zeros((len(basis), len(basis)))
        if self.known is not None:
            projected[:old, :old] = self.known.projected
        projected[:, old:], projected[old:, :] = columns, columns.T
        self.known = Known(basis, (projected + projected.T) / 2)
        lengths = column_dots(products, products).cpu().numpy()
        beyond = np.maximum(lengths - np.square(columns).sum(0), 0)
        gains = 2 * beyond + np.square(columns[old:]).sum(0)
        target = tol * abs(float(np.mean(self._first)))
        return bool(gains.mean() > 2 * target**2 / (2 * _WIDENED))  # two products a vector


def _mean_square(columns: Tensor) -> float:
    return float(column_dots(columns, columns).mean())
