r"""The ball that an ascent stays in, {eps = T u: ||u||_p <= rho}, with T = 1, or T = |w| + eta for adaptive measures.

Ascent of several steps works with u: there the ellipsoid {||T^-1 eps||_p <= rho} is a ball, the steepest direction is d_p(T g)
(`sam_core.optim.ascent.dual`, the climb that is trained with), and the nearest point of the ball is known exactly for every p. The
gradient with respect to u is T g, so step and projection belong to one geometry. Where T = 0 (a zero weight, eta = 0) nothing moves.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from sam_core.optim.ascent import PNorm, dual

_BISECTIONS = 56
_NEWTON = 7  # from a bound at which both terms of the equation are at most twice too large


class Ball:
    """The ball of an ascent around some weights.

    Args:
        ascent: rho, p, adaptive and eta.
        weights: the centre.
    """

    def __init__(self, ascent: PNorm, weights: Sequence[Tensor]) -> None:
        assert ascent.rho is not None
        self.rho, self.p = float(ascent.rho), ascent.p
        self.weights = list(weights)
        self.scale = [w.abs() + ascent.eta for w in weights] if ascent.adaptive else None

    def centre(self) -> list[Tensor]:
        """Return u = 0."""
        return [torch.zeros_like(w) for w in self.weights]

    def point(self, u: Sequence[Tensor]) -> list[Tensor]:
        """Return the weights w + T u."""
        if self.scale is None:
            return [w + x for w, x in zip(self.weights, u, strict=True)]
        return [w + t * x for w, t, x in zip(self.weights, self.scale, u, strict=True)]

    def uphill(self, gradients: Sequence[Tensor]) -> list[Tensor]:
        """Return the steepest direction d_p(T g) in u, of p-norm one."""
        pulled = gradients if self.scale is None else [t * g for t, g in zip(self.scale, gradients, strict=True)]
        return dual(pulled, self.p)

    def project(self, u: Sequence[Tensor]) -> list[Tensor]:
        """Return the point of the ball that is nearest to u, in the Euclidean distance of u."""
        if self.p == math.inf:
            return [x.clamp(-self.rho, self.rho) for x in u]
        flat = torch.cat([x.reshape(-1) for x in u])
        if self.p == 2:
            norm = torch.linalg.vector_norm(flat)
            near = flat * torch.where(norm > self.rho, self.rho / norm.clamp(min=torch.finfo(flat.dtype).tiny), 1.0)
        elif self.p == 1:
            near = _onto_cross_polytope(flat, self.rho)
        else:
            near = _onto_p_ball(flat.double(), self.rho, self.p).to(flat.dtype)
        return [part.view_as(x) for part, x in zip(torch.split(near, [x.numel() for x in u]), u, strict=True)]

    def random(self, generator: np.random.Generator) -> list[Tensor]:
        """Return a point drawn uniformly from the ball (Barthe et al. 2005, arXiv math/0503650)."""
        n = sum(w.numel() for w in self.weights)
        if self.p == math.inf:
            values = generator.uniform(-1, 1, n)
        else:
            powers = generator.standard_gamma(1 / self.p, n)
            values = generator.choice([-1.0, 1.0], n) * (powers / (powers.sum() + generator.standard_exponential())) ** (1 / self.p)
        drawn = torch.from_numpy(self.rho * values).to(self.weights[0])
        return [part.view_as(w) for part, w in zip(torch.split(drawn, [w.numel() for w in self.weights]), self.weights, strict=True)]


def _onto_cross_polytope(v: Tensor, rho: float) -> Tensor:
    """Shrink entries by the threshold theta = max_k (S_k - rho) / k, S_k the sum of the k largest (Duchi et al. 2008)."""
    sums = v.abs().sort(descending=True).values.cumsum(0)
    theta = ((sums - rho) / torch.arange(1, len(v) + 1, dtype=v.dtype, device=v.device)).amax().clamp(min=0)
    return v.sign() * (v.abs() - theta).clamp(min=0)


def _onto_p_ball(v: Tensor, rho: float, p: float) -> Tensor:
    """Solve x + mu x^(p-1) = |v| entry by entry with ||x||_p = rho: bisection for mu, Newton's method for x.

    For p < 2 the unknown is y = x^(p-1) instead: either equation is convex and increasing, so that Newton's method from an upper bound
    falls to the root without passing it.

    Args:
        v: the point (n,), in float64.
        rho: radius of the ball.
        p: above 1, neither 2 nor infinite.

    Returns:
        The nearest point of the ball.
    """
    norm = torch.linalg.vector_norm(v, p)
    inside = norm <= rho
    a = v.abs() / norm.clamp(min=torch.finfo(v.dtype).tiny)  # scaled to norm one: the radius is r < 1
    r = (rho / norm.clamp(min=torch.finfo(v.dtype).tiny)).clamp(max=1.0)

    def shrunk(mu: Tensor) -> Tensor:
        if p > 2:
            x = torch.minimum(a, (a / mu) ** (1 / (p - 1)))
            for _ in range(_NEWTON):
                power = x ** (p - 2)
                x = x - (x + mu * power * x - a) / (1 + mu * (p - 1) * power)
            return x.clamp(min=0)
        k = 1 / (p - 1)
        y = torch.minimum(a / mu, a ** (p - 1))
        for _ in range(_NEWTON):
            y = y - (y**k + mu * y - a) / (k * y ** (k - 1) + mu)
        return y.clamp(min=0) ** k

    # log mu: at the upper end every x is below r n^(-1/p), as x <= (a / mu)^(1/(p-1)) and a <= 1.
    low, high = torch.full_like(norm, -40.0), (p - 1) * (math.log(len(v)) / p - r.log()) + 1.0
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        outside = torch.linalg.vector_norm(shrunk(middle.exp()), p) > r
        low, high = torch.where(outside, middle, low), torch.where(outside, high, middle)
    x = shrunk(((low + high) / 2).exp())
    # What the bisection leaves over is rounding; the point must lie in the ball.
    x = x * (r / torch.linalg.vector_norm(x, p).clamp(min=torch.finfo(v.dtype).tiny))
    return torch.where(inside, v, v.sign() * x * norm)
