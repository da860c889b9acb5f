"""Eigenpairs that were computed before, and whether they are this operator's."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from landscape.curvature.complement import Counted, Known, inside
from landscape.curvature.operators import Operator
from landscape.provenance import differing
from landscape.results.types import Eigenpairs, Provenance

_WORDS = {"parameter_sha256": "weights", "data_sha256": "data", "varied_sha256": "choice of parameters", "loss_at_parameters": "loss"}


class Given:
    """Eigenpairs that came from outside.

    Args:
        eigenpairs: with vectors.
        operator: that they should belong to.
        now: what the operator was made of.

    Raises:
        ValueError: They hold no vectors, or vectors of another length, or are of other weights, data or another loss.
    """

    def __init__(self, eigenpairs: Eigenpairs, operator: Operator, now: Provenance) -> None:
        self.eigenpairs = eigenpairs
        self.vectors = _vectors(eigenpairs, operator)
        self.proven = _belongs(eigenpairs, operator, now)
        basis, projected = eigenpairs.basis, eigenpairs.projected
        if basis is None or projected is None:
            self.known = Known(self.vectors, np.diag(eigenpairs.values))
        else:
            self.known = Known(basis.to(operator.device, torch.promote_types(operator.dtype, torch.float32)), projected)

    def belongs(self, probes: Tensor, products: Tensor) -> bool:
        """Tell whether these are eigenpairs of the operator that a few products H z are of.

        v . H z = lambda v . z up to the residual, for an eigenvector v of this operator: a look that costs no product.

        Args:
            probes: z (n, k).
            products: H z (n, k).

        Returns:
            Whether it holds for all of them.

        Raises:
            ValueError: It does not, though they are of the same weights, data and loss.
        """
        pairs, vectors, basis = self.eigenpairs, self.vectors, self.known.basis
        there, here = inside(probes, vectors).double().cpu().numpy(), inside(products, vectors).double().cpu().numpy()
        noise = 100 * torch.finfo(products.dtype).eps * float(torch.linalg.vector_norm(products, dim=0).max())
        fits = np.abs(here - pairs.values[:, None] * there) <= 10 * pairs.residuals[:, None] + noise
        gram = torch.stack([basis @ row for row in basis])
        orthonormal = bool((gram - torch.eye(len(basis), dtype=basis.dtype, device=basis.device)).abs().max() < 1e-3)
        if bool(fits.all()) and orthonormal:
            return True
        if self.proven:
            raise ValueError("eigenpairs belongs to another operator of the same loss: compute it with top_eigenpairs on this one")
        return False

    def known_after(self, operator: Counted, probes: Tensor, products: Tensor) -> Known:
        """Return what is known of the operator on the span of the vectors, after a look at a few products.

        Args:
            operator: the operator, for a product with each vector where it cannot be seen that they are its own.
            probes: z (n, k).
            products: H z (n, k).

        Returns:
            A basis and the operator on it.
        """
        if self.belongs(probes, products) and self.proven is not False:
            return self.known
        vectors = torch.linalg.qr(self.vectors.T).Q.T.contiguous()
        images = operator.matmat(vectors.T.to(operator.dtype))
        projected = inside(images, vectors).double().cpu().numpy()
        return Known(vectors, (projected + projected.T) / 2)


def _vectors(eigenpairs: Eigenpairs, operator: Operator) -> Tensor:
    """Return the eigenvectors (k, n) where the operator is."""
    if eigenpairs.vectors is None:
        raise ValueError("eigenpairs holds no vectors; compute it with top_eigenpairs and pass it on unsaved, or saved with its vectors")
    if eigenpairs.vectors.shape[1] != operator.size:
        raise ValueError(f"eigenpairs has vectors of length {eigenpairs.vectors.shape[1]}, the operator has size {operator.size}")
    return eigenpairs.vectors.to(operator.device, torch.promote_types(operator.dtype, torch.float32))


def _belongs(eigenpairs: Eigenpairs, operator: Operator, now: Provenance) -> bool | None:
    """Tell whether weights, data and loss are the eigenpairs' own; None where nothing is written down about them."""
    then, there, here = eigenpairs.provenance, eigenpairs.point, operator.point
    if operator.objective is None or here is None or not then.parameter_sha256:
        return None
    own = operator.objective.parameters
    differ = [_WORDS.get(name, name) for name in differing(then, now) if name not in ("dtype", "device")]
    if there is not None and then.dtype == now.dtype and not _equal(there, here):
        differ.append("point")
    if differ:
        raise ValueError(f"eigenpairs belongs to another operator (other {', '.join(differ)}): compute it with top_eigenpairs on this one")
    return then.dtype == now.dtype and (there is not None or _equal(own, here))


def _equal(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return list(one) == list(other) and all(torch.equal(p.to(other[name].device), other[name]) for name, p in one.items())
