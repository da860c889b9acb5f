"""What a notebook shows of a result: its figure where it has one, its value, what it cost and what it was computed on."""

from __future__ import annotations

import base64
import html
from collections.abc import Container
from typing import Any

from landscape.plots.contours import contour
from landscape.plots.curvature import curvature
from landscape.plots.eigenvalues import eigenvalues
from landscape.plots.lines import lines
from landscape.plots.paths import path
from landscape.plots.spectra import spectrum
from landscape.plots.style import COLUMN, PaperFigure
from landscape.plots.tables import Table
from landscape.plots.traces import traces
from landscape.plots.training import training
from landscape.results.types import (
    CurvatureTrace,
    Eigenpairs,
    GradientTrace,
    LossPath,
    Result,
    SpectralDensity,
    Surface,
    TrainingHistory,
)

_ORIGIN = {
    "model": "model",
    "parameters": "parameters",
    "examples": "examples",
    "batch_norm": "batch norm",
    "seed": "seed",
    "dtype": "numbers",
    "device": "device",
    "created_at": "measured at",
}


def figure_of(result: Result) -> PaperFigure | None:
    """Return the figure that shows a result best; None where it is numbers only, or holds too little to be drawn."""
    name = result.provenance.model or "Hessian"
    try:
        match result:
            case Surface(y=None):
                return lines({result.name: result}, width=COLUMN)
            case Surface():
                return contour(result)
            case Eigenpairs():
                return eigenvalues({name: result}, width=COLUMN)
            case SpectralDensity():
                return spectrum(result)
            case LossPath():
                return path(result)
            case CurvatureTrace():
                return curvature({name: result})
            case TrainingHistory():
                return training({result.method: result})
            case GradientTrace():
                return traces(result)
    except ValueError:  # such as a surface that somebody cut: its summary still shows
        return None
    return None


def mime_bundle(result: Result, include: Container[str] | None = None, exclude: Container[str] | None = None) -> dict[str, Any]:
    """Return a result in the forms that notebooks ask for, by their MIME types: text, HTML, and where there is a figure PNG.

    Args:
        result: the result.
        include: the types to give; all by default.
        exclude: types to leave out.

    Returns:
        Text of each type; bytes of the PNG.
    """
    figure = figure_of(result)
    picture = figure._repr_png_() if figure is not None else None
    forms: dict[str, Any] = {"text/plain": repr(result), "text/html": _card(result, picture, figure)}
    if picture is not None:
        forms["image/png"] = picture
    return {kind: form for kind, form in forms.items() if (include is None or kind in include) and (exclude is None or kind not in exclude)}


def table_html(table: Table) -> str:
    """Return a table as HTML; every text in it is only text."""
    head = "".join(f'<th scope="col">{_escaped(text)}</th>' for text in table.heads)
    rows = "".join(
        f'<tr><th scope="row">{_escaped(row[0])}</th>{"".join(f"<td>{_escaped(cell)}</td>" for cell in row[1:])}</tr>' for row in table.rows
    )
    notes = "".join(f"<p><small>{_escaped(note)}</small></p>" for note in table.notes)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>{notes}"


def _escaped(text: str) -> str:
    return html.escape(text).encode("utf-8", "replace").decode()  # a lone surrogate, as in odd file names, is no text for a notebook


def _card(result: Result, picture: bytes | None, figure: PaperFigure | None) -> str:
    """Return the figure with the summary below it, and a table of cost and origin to be folded out."""
    words = _escaped(f"{type(result).__name__}: {result.summary()}")
    shown = ""
    if picture is not None and figure is not None:
        data = base64.b64encode(picture).decode("ascii")
        shown = f'<img src="data:image/png;base64,{data}" alt="{words}" style="width:{figure.get_figwidth():g}in;max-width:100%"><br>'
    about = result.provenance.as_dict()
    rows = [["cost", str(result.cost)]]
    rows += [[text, str(about[key])] for key, text in _ORIGIN.items() if about[key] or (key == "seed" and about[key] == 0)]
    origin = table_html(Table(["", ""], rows, []))
    return f"<div>{shown}<span>{words}</span><details><summary>cost and origin</summary>{origin}</details></div>"
