"""Figures into files: whole or not at all, and the same bytes from the same data."""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from landscape.plots.interactive import page
from landscape.plots.style import PaperFigure, paper_style
from landscape.results.store import file_name

# nothing in a file says when it was written
METADATA: dict[str, dict[str, Any]] = {"pdf": {"CreationDate": None, "ModDate": None}, "svg": {"Date": None}, "png": {}}


def save(
    figure: Any, path_stem: str | Path, formats: Sequence[str] | None = None, *, dpi: int = 300, plotlyjs: str = "inline"
) -> list[Path]:
    """Write a figure as `<path_stem>.<format>` for each format.

    Args:
        figure: from matplotlib or plotly.
        path_stem: the path without the ending; missing folders are made.
        formats: "pdf", "svg" and "png" for matplotlib figures (PDF and PNG by default); "html" for plotly figures.
        dpi: resolution of PNG files and of what is rasterised inside the others.
        plotlyjs: "inline" for pages that need no other file, "directory" to write plotly.min.js once beside them.

    Returns:
        The paths, in the order of the formats.

    Raises:
        TypeError: `figure` is no figure.
        ValueError: a format that the figure cannot be written in.
    """
    interactive = not isinstance(figure, Figure) and hasattr(figure, "to_html")
    if not interactive and not isinstance(figure, Figure):
        raise TypeError(f"figure must be a matplotlib or plotly figure, got {type(figure).__name__}")
    allowed = ("html",) if interactive else tuple(METADATA)
    if formats is None:
        formats = ("html",) if interactive else ("pdf", "png")
    if isinstance(formats, str):
        formats = (formats,)
    for kind in formats:
        if kind not in allowed:
            advice = 'draw it with backend="matplotlib" for paper' if interactive else 'draw it with backend="plotly" for html'
            raise ValueError(f"formats must be among {allowed} for this figure, got {kind!r}; {advice}")
    if plotlyjs not in ("inline", "directory"):
        raise ValueError(f'plotlyjs must be "inline" or "directory", got {plotlyjs!r}')
    stem = Path(path_stem)
    stem.parent.mkdir(parents=True, exist_ok=True)
    written = []
    for kind in formats:
        target = stem.with_name(f"{stem.name}.{kind}")
        if interactive:
            _write_page(figure, target, inline=plotlyjs == "inline")
        else:
            with paper_style(figure.theme if isinstance(figure, PaperFigure) else "light"):
                write_whole(target, lambda path, kind=kind: figure.savefig(path, format=kind, dpi=dpi, metadata=METADATA[kind]))  # type: ignore[misc]
        written.append(target)
    return written


def stem_of(text: str) -> str:
    """Return a name for a file that says what it shows; of what is too long for one, the beginning and a hash of all of it."""
    try:
        return file_name(text)
    except ValueError:
        return f"{file_name(text[:12])}-{hashlib.sha256(text.encode('utf-8', 'replace')).hexdigest()[:12]}"


def write_whole(target: Path, write: Callable[[Path], object]) -> None:
    """Write a file beside its final name and move it there, so that nobody sees half of it."""
    beside = target.with_name(f".{secrets.token_hex(8)}{target.suffix}")
    try:
        write(beside)
        os.replace(beside, target)
    finally:
        beside.unlink(missing_ok=True)


def _write_page(figure: Any, target: Path, *, inline: bool) -> None:
    if not inline:
        library = target.with_name("plotly.min.js")
        if not library.exists():
            from plotly.offline import get_plotlyjs

            write_whole(library, lambda path: path.write_text(get_plotlyjs(), encoding="utf-8"))
    text = page(figure, target.stem, plotlyjs="inline" if inline else "plotly.min.js")
    write_whole(target, lambda path: path.write_text(text, encoding="utf-8"))
