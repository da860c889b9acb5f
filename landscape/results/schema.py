"""What a run file holds: every group, dimension, dataset and attribute, as tables.

The store writes and reads by these tables and `docs/schema.md` is made from them; nothing else knows the layout. A layout names
the result type, its group, its datasets and its attributes; cost and provenance are attributes of every group.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

from landscape.results.attributes import COST, GROUP, PROVENANCE, ROOT
from landscape.results.layout import Attribute, Layout, Variable
from landscape.results.types import (
    CurvatureTrace,
    Eigenpairs,
    GradientTrace,
    LossPath,
    PlaneRecord,
    Result,
    Sharpness,
    SpectralDensity,
    Subsampled,
    Surface,
    TraceEstimate,
    TrainingHistory,
)

__all__ = ["COST", "GROUP", "LAYOUTS", "PARTIAL", "PROVENANCE", "ROOT", "SCHEMA_VERSION", "layout_of", "layout_of_group", "sharpness_name"]

SCHEMA_VERSION = 2
PARTIAL = "partial"  # unfinished results lie under this group, at the path where they will end


def _index(dim: str, long_name: str, optional: bool = False) -> Variable:
    return Variable(dim, "", (dim,), long_name, kind="int", optional=optional)


def _converged(eigen: Eigenpairs) -> Any:
    scale = np.max(np.abs(eigen.values), initial=0.0)
    return (np.asarray(eigen.residuals) <= eigen.tol * scale).astype(np.uint8)


def sharpness_name(sharpness: Sharpness) -> str:
    """Return the name under which a sharpness is stored: measure, rho, m, p where it is not 2, and every setting that is not plain."""
    name = f"{sharpness.measure}_rho{float(sharpness.rho)!r}_m{int(sharpness.m)}"
    name = name if sharpness.p == 2 else f"{name}_p{float(sharpness.p)!r}"
    told = {"rho", "m", "p", "data", "examples", "dtype"} | ({"adaptive"} if "adaptive_m_sharpness" in sharpness.measure else set())
    plain: tuple[Any, ...] = (None, False, 0, "eval", "")
    further = {k: v for k, v in sharpness.settings.items() if k not in told and v not in plain and (k, v) != ("steps", 1)}
    text = "".join(f",{key}={value}" for key, value in sorted(further.items()))
    # File names end somewhere: what is too long is told by a hash.
    return name + (text if len(text) <= 120 else f",{hashlib.sha256(text.encode()).hexdigest()[:12]}")


STATUS_MEANINGS = (
    (Surface.PENDING, "pending"),
    (Surface.EVALUATED, "evaluated"),
    (Surface.INTERPOLATED, "interpolated"),
    (Surface.FAILED, "failed"),
)
GRID = ("y", "x")
ALONG = ("t", "step")  # of which a path has one

LAYOUTS: tuple[Layout, ...] = (
    Layout(
        TrainingHistory,
        "training",
        (
            Variable("epoch", "epoch", ("epoch",), "epoch", kind="int"),
            Variable("train_loss", "train_loss", ("epoch",), "mean loss over the training examples"),
            Variable("train_accuracy", "train_accuracy", ("epoch",), "fraction of training examples classified correctly"),
            Variable("test_loss", "test_loss", ("epoch",), "mean loss over the test examples"),
            Variable("test_accuracy", "test_accuracy", ("epoch",), "fraction of test examples classified correctly"),
            Variable("lr", "lr", ("epoch",), "learning rate"),
            Variable("rho", "rho", ("epoch",), "radius of the ascent step"),
            Variable("seconds", "seconds", ("epoch",), "time since the start of training", "s"),
            Variable("gradients_computed", "gradients_computed", ("epoch",), "gradients of one batch computed since the start"),
        ),
        (Attribute("method", "str", "optimization method"),),
    ),
    Layout(
        GradientTrace,
        "traces/gradients",
        (
            Variable("step", "step", ("step",), "training step", kind="int"),
            Variable("layer", "layers", ("layer",), "name of the layer", kind="text"),
            Variable("cosine", "cosine", ("step",), "cosine of the angle between grad f(x_t) and grad f(y_t)"),
            Variable("distance", "distance", ("step",), "Euclidean distance of grad f(x_t) and grad f(y_t)"),
            Variable("norm_x", "norm_x", ("step",), "Euclidean norm of grad f(x_t)"),
            Variable("norm_y", "norm_y", ("step",), "Euclidean norm of grad f(y_t)"),
            Variable("layer_cosine", "layer_cosine", ("step", "layer"), "cosine of the angle between the two gradients of a layer"),
            Variable("layer_distance", "layer_distance", ("step", "layer"), "Euclidean distance of the two gradients of a layer"),
        ),
    ),
    Layout(
        CurvatureTrace,
        "traces/curvature",
        (
            Variable("epoch", "epoch", ("epoch",), "epoch, 0 before the first", kind="int"),
            _index("k", "rank of the eigenvalue, 0 first"),
            Variable("eigenvalue", "values", ("epoch", "k"), "eigenvalue of the Hessian"),
            Variable("residual", "residuals", ("epoch", "k"), "norm of H v - lambda v for the unit vector v"),
            Variable("trace", "trace", ("epoch",), "trace of the Hessian"),
            Variable("trace_stderr", "trace_stderr", ("epoch",), "standard error of the trace"),
            Variable("matvecs", "matvecs", ("epoch",), "products of the operator with a vector", kind="int"),
        ),
        (Attribute("tol", "float", "tolerance of the residuals relative to the largest absolute eigenvalue"),),
    ),
    Layout(
        Eigenpairs,
        "hessian/eigen",
        (
            _index("k", "rank of the eigenvalue, 0 first"),
            _index("parameter", "index into the flattened parameters", optional=True),
            Variable("eigenvalue", "values", ("k",), "eigenvalue"),
            Variable("residual", "residuals", ("k",), "norm of H v - lambda v for the unit vector v"),
            Variable(
                "converged",
                "",
                ("k",),
                "whether the residual is at most tol times the largest absolute eigenvalue",
                kind="status",
                derive=_converged,
                meanings=((0, "not_converged"), (1, "converged")),
            ),
            Variable("vectors", "vectors", ("k", "parameter"), "eigenvector of unit length", kind="tensor", optional=True),
        ),
        (
            Attribute("matvecs", "int", "products of the operator with a vector"),
            Attribute("converged", "bool", "whether every eigenvalue converged"),
            Attribute("tol", "float", "tolerance of the residuals relative to the largest absolute eigenvalue"),
            Attribute("which", "str", "end of the spectrum that was asked for"),
        ),
    ),
    Layout(
        SpectralDensity,
        "hessian/density",
        (
            Variable("lambda", "grid", ("lambda",), "eigenvalue"),
            _index("probe", "random probe vector"),
            _index("ritz", "index of the Ritz value"),
            Variable("density", "density", ("lambda",), "spectral density per unit of eigenvalue, of integral one"),
            Variable("stderr", "stderr", ("lambda",), "standard error of the density over probes"),
            Variable("ritz_value", "nodes", ("probe", "ritz"), "Ritz value of a probe"),
            Variable("ritz_weight", "weights", ("probe", "ritz"), "weight of a Ritz value; a probe's weights sum to one"),
            _index("outlier", "index of the outlier", optional=True),
            Variable("outlier_value", "outliers", ("outlier",), "eigenvalue that lies apart from all others", optional=True),
            Variable("share_stderr", "share_stderr", (), "largest standard error of the share of eigenvalues below a value", optional=True),
        ),
        (
            Attribute("sigma", "float", "width of the Gaussian with which each Ritz value is drawn"),
            Attribute("matvecs", "int", "products of the operator with a vector"),
        ),
    ),
    Layout(
        TraceEstimate,
        "hessian/trace",
        (
            _index("probe", "random probe vector"),
            Variable("value", "value", (), "trace"),
            Variable("stderr", "stderr", (), "standard error of the trace"),
            Variable("estimate", "samples", ("probe",), "estimate of the trace from one probe"),
        ),
        (
            Attribute("matvecs", "int", "products of the operator with a vector"),
            Attribute("converged", "bool", "whether the standard error is at most tol times the absolute value"),
            Attribute("tol", "float", "tolerance of the standard error relative to the absolute value"),
            Attribute("method", "str", "estimator"),
        ),
    ),
    Layout(
        Subsampled,
        "subsampled",
        (
            _index("part", "part of the examples"),
            _index("quantity", "which number of those measured"),
            Variable("value", "values", ("quantity",), "the number on all examples"),
            Variable("stderr", "stderr", ("quantity",), "standard error of the value, from the choice of examples, bias and measurement"),
            Variable("bias", "bias", ("quantity",), "by how much the value is too large on average because the examples are few"),
            Variable("per_part", "per_part", ("part", "quantity"), "the number on one part, or on all but one"),
            Variable("part_sizes", "part_sizes", ("part",), "weight of the part"),
        ),
        (
            Attribute("measure", "str", "what was measured"),
            Attribute("leave_out", "bool", "whether per_part is on all examples but those of the part"),
            Attribute("converged", "bool", "whether every measurement converged"),
        ),
        named=True,
        default_name=lambda subsampled: subsampled.measure,
    ),
    Layout(
        Sharpness,
        "sharpness",
        (
            _index("shard", "shard of examples"),
            Variable("rho", "rho", (), "radius of the perturbation", scalar_coordinate=True),
            Variable("m", "m", (), "examples in a shard", kind="int", scalar_coordinate=True),
            Variable("value", "value", (), "sharpness, the mean over shards weighted by their sizes"),
            Variable("stderr", "stderr", (), "standard error of the sharpness"),
            Variable("per_shard", "per_shard", ("shard",), "sharpness of one shard"),
            Variable("shard_sizes", "shard_sizes", ("shard",), "examples in the shard"),
            _index("ascent_step", "step of the ascent, 0 after the first", optional=True),
            Variable("reached", "steps", ("ascent_step",), "sharpness that the ascent had reached after a step", optional=True),
        ),
        (
            Attribute("measure", "str", "measure of sharpness"),
            Attribute("p", "float", "order of the norm of the perturbation"),
            Attribute("settings", "json", "all that decides the number"),
        ),
        named=True,
        default_name=sharpness_name,
    ),
    Layout(
        Surface,
        "surfaces",
        (
            Variable("x", "x", ("x",), "distance along the first direction, in units of the direction"),
            Variable("y", "y", ("y",), "distance along the second direction, in units of the direction", optional=True),
            Variable("loss", "loss", GRID, "mean loss over the examples"),
            Variable("accuracy", "accuracy", GRID, "fraction of examples classified correctly"),
            Variable("stderr", "stderr", GRID, "standard error of the mean loss"),
            Variable("status", "status", GRID, "how the point came about", kind="status", meanings=STATUS_MEANINGS),
            Variable("error_estimate", "error_estimate", GRID, "estimated error of the interpolated loss", optional=True),
            Variable("metric", "metric_names", ("metric",), "name of the metric", kind="text", optional=True),
            Variable("metrics", "metric_values", ("metric", *GRID), "mean of a further metric over the examples", optional=True),
        ),
        (Attribute("plane", "json", "how the directions were made: kind, normalization, seed, norms, cosine, hash"),),
        named=True,
        default_name=lambda surface: surface.name,
    ),
    Layout(
        LossPath,
        "paths",
        (
            Variable("t", "t", ("t",), "place on the curve, 0 at one end and 1 at the other", optional=True),
            Variable("step", "step", ("step",), "epoch or step of the training run", kind="int", optional=True),
            _index("component", "direction of the plane", optional=True),
            Variable("loss", "loss", ALONG, "mean loss over the examples"),
            Variable("accuracy", "accuracy", ALONG, "fraction of examples classified correctly"),
            Variable("stderr", "stderr", ALONG, "standard error of the mean loss"),
            Variable("gap", "gap", ALONG, "loss above the chord between the losses of the ends", optional=True),
            Variable("gap_stderr", "gap_stderr", ALONG, "standard error of the gap", optional=True),
            Variable("coordinates", "coordinates", (*ALONG, "component"), "coordinates on the plane, least squares", optional=True),
            Variable("distance", "distance", ALONG, "Euclidean distance from the plane", optional=True),
            Variable("explained_variance", "explained_variance", ("component",), "share of the variance of the points", optional=True),
        ),
        (Attribute("curve", "json", "what path it is: type, ends, statistics of batch norm, how it was found"),),
        named=True,
        default_name=lambda path: path.name,
    ),
    Layout(
        PlaneRecord,
        "planes",
        (
            Variable("tensor", "tensors", ("tensor",), "name of the parameter", kind="text"),
            _index("parameter", "index into the flattened parameters", optional=True),
            _index("direction", "direction of the plane", optional=True),
            Variable("origin", "origin", ("parameter",), "the point with coordinates 0", kind="tensor", optional=True),
            Variable("directions", "directions", ("direction", "parameter"), "directions of the plane", kind="tensor", optional=True),
        ),
        (
            Attribute("layout", "json", "shapes and dtypes of the parameters"),
            Attribute("plane", "json", "how the directions were made: kind, normalization, seed, norms, cosine, hash"),
        ),
        named=True,
        default_name=lambda plane: plane.name,
    ),
)


def layout_of(result: Result) -> Layout:
    """Return the layout of a result's type.

    Raises:
        TypeError: The type has no place in a run file.
    """
    for layout in LAYOUTS:
        if isinstance(result, layout.type):
            return layout
    known = ", ".join(layout.type.__name__ for layout in LAYOUTS)
    raise TypeError(f"result is a {type(result).__name__}; a run file keeps {known}")


def layout_of_group(path: str) -> Layout | None:
    """Return the layout that a group path such as surfaces/filter belongs to, or None."""
    path = path.removeprefix(f"{PARTIAL}/")
    for layout in LAYOUTS:
        if path.startswith(f"{layout.group}/") if layout.named else path == layout.group:
            return layout
    return None
