"""What notebooks are handed, by the protocol of rich display: HTML read back with a parser, PNG by its signature."""

import dataclasses
import sys

import numpy as np
import pytest
from conftest import PROVENANCE, Ripple
from test_report import HOSTILE, Page

from landscape.plots import RunReport
from landscape.plots.display import table_html
from landscape.plots.tables import methods_table
from landscape.results.types import Eigenpairs, LossPath, Result, Subsampled


def results() -> dict[str, Result]:
    ripple = Ripple()
    history, gradients = ripple.descend("sam", 4)
    t = np.linspace(0, 1, 5)
    path = LossPath("a to b", t, None, t + 1, t, t, {"type": "linear"}, gap=t * 0, gap_stderr=t * 0)
    return {
        "plane": ripple.surface(5, 4),
        "line": ripple.surface(5, None),
        "eigen": ripple.eigen(),
        "density": ripple.density(),
        "curvature": ripple.curvature_trace(),
        "training": history,
        "gradients": gradients,
        "path": path,
        "trace": ripple.trace(),
        "sharpness": ripple.sharpness(16),
        "subsampled": Subsampled("trace", t, t, t, t[None], np.ones(1), False, True),
    }


RESULTS = results()
NUMBERS = ("trace", "sharpness", "subsampled")


@pytest.mark.parametrize("name", RESULTS)
def test_a_result_shows_its_figure_or_its_numbers(name: str) -> None:
    result = RESULTS[name]
    bundle = result._repr_mimebundle_()
    assert bundle["text/plain"] == repr(result)
    page = Page(bundle["text/html"])
    assert not page.open and result.summary() in "".join(page.text) and str(result.cost) in page.text
    pictures = [attributes for tag, attributes in page.tags if tag == "img"]
    assert len(pictures) == (name not in NUMBERS) and ("image/png" in bundle) == (name not in NUMBERS)
    for picture in pictures:
        assert picture["src"].startswith("data:image/png;base64,iVBOR") and result.summary() in picture["alt"]
        assert bundle["image/png"].startswith(b"\x89PNG")


def test_only_what_is_asked_for_is_given() -> None:
    surface = RESULTS["line"]
    assert set(surface._repr_mimebundle_(include={"text/html", "text/latex"})) == {"text/html"}
    assert set(surface._repr_mimebundle_(exclude={"image/png"})) == {"text/plain", "text/html"}


def test_text_from_outside_stays_text() -> None:
    odd = HOSTILE.replace("\ud800", "?")
    provenance = dataclasses.replace(PROVENANCE, model=HOSTILE)
    surface = dataclasses.replace(Ripple().surface(5, 5), name=HOSTILE, provenance=provenance)
    run = RunReport(HOSTILE, trace=Ripple().trace(), attributes={"train_accuracy": 0.5})
    for text, shown, tags in (
        (surface._repr_mimebundle_()["text/html"], odd, {"div", "span", "img", "br", "details", "summary"}),
        (table_html(methods_table([run])), "50.00 %", {"p", "small"}),
    ):
        page = Page(text)
        assert {tag for tag, _ in page.tags} <= tags | {"table", "thead", "tbody", "tr", "th", "td"}
        assert not page.open and not page.scripts and shown in page.text and odd in page.text


def test_what_cannot_be_drawn_shows_its_summary() -> None:
    surface = Ripple().surface(5, 5)
    cut = dataclasses.replace(surface, x=surface.x[:-1])
    assert "image/png" not in cut._repr_mimebundle_() and "5 x 5" in cut._repr_mimebundle_()["text/html"]
    nothing = dataclasses.replace(RESULTS["eigen"], values=np.empty(0), residuals=np.empty(0))
    assert isinstance(nothing, Eigenpairs) and "image/png" in nothing._repr_mimebundle_()


def test_ipython_shows_the_same() -> None:
    pytest.importorskip("IPython", reason="IPython is not installed")
    formatter = sys.modules["IPython"].core.formatters.DisplayFormatter()
    data, _ = formatter.format(RESULTS["plane"])
    assert {"text/plain", "text/html", "image/png"} <= set(data)
