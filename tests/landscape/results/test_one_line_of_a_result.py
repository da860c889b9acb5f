"""How results print themselves: one line with the value, its error bar and what it cost."""

import dataclasses
from typing import Any

import numpy as np
import pytest
from result_samples import curvature, eigen, every, gradients, history, path, surface

from landscape.results.types import (
    Cost,
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

COST: dict[str, Any] = {"cost": Cost(hvps=40.0, seconds=1.26)}
NONE = np.zeros(0)
LINE = np.array([0.5, 2.25, 1.0])
BAR = np.array([0.01, 0.2, 0.1])
ONE, TWO = np.ones(1), np.ones(2)
EVALUATED = np.ones(3, dtype=np.uint8)


@pytest.mark.parametrize(
    ("result", "said"),
    [
        (Eigenpairs(np.array([80.2143]), np.array([3e-4]), None, 17, True, 1e-4, **COST), "80.2143 ± 0.0003 (converged, 17 products)"),
        (TraceEstimate(1234.5, 12.0, LINE, 3, False, 0.05, **COST), "1234 ± 12 (NOT converged, 3 products)"),
        (
            SpectralDensity(LINE, LINE, LINE, np.array([[-1.0, 9.5]]), np.ones((1, 2)), 0.1, 2, ONE, 0.03, **COST),
            "Ritz values -1 ... 9.5 from 1 probes, 1 outlier, shares ± 0.03",
        ),
        (
            Subsampled("lambda_max", LINE, BAR, LINE, np.ones((4, 3)), np.ones(4), False, True, **COST),
            "lambda_max 0.500 ± 0.010, 2.25 ± 0.20, 1.00 ± 0.10 (converged, over each of 4 parts)",
        ),
        (Sharpness("m_sharpness", 0.5786, 0.0117, LINE, LINE, 0.05, 16, **COST), "m_sharpness 0.579 ± 0.012 (rho 0.05, m 16)"),
        (Surface("line", LINE, None, LINE, LINE, BAR, EVALUATED, {}, **COST), "'line' 3, loss 0.500 ± 0.010 ... 2.25 ± 0.20"),
        (
            Surface("a", LINE, None, LINE, LINE, BAR, np.array([1, 2, 2], dtype=np.uint8), {}, np.array([0, 0.05, 0.02]), **COST),
            "'a' 3, loss 0.500 ± 0.010 ... 2.25 ± 0.20, 2 points interpolated, to 0.05",
        ),
        (
            Surface("b", LINE, None, np.array([0.5, np.nan, np.nan]), LINE, BAR, np.array([1, 3, 0], dtype=np.uint8), {}, **COST),
            "'b' 3, loss 0.500 ± 0.010 ... 0.500 ± 0.010, 1 not finite, 1 pending",
        ),
        (
            LossPath("p", np.array([0, 0.5, 1]), None, LINE, LINE, BAR, {"type": "linear"}, gap=LINE, gap_stderr=BAR, **COST),
            "'p' linear, barrier 2.25 ± 0.20 at t = 0.5",
        ),
        (
            LossPath("p", None, np.arange(3), LINE, LINE, BAR, {"type": "trajectory"}, explained_variance=np.array([0.75, 0.125]), **COST),
            "'p' trajectory, 3 steps, loss 0.500 ± 0.010 -> 1.00 ± 0.10, components explain 75.0 %, 12.5 %",
        ),
        (PlaneRecord("q", ("w",), None, None, {}, {"kind": "random", "norms": [1, 1]}, **COST), "'q' random of 2 directions"),
        (
            GradientTrace(np.arange(2), np.array([0.5, 0.75]), TWO, TWO, TWO, (), np.ones((2, 0)), np.ones((2, 0)), **COST),
            "2 steps, cosine 0.500 ... 0.750",
        ),
        (
            CurvatureTrace(np.array([0, 5]), np.array([[9.0], [4.5]]), np.array([[0.1], [0.02]]), TWO, TWO, np.arange(2), 0.01, **COST),
            "lambda_max 9.00 ± 0.10 -> 4.500 ± 0.020 from epoch 0 to 5",
        ),
        (TrainingHistory("sam", np.arange(1), *[ONE / 4] * 8, **COST), "sam, 1 epochs, loss 0.25, test accuracy 0.25"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Result) else None,
)
def test_value_error_bar_and_cost(result: Result, said: str) -> None:
    assert repr(result) == f"<{type(result).__name__} {said} | 40 hvps, 1.26 s>"


def test_every_kind_has_a_line_of_its_own() -> None:
    assert {type(result) for result in every()} == set(Result.__subclasses__()), "a new kind of result belongs into result_samples.every"
    for result in every():
        assert result.summary() and repr(result).isprintable()


@pytest.mark.parametrize(
    "result",
    [
        history(0),
        gradients(0, ()),
        curvature(0),
        eigen(k=0),
        path(0),
        SpectralDensity(NONE, NONE, NONE, np.zeros((0, 0)), np.zeros((0, 0)), 0.1, 0),
        TraceEstimate(np.nan, np.nan, NONE, 0, False, 0.1),
        Subsampled("m", NONE, NONE, NONE, np.zeros((0, 0)), NONE, True, True),
        surface("nothing", ny=0, nx=0),
        surface("all nan", loss=np.full((3, 5), np.nan)),
        LossPath("a", None, np.arange(0), NONE, NONE, NONE, {}),
        PlaneRecord("a", (), None, None, {}, {}),
    ],
    ids=lambda value: type(value).__name__,
)
def test_nothing_to_tell_is_told_in_one_line(result: Result) -> None:
    assert repr(result).startswith(f"<{type(result).__name__} ") and "nan" not in repr(result).replace("all nan", "")


def test_texts_from_files_leave_the_terminal_alone() -> None:
    for result in (
        surface("\x1b[31m\n"),
        dataclasses.replace(history(), method="a\nb\x1b]0;"),
        dataclasses.replace(path(), curve={"type": "\r\u202e"}),
    ):
        assert repr(result).isprintable()
