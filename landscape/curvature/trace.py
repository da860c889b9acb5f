"""The trace of an operator from products with random vectors, with an error bar."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch

from landscape.curvature.complement import Counted
from landscape.curvature.deflation import Deflated, HutchPlusPlus
from landscape.curvature.given import Given
from landscape.curvature.hutchinson import MIN_PROBES, Hutchinson
from landscape.curvature.lanczos import generator_for
from landscape.curvature.operators import Operator, as_operator, undisturbed
from landscape.curvature.xtrace import XTrace
from landscape.objective import Objective
from landscape.progress import progress as progress_bar
from landscape.results.types import Cost, Eigenpairs, Provenance, TraceEstimate

Method = Literal["deflated", "hutchinson", "hutch++", "xtrace"]

_METHODS = ("deflated", "hutchinson", "hutch++", "xtrace")


def hessian_trace(
    of: Objective | Operator,
    *,
    tol: float = 0.05,
    method: Method | None = None,
    max_matvecs: int = 500,
    seed: int = 0,
    eigenpairs: Eigenpairs | None = None,
    memory_budget: float = 2 * 2**30,
    progress: bool | None = None,
) -> TraceEstimate:
    r"""Estimate the trace of the Hessian until the standard error is at most tol * |trace|.

    Four estimators, all unbiased (z are random signs):

    * "hutchinson": E[z . H z]; its variance is 2 ||H||_F^2 but for the diagonal, so a few outliers make it slow.
    * "deflated": tr(Q H Q^T) + E[Pz . H Pz] with P = 1 - Q^T Q and a Lanczos basis Q, one product a vector. With `eigenpairs` it begins
      with the basis that these were found in, at no product. It grows while a vector spares more than a probe.
    * "hutch++": the same with Q the range of random images, two products a vector (Meyer et al. 2021).
    * "xtrace": every probe serves for the basis of all the others, two products a probe (Epperly, Tropp and Webber 2024).

    Where n products cost less than those still needed, the diagonal is summed exactly.

    Args:
        of: an objective, for its Hessian; or an operator.
        tol: relative standard error to stop at.
        method: the estimator; None for "deflated", which had the smallest error per product or nearly so on every spectrum tried.
        max_matvecs: products at most; the result then says that it did not converge.
        seed: of the probes, the same ones for every operator of this size; no global random state is used.
        eigenpairs: of the same operator, to take out of the estimate, with the basis they were found in if they still have it. Where it
            cannot be seen that they belong to it, a product with each vector makes up for that.
        memory_budget: bytes that a basis may take.
        progress: show a progress bar; None if stderr is a terminal.

    Returns:
        The trace and a standard error, widened for few and skewed probes and for the stop, such that value ± 1.96 stderr covers in 95 %
        of all runs.

    Raises:
        ValueError: an argument is outside what is allowed, or `eigenpairs` belongs to other weights, data or another loss.
    """
    if not tol > 0:
        raise ValueError(f"tol must be positive, got {tol!r}")
    if method is not None and method not in _METHODS:
        raise ValueError(f"method must be None or one of {', '.join(map(repr, _METHODS))}, got {method!r}")
    if eigenpairs is not None and method not in (None, "deflated"):
        raise ValueError(f"eigenpairs is for method 'deflated', got method {method!r}: leave one of them out")
    if not isinstance(max_matvecs, int) or max_matvecs < 3:
        raise ValueError(f"max_matvecs must be an integer of at least 3, got {max_matvecs!r}")
    if not memory_budget >= 0:
        raise ValueError(f"memory_budget must be a number of bytes, at least 0, got {memory_budget!r}")
    operator = as_operator(of)
    n, objective = operator.size, operator.objective
    provenance = objective.provenance(seed) if objective else Provenance()
    given = None if eigenpairs is None else Given(eigenpairs, operator, provenance)
    meter = objective.meter() if objective else None
    exact: tuple[float, float] | None = None
    with undisturbed(operator), progress_bar(None, "trace", "product", show=progress) as bar:
        counted = Counted(operator, max_matvecs, bar.update)
        estimator = _estimator(method or "deflated", counted, seed, given, min(memory_budget, 2**62))
        while True:
            needed = estimator.needed(tol)
            bar.total = min(counted.products + needed, max_matvecs)
            if estimator.ready and needed == 0:
                break
            if n <= counted.left and (n <= MIN_PROBES or (estimator.ready and n <= needed)):
                exact = _sum_of_diagonal(counted)
                break
            if not estimator.advance(tol):
                break
        samples = estimator.samples
    if exact is not None:
        (value, stderr), samples = exact, np.array([exact[0]])
    else:
        value, stderr = (float(samples.mean()), estimator.stderr) if len(samples) else (float("nan"), float("inf"))
    return TraceEstimate(
        value=value,
        stderr=stderr,
        samples=samples,
        matvecs=counted.products,
        converged=exact is not None or (estimator.ready and stderr <= tol * abs(value)),
        tol=tol,
        method="exact" if exact is not None else estimator.name,
        cost=meter.cost() if meter else Cost(),
        provenance=provenance,
    )


def _estimator(method: str, operator: Counted, seed: int, given: Given | None, memory_budget: float) -> Hutchinson | XTrace:
    generator = generator_for(operator, seed)
    if method == "deflated":
        return Deflated(operator, generator, given.known if given else None, given.known_after if given else None, memory_budget)
    if method == "hutch++":
        return HutchPlusPlus(operator, generator, memory_budget)
    return XTrace(operator, generator) if method == "xtrace" else Hutchinson(operator, generator)


def _sum_of_diagonal(operator: Counted) -> tuple[float, float]:
    """Return the trace from n products, and the size of its rounding error."""
    basis = torch.eye(operator.size, dtype=operator.dtype, device=operator.device)  # n is at most max_matvecs here
    diagonal = torch.cat([operator.matmat(columns).mul_(columns).sum(0, dtype=torch.float64) for columns in basis.split(32, 1)])
    rounding = 10 * torch.finfo(operator.dtype).eps * diagonal.abs().sum()
    return float(diagonal.sum()), float(rounding)
