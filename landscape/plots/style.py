"""How figures look: the paper style, its sizes, the colours of the methods, and text that is safe to draw."""

from __future__ import annotations

import hashlib
import io
import re
import threading
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.resources import as_file, files
from typing import Any, Literal

import matplotlib
import matplotlib.style
import numpy as np
from matplotlib import font_manager
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.ft2font import FT2Font
from matplotlib.textpath import text_to_path

COLUMN, WIDE, FULL = 3.25, 5.5, 6.75
"""Widths in inches: one column, a wide figure, the full page."""

INK = {"light": "#1a1a1a", "dark": "#e6e6e6"}
PAPER = {"light": "#ffffff", "dark": "#15171b"}
MISSING = {"light": "#dddddd", "dark": "#3a3d44"}
"""Colours of text and lines, of the background, and of places without a value, by theme."""

_lock = threading.RLock()  # matplotlib's settings are global: figures of several threads take turns
_active: list[str] = []


@cache
def _settings(theme: str) -> dict[str, Any]:
    with as_file(files(__package__) / "paper.mplstyle") as path:
        settings: dict[str, Any] = {k: v for k, v in matplotlib.rc_params_from_file(path, use_default_template=False).items()}
    ink, paper = INK[theme], PAPER[theme]
    inked = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color", "patch.edgecolor", "hatch.color")
    settings |= dict.fromkeys(inked, ink)
    settings |= dict.fromkeys(("figure.facecolor", "axes.facecolor"), paper)
    return settings


@contextmanager
def paper_style(theme: str = "light") -> Iterator[None]:
    """Use the paper style inside the block, whatever the user's own settings are, and restore those afterwards."""
    with _lock:
        if _active and _active[-1] == theme:
            yield
            return
        _active.append(theme)
        try:
            with matplotlib.style.context(["default", _settings(theme)]):
                yield
        finally:
            _active.pop()


class PaperFigure(Figure):
    """A figure that is drawn and saved in the paper style wherever that happens; it is not registered with pyplot."""

    def __init__(self, *args: Any, theme: str = "light", layout: Literal["constrained"] | None = "constrained", **kwargs: Any) -> None:
        # the layout is not a setting of the style: a figure without a layout engine would take one from there after its first saving
        self.theme = theme
        with paper_style(theme):
            super().__init__(*args, layout=layout, **kwargs)
            FigureCanvasAgg(self)

    def draw(self, renderer: Any) -> None:
        """Draw in the paper style."""
        with paper_style(self.theme):
            super().draw(renderer)

    def savefig(self, fname: Any, **kwargs: Any) -> None:
        """Save in the paper style."""
        with paper_style(self.theme):
            super().savefig(fname, **kwargs)

    def _repr_png_(self) -> bytes:
        """Show the figure in a notebook, also where pyplot was never imported."""
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", dpi=200)
        return buffer.getvalue()


@dataclass(frozen=True)
class Look:
    """How one method is drawn in every figure."""

    color: str
    marker: str
    dashes: str


PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#999933", "#7f7f7f")
_MARKERS = "osD^vPX*"
_DASHES = ("-", "--", "-.", ":")
_SLOTS = {"sgd": 0, "sam": 1, "msam": 2, "sampa": 3, "asam": 4, "gsam": 5, "looksam": 6, "adam": 7, "adamw": 7}


def method_looks(names: Iterable[str]) -> dict[str, Look]:
    """Give each name a colour, a marker and a line style, the same for the same set of names in any order.

    Well-known methods keep their colour in every figure; the others get the free one that their name hashes to. Hand the looks of all
    names to figures of some of them, and every figure agrees.

    Args:
        names: of methods or runs.

    Returns:
        The look of each name.
    """
    distinct = sorted({str(name) for name in names})
    bases = {name: (re.match(r"[a-z]*", name.lower()) or [""])[0] for name in distinct}
    known = sorted((n for n in distinct if bases[n] in _SLOTS), key=lambda n: (n.lower() != bases[n], n))
    used = [0] * len(PALETTE)
    looks: dict[str, Look] = {}
    for name in [*known, *(n for n in distinct if n not in known)]:
        wanted = _SLOTS.get(bases[name], hashlib.sha256(name.encode("utf-8", "replace")).digest()[0])
        slot = min(range(len(PALETTE)), key=lambda i: (used[i], (i - wanted) % len(PALETTE)))
        looks[name] = Look(PALETTE[slot], _MARKERS[slot], _DASHES[used[slot] % len(_DASHES)])
        used[slot] += 1
    return looks


def looks_for(names: Iterable[str], given: Mapping[str, Look] | None) -> dict[str, Look]:
    """Return the looks given by the caller, completed where they say nothing."""
    names = list(names)
    return method_looks(names) | {name: look for name, look in (given or {}).items() if name in names}


@cache
def _drawable() -> frozenset[int]:
    return frozenset(FT2Font(font_manager.findfont("DejaVu Sans")).get_charmap())


def label(text: object, limit: int = 40, *, end: bool = False) -> str:
    """Return text that matplotlib draws as it stands: one line, no mathematics, no missing glyphs, at most `limit` characters.

    What is too long loses its middle, or with `end` its beginning.
    """
    line = " ".join("".join(" " if unicodedata.category(c)[0] in "CZ" else c for c in str(text)).split())
    if len(line) > limit:
        tail = limit - 1 if end else (limit - 1) // 3
        line = f"{line[: limit - 1 - tail]}…{line[len(line) - tail :] if tail else ''}"
    line = "".join(c if ord(c) in _drawable() else "□" for c in line)
    if line.startswith("_"):
        line = " " + line  # matplotlib leaves labels with a leading underscore out of legends
    return line.replace("\\", "∖").replace("$", r"\$") or "(no name)"


@cache
def inches(text: str, size: float) -> float:
    """Return how wide a line of text is in points of that size, with the escapes that `label` writes left out."""
    width, _, _ = text_to_path.get_text_width_height_descent(
        text.replace(r"\$", "$"), FontProperties(family="DejaVu Sans", size=size), ismath=False
    )
    return float(width) / 72


def fitting(text: object, width: float, size: float = 8.0) -> str:
    """Return the `label` of a text, shortened in its middle so far as it must be to fit into a width in inches."""
    limit = 60
    while limit > 4 and inches(label(text, limit), size) > width:
        limit = min(limit, len(label(text, limit))) - 1
    return label(text, limit)


def number(value: float) -> str:
    """Return a number as an axis shows it, with a power of ten where that is shorter."""
    short = f"{value:.3g}".replace("-", "\N{MINUS SIGN}")
    if "e" not in short:
        return short
    mantissa, exponent = f"{value:.3g}".split("e")
    power = f"10^{{{int(exponent)}}}"
    return f"${power}$" if mantissa == "1" else rf"${mantissa}\cdot{power}$"


def legend_columns(texts: Iterable[str], width: float) -> int:
    """Return how many columns of a legend with these texts fit into a width."""
    texts = list(texts)
    most = max(1, min(len(texts), int((width - 0.1) / (0.49 + max((inches(t, 7.0) for t in texts), default=1.0)))))
    return -(-len(texts) // -(-len(texts) // most)) if texts else 1


def legend_height(texts: Iterable[str], width: float) -> float:
    """Return how many inches the rows of that legend take beyond the first."""
    texts = list(texts)
    return 0.15 * (-(-len(texts) // legend_columns(texts, width)) - 1) if texts else 0.0


def grid_shape(panels: int, width: float) -> tuple[int, int]:
    """Return rows and columns for some panels; a panel is at least 1.4 in wide."""
    most = max(1, min(4, int(width / 1.4)))
    rows = int(np.ceil(panels / most))
    return rows, int(np.ceil(panels / rows))
