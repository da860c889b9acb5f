"""A vector of the size of the model is a list of tensors, one per parameter; these are its few operations.

Nothing here moves a number to the host. Functions whose name ends in an underscore write into their first argument.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

Scalar = float | Tensor


def accumulation_dtype(xs: Sequence[Tensor]) -> torch.dtype:
    """Return the dtype in which sums over `xs` are kept: float32, or float64 as soon as one tensor is float64."""
    return torch.float64 if any(x.dtype == torch.float64 for x in xs) else torch.float32


def norm(xs: Sequence[Tensor]) -> Tensor:
    """Return the 2-norm of all entries together, a 0-dim tensor (`torch._foreach`: not for use inside vmap).

    Summed in float64, where no square of a float32 number under- or overflows.
    """
    parts = torch._foreach_norm(list(xs), 2, dtype=torch.float64)
    return torch.linalg.vector_norm(torch.stack([part.to(parts[0].device) for part in parts]))


def pure_norm(xs: Sequence[Tensor], ord: float = 2.0) -> Tensor:
    """Return the `ord`-norm of all entries together in differentiable, vmap-able operations.

    Summed in float64; orders other than 1, 2 and inf are taken relative to the largest entry, so that |x|**ord neither
    under- nor overflows.
    """
    device, dtype = xs[0].device, torch.float64
    xs = [x for x in xs if x.numel()]
    if not xs:
        return torch.zeros((), dtype=dtype, device=device)
    parts = torch.stack([torch.linalg.vector_norm(x, math.inf if ord not in (1, 2) else ord, dtype=dtype).to(device) for x in xs])
    if ord in (1, 2, math.inf):
        return torch.linalg.vector_norm(parts, ord)
    largest = safe(parts.amax())
    scaled = [torch.linalg.vector_norm((x / largest.to(x.device)).to(x.dtype), ord, dtype=dtype).to(device) for x in xs]
    return torch.linalg.vector_norm(torch.stack(scaled), ord) * largest


def dot(xs: Sequence[Tensor], ys: Sequence[Tensor]) -> Tensor:
    """Return <xs, ys>, a 0-dim tensor."""
    dtype = accumulation_dtype(xs)
    parts = [torch.dot(x.reshape(-1).to(dtype), y.reshape(-1).to(dtype)) for x, y in zip(xs, ys, strict=True)]
    return torch.stack([part.to(xs[0].device) for part in parts]).sum()


def safe(denominator: Tensor) -> Tensor:
    """Return `denominator` with 1 in place of 0: the zero vector over its norm is then the zero vector, and nothing else moves."""
    return torch.where(denominator == 0, torch.ones_like(denominator), denominator)


def inverse(length: Tensor, like: Sequence[Tensor]) -> Tensor:
    """Return 1 / length, finite in the dtype in which it is going to multiply `like`; 1 where the length is 0."""
    return (1 / safe(length)).clamp(max=torch.finfo(accumulation_dtype(like)).max)


def about_unit_(xs: list[Tensor]) -> tuple[list[Tensor], Tensor]:
    """Multiply by a power of two, so that no bit is lost and the norm is in [1, 2); return the factor too."""
    factor = torch.exp2(-torch.floor(torch.log2(safe(norm(xs)))))
    factor = factor.clamp(max=torch.finfo(accumulation_dtype(xs)).max)
    return scale_(xs, factor), factor


def clone(xs: Sequence[Tensor]) -> list[Tensor]:
    """Return copies of the values, with the strides of the originals and without their graph."""
    with torch.no_grad():
        return [x.clone() for x in xs]


def one_device(xs: Sequence[Tensor]) -> bool:
    """Say whether all tensors are on one device."""
    return all(x.device == xs[0].device for x in xs)


def scale_(xs: list[Tensor], by: Scalar | Sequence[float]) -> list[Tensor]:
    """Multiply by one number (also a 0-dim tensor), or by one number per tensor."""
    if not xs:
        return xs
    if isinstance(by, Tensor):
        by = by.to(xs[0].device, accumulation_dtype(xs))
    if isinstance(by, Tensor) and not one_device(xs):
        for x in xs:
            x.mul_(by.to(x.device))
    elif isinstance(by, Sequence):
        torch._foreach_mul_(xs, list(by))
    else:
        torch._foreach_mul_(xs, by)
    return xs


def add_(xs: list[Tensor], ys: Sequence[Tensor], times: Scalar = 1.0) -> list[Tensor]:
    """Add `times` * ys to xs."""
    if not xs:
        return xs
    if isinstance(times, Tensor):
        torch._foreach_add_(xs, [y * times.to(y.device, y.dtype) for y in ys])
    else:
        torch._foreach_add_(xs, list(ys), alpha=times)
    return xs


def copy_(xs: Sequence[Tensor], ys: Sequence[Tensor]) -> None:
    """Overwrite xs with ys, bit for bit."""
    if xs:
        torch._foreach_copy_(list(xs), list(ys))
