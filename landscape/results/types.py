"""What a measurement returns: values, how far to trust them, what they cost and what they were computed on.

Numbers are float64 NumPy arrays; only eigenvectors stay tensors, on the device where they were computed. Every type is frozen.
Nothing here computes: the wings of the package fill these types, the store keeps them, the plots draw them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from landscape.results.numbers import NONE, with_error
from landscape.results.result import Cost, Provenance, Result

__all__ = [
    "Array",
    "Cost",
    "CurvatureTrace",
    "Eigenpairs",
    "GradientTrace",
    "LossPath",
    "PlaneRecord",
    "Provenance",
    "Result",
    "Sharpness",
    "SpectralDensity",
    "Subsampled",
    "Surface",
    "TraceEstimate",
    "TrainingHistory",
]

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False, repr=False)
class Eigenpairs(Result):
    """Eigenvalues of a symmetric operator, sorted by descending absolute value."""

    kind: ClassVar[str] = "eigen"

    values: Array  # (k,)
    residuals: Array  # (k,) ||H v - lambda v||, so an eigenvalue of H lies within it of lambda
    vectors: Tensor | None  # (k, n), orthonormal rows; None where they were not kept
    matvecs: int
    converged: bool  # every residual is at most tol * max |lambda|
    tol: float
    which: str = "magnitude"
    point: Mapping[str, Tensor] | None = None  # where the operator was taken, by parameter name; not written to files
    basis: Tensor | None = None  # (m, n), orthonormal rows Q whose span holds `vectors`, kept to be used again; not written to files
    projected: Array | None = None  # (m, m), Q H Q^T; not written to files

    def summary(self) -> str:
        """Return the eigenvalues with their residuals."""
        shown = ", ".join(with_error(v, r) for v, r in zip(self.values[:5], self.residuals[:5], strict=True))
        return f"{shown}{', ...' if len(self.values) > 5 else ''} ({'' if self.converged else 'NOT '}converged, {self.matvecs} products)"


@dataclass(frozen=True, eq=False, repr=False)
class TraceEstimate(Result):
    """Trace of a symmetric operator from random probes."""

    kind: ClassVar[str] = "trace"

    value: float
    stderr: float  # standard error of value
    samples: Array  # (probes,) the estimate of each probe
    matvecs: int
    converged: bool  # stderr is at most tol * |value|
    tol: float
    method: str = "hutchinson"

    def summary(self) -> str:
        """Return the trace with its standard error."""
        return f"{with_error(self.value, self.stderr)} ({'' if self.converged else 'NOT '}converged, {self.matvecs} products)"


@dataclass(frozen=True, eq=False, repr=False)
class SpectralDensity(Result):
    """Density of a spectrum by stochastic Lanczos quadrature; it integrates to one."""

    kind: ClassVar[str] = "density"

    grid: Array  # (g,) eigenvalue
    density: Array  # (g,) per unit of eigenvalue
    stderr: Array  # (g,) over probes
    nodes: Array  # (probes, steps) Ritz values
    weights: Array  # (probes, steps) their weights; each row sums to one
    sigma: float  # width of the Gaussian that each Ritz value is drawn with
    matvecs: int
    outliers: Array | None = None  # (k,) eigenvalues that lie apart from all others, known one by one; None where nobody looked
    share_stderr: float | None = None  # the largest standard error, over probes, of the share of eigenvalues below any value

    def summary(self) -> str:
        """Return the range of the spectrum, what lies apart, and how well shares of eigenvalues are known."""
        ends = f"{self.nodes.min():.4g} ... {self.nodes.max():.4g}" if self.nodes.size else NONE
        text = f"Ritz values {ends} from {self.nodes.shape[0]} probes"
        if self.outliers is not None:
            text += f", {len(self.outliers)} outlier{'' if len(self.outliers) == 1 else 's'}"
        return text if self.share_stderr is None else f"{text}, shares ± {self.share_stderr:.1g}"


@dataclass(frozen=True, eq=False, repr=False)
class Subsampled(Result):
    """Numbers measured on a data set and on parts of it, with the error that comes from having these examples and no others."""

    kind: ClassVar[str] = "subsampled"

    measure: str
    values: Array  # (q,) on all examples
    stderr: Array  # (q,) standard error of values: of the choice of examples, of a finite sample's bias, and of the measurement itself
    bias: Array  # (q,) by how much values are too large on average because the examples are few; part of stderr, not taken off
    per_part: Array  # (parts, q) on one part alone, or on all but one
    part_sizes: Array  # (parts,) the weights of the parts
    leave_out: bool  # per_part is on all examples but those of the part
    converged: bool  # every measurement was

    def summary(self) -> str:
        """Return the values with their standard errors."""
        shown = ", ".join(with_error(v, e) for v, e in zip(self.values[:5], self.stderr[:5], strict=True))
        kind = "all but one of" if self.leave_out else "each of"
        more = ", ..." if len(self.values) > 5 else ""
        return f"{self.measure} {shown}{more} ({'' if self.converged else 'NOT '}converged, over {kind} {len(self.per_part)} parts)"


@dataclass(frozen=True, eq=False, repr=False)
class Sharpness(Result):
    """A sharpness measure: a mean over shards or draws and its standard error."""

    kind: ClassVar[str] = "sharpness"

    measure: str
    value: float
    stderr: float
    per_shard: Array  # (shards,)
    shard_sizes: Array  # (shards,) the weights of the mean
    rho: float
    m: int  # examples per shard
    p: float = 2.0
    settings: Mapping[str, Any] = field(default_factory=dict)  # all that decides the number; empty in files of older versions
    steps: Array | None = None  # (steps,) the value that an ascent of several steps had reached after each; None where there was one

    def summary(self) -> str:
        """Return the value with its standard error."""
        return f"{self.measure} {with_error(self.value, self.stderr)} (rho {self.rho:g}, m {self.m})"


@dataclass(frozen=True, eq=False, repr=False)
class Surface(Result):
    """The loss on a line or a plane through the parameters, at origin + x d0 (+ y d1)."""

    kind: ClassVar[str] = "surface"

    EVALUATED: ClassVar[int] = 1
    INTERPOLATED: ClassVar[int] = 2
    FAILED: ClassVar[int] = 3  # the loss there is not finite
    PENDING: ClassVar[int] = 0

    name: str
    x: Array  # (nx,)
    y: Array | None  # (ny,), None on a line
    loss: Array  # (ny, nx), or (nx,) on a line
    accuracy: Array  # like loss, between 0 and 1; NaN where the task has none
    stderr: Array  # like loss, standard error of the mean over batches of examples; NaN with a single batch
    status: NDArray[np.uint8]  # like loss
    plane: dict[str, Any]  # how the directions were made: kind, normalize, seed, norms, cosine, sha256
    error_estimate: Array | None = None  # like loss, of |loss - true loss| where it is interpolated, 0 where evaluated; None if all are
    metric_names: tuple[str, ...] | None = None  # of the m further metrics; None if there are none
    metric_values: Array | None = None  # (m, *like loss)
    test: Surface | None = None  # the same on test data, where it was asked for; in files a surface of its own, `name`-test

    @property
    def metrics(self) -> dict[str, Array]:
        """The further metrics by name, each like loss."""
        return (
            {} if self.metric_names is None or self.metric_values is None else dict(zip(self.metric_names, self.metric_values, strict=True))
        )

    def summary(self) -> str:
        """Return the shape, the range of the loss with the standard errors there, and what was not evaluated."""
        shape = " x ".join(str(n) for n in self.loss.shape[::-1])
        losses, errors, there = self.loss.reshape(-1), self.stderr.reshape(-1), np.flatnonzero(np.isfinite(self.loss))
        ends = [there[np.argmin(losses[there])], there[np.argmax(losses[there])]] if len(there) else []
        parts = [f"{self.name!r} {shape}", f"loss {' ... '.join(with_error(losses[i], errors[i]) for i in ends) or NONE}"]
        between = self.status == self.INTERPOLATED
        if self.error_estimate is not None and between.any():
            worst = np.max(self.error_estimate[between], initial=0.0, where=np.isfinite(self.error_estimate[between]))
            parts.append(f"{int(between.sum())} points interpolated, to {worst:.1g}")
        parts += [
            f"{int(n)} {word}"
            for n, word in ((np.sum(self.status == self.FAILED), "not finite"), (np.sum(self.status == 0), "pending"))
            if n
        ]
        return ", ".join(parts)


@dataclass(frozen=True, eq=False, repr=False)
class LossPath(Result):
    """The loss along a path through the parameters: a curve w(t) between two points, or the steps of a training run."""

    kind: ClassVar[str] = "path"

    name: str
    t: Array | None  # (n,) from 0 to 1 along a curve; None on a trajectory
    step: NDArray[np.int64] | None  # (n,) epochs or steps of a trajectory; None on a curve
    loss: Array  # (n,), NaN where it is not finite
    accuracy: Array  # (n,), between 0 and 1; NaN where the task has none
    stderr: Array  # (n,) standard error of the loss over batches of examples; NaN with a single batch
    curve: dict[str, Any]  # what path it is: type, ends, statistics of batch norm, how it was found
    gap: Array | None = None  # (n,) loss above the chord, L(t) - ((1 - t) L(0) + t L(1)); None on a trajectory
    gap_stderr: Array | None = None  # (n,) its standard error, of differences on the same examples
    coordinates: Array | None = None  # (n, d) on a plane through the path, in units of its directions
    distance: Array | None = None  # (n,) Euclidean distance from that plane
    explained_variance: Array | None = None  # (d,) share of the variance of the points along each direction

    @property
    def highest(self) -> int | None:
        """The place of the largest gap; None on a trajectory and where a loss on the curve is not finite."""
        if self.gap is None or not len(self.gap) or not np.isfinite(self.gap).all():
            return None
        return int(np.argmax(self.gap))

    @property
    def barrier(self) -> float:
        """The largest gap, at least 0; NaN on a trajectory and where a loss on the curve is not finite."""
        return np.nan if self.highest is None or self.gap is None else float(self.gap[self.highest])

    @property
    def barrier_stderr(self) -> float:
        """Standard error of the gap where it is largest; it does not count that the largest was chosen."""
        return np.nan if self.highest is None or self.gap_stderr is None else float(self.gap_stderr[self.highest])

    def summary(self) -> str:
        """Return the barrier of a curve, or where a trajectory leads."""
        kind, bad = self.curve.get("type", "curve"), int((~np.isfinite(self.loss)).sum())
        if not len(self.loss):
            return f"{self.name!r} {kind}, no points"
        if self.t is not None and self.highest is not None:
            found = f"barrier {with_error(self.barrier, self.barrier_stderr)} at t = {self.t[self.highest]:.3g}"
        elif self.t is not None:
            found = f"no barrier: the loss is not finite at {bad} of {len(self.loss)} points"
        else:
            shares = "" if self.explained_variance is None else ", ".join(f"{100 * v:.1f} %" for v in self.explained_variance)
            first, last = (with_error(self.loss[i], self.stderr[i]) for i in (0, -1))
            found = f"{len(self.loss)} steps, loss {first} -> {last}"
            found += f", components explain {shares}" if shares else ""
        return f"{self.name!r} {kind}, {found}"


@dataclass(frozen=True, eq=False, repr=False)
class PlaneRecord(Result):
    """A plane through the parameters as a file keeps it; `landscape.Plane.load` makes it one again."""

    kind: ClassVar[str] = "plane"

    name: str
    tensors: tuple[str, ...]  # names of the parameters
    origin: Tensor | None  # (n,), one parameter after the other; None where vectors were not read
    directions: Tensor | None  # (d, n)
    layout: dict[str, Any]  # shapes and dtypes of the parameters
    plane: dict[str, Any]  # how the directions were made: kind, normalize, seed, norms, cosine, sha256

    def summary(self) -> str:
        """Return what plane it is."""
        return f"{self.name!r} {self.plane.get('kind', 'plane')} of {len(self.plane.get('norms', ()))} directions"


@dataclass(frozen=True, eq=False, repr=False)
class GradientTrace(Result):
    """How well grad f(y_t) stands in for grad f(x_t) while SAMPa trains."""

    kind: ClassVar[str] = "gradients"

    step: NDArray[np.int64]  # (t,)
    cosine: Array  # (t,) between the two gradients
    distance: Array  # (t,) Euclidean distance of the two gradients
    norm_x: Array  # (t,) ||grad f(x_t)||
    norm_y: Array  # (t,) ||grad f(y_t)||
    layers: tuple[str, ...]  # names of the L layers
    layer_cosine: Array  # (t, L)
    layer_distance: Array  # (t, L)

    def summary(self) -> str:
        """Return the range of the cosine."""
        if not len(self.step):
            return "no steps"
        if np.isnan(self.cosine).all():
            return f"{len(self.step)} steps, no gradient to compare with"
        return f"{len(self.step)} steps, cosine {np.nanmin(self.cosine):.3f} ... {np.nanmax(self.cosine):.3f}"


@dataclass(frozen=True, eq=False, repr=False)
class CurvatureTrace(Result):
    """The largest eigenvalues of the Hessian, and its trace, while a network trained."""

    kind: ClassVar[str] = "curvature"

    epoch: NDArray[np.int64]  # (t,), 0 before the first
    values: Array  # (t, k) eigenvalues, by descending absolute value
    residuals: Array  # (t, k) an eigenvalue lies within the residual of each
    trace: Array  # (t,), NaN where it was left out
    trace_stderr: Array  # (t,) its standard error
    matvecs: NDArray[np.int64]  # (t,) products
    tol: float

    def summary(self) -> str:
        """Return the first and the last of the largest eigenvalues."""
        if not len(self.epoch):
            return "no epochs"
        ends = (with_error(self.values[i, 0], self.residuals[i, 0]) for i in (0, -1))
        return f"lambda_max {' -> '.join(ends)} from epoch {self.epoch[0]} to {self.epoch[-1]}"


@dataclass(frozen=True, eq=False, repr=False)
class TrainingHistory(Result):
    """One row an epoch."""

    kind: ClassVar[str] = "training"

    method: str
    epoch: NDArray[np.int64]
    train_loss: Array
    train_accuracy: Array
    test_loss: Array
    test_accuracy: Array
    lr: Array
    rho: Array
    seconds: Array  # since the start
    gradients_computed: Array  # since the start, in gradients of one batch

    def summary(self) -> str:
        """Return where the training ended."""
        if not len(self.epoch):
            return f"{self.method}, no epochs"
        return f"{self.method}, {len(self.epoch)} epochs, loss {self.train_loss[-1]:.4g}, test accuracy {self.test_accuracy[-1]:.4g}"
