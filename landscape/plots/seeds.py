"""Numbers over seeds: every run a dot, the mean of each method a bar, one panel for each quantity."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from landscape.plots.checks import check_drawing
from landscape.plots.interactive import new_plotly, plain
from landscape.plots.style import FULL, Look, PaperFigure, inches, label, looks_for, paper_style


def over_seeds(
    panels: Mapping[str, Mapping[str, Sequence[float]]],
    *,
    backend: str = "matplotlib",
    theme: str = "light",
    width: float = FULL,
    looks: Mapping[str, Look] | None = None,
) -> Any:
    """Draw quantities that were measured on several runs of each method.

    Args:
        panels: by quantity, which names the axis, and by method: one number for each seed, in the same order for all methods.
        backend: "matplotlib" or "plotly".
        theme: "light" or "dark".
        width: in inches, of the matplotlib figure.
        looks: colours by method, from `method_looks`, to agree with other figures.

    Returns:
        The matplotlib or plotly figure.

    Raises:
        ValueError: nothing to draw.
    """
    check_drawing(backend, theme, width)
    if not panels or not all(of and all(len(values) for values in of.values()) for of in panels.values()):
        raise ValueError("panels must hold, for each quantity, at least one method with at least one number")
    methods = list(dict.fromkeys(method for of in panels.values() for method in of))
    looks = looks_for(methods, looks)
    numbers = {quantity: {m: np.asarray(values, dtype=float) for m, values in of.items()} for quantity, of in panels.items()}
    if backend == "plotly":
        return _interactive(numbers, methods, theme, looks)
    with paper_style(theme):
        texts = [label(m, 12) for m in methods]
        figure = PaperFigure(figsize=(width, 2.1), theme=theme)
        for ax, (quantity, of) in zip(np.atleast_1d(figure.subplots(1, len(numbers))), numbers.items(), strict=True):
            for i, method in enumerate(methods):
                values = of.get(method, np.empty(0))
                if not values.size:
                    continue
                beside = i + 0.25 * (np.arange(len(values)) / max(len(values) - 1, 1) - 0.5)
                ax.plot(beside, values, "o", ms=3, mew=0, alpha=0.8, color=looks[method].color)
                ax.hlines(values.mean(), i - 0.32, i + 0.32, color=looks[method].color, lw=1.4)
            ax.set_ylabel(quantity)
            room = width / len(numbers) - 0.5  # inches; beside each other where they fit, else slanted, else upright
            slant = 0 if (max(inches(t, 6) for t in texts) + 0.1) * len(texts) < room else 40 if len(texts) * 0.19 < room else 90
            aside = {"rotation": slant, "rotation_mode": "anchor", "ha": "right", "va": "top" if slant == 40 else "center"} if slant else {}
            ax.set_xticks(range(len(methods)), texts, **aside)
            ax.set_xlim(-0.6, len(methods) - 0.4)
            every = np.concatenate(list(of.values()))
            every = every[np.isfinite(every)]
            if every.size and 0 <= every.min() < 0.5 * every.max():  # else nothing would be left of the differences
                ax.set_ylim(bottom=0)
    return figure


def _interactive(numbers: Mapping[str, Mapping[str, np.ndarray]], methods: list[str], theme: str, looks: Mapping[str, Look]) -> Any:
    import plotly.graph_objects as go

    figure = new_plotly(theme, columns=len(numbers))
    for column, (quantity, of) in enumerate(numbers.items(), 1):
        for method in methods:
            values = of.get(method, np.empty(0))
            trace = go.Box(
                y=values.tolist(),
                name=plain(method),
                boxpoints="all",
                boxmean=True,
                marker_color=looks[method].color,
                showlegend=column == 1,
                legendgroup=plain(method),
            )
            figure.add_trace(trace, row=1, col=column)
        figure.update_yaxes(title_text=plain(quantity, 80), rangemode="tozero", row=1, col=column)
    return figure
