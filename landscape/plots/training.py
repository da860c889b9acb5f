"""How training went: loss and accuracy over epochs and over seconds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.lines import Line2D

from landscape.plots.epochs import check_epochs, epoch_axis, say_if_empty
from landscape.plots.interactive import new_plotly, plain
from landscape.plots.scale import log_ticks
from landscape.plots.style import FULL, INK, Look, PaperFigure, label, legend_columns, legend_height, paper_style
from landscape.results.types import Array, TrainingHistory

_ROWS = ("loss", "accuracy")
_COLUMNS = (("epoch", "epoch"), ("seconds", "training time (s)"))


def training(
    histories: Mapping[str, TrainingHistory],
    *,
    backend: str = "matplotlib",
    theme: str = "light",
    width: float = FULL,
    looks: Mapping[str, Look] | None = None,
) -> Any:
    """Draw training (dashed) and test (solid) loss and accuracy, over epochs and over seconds.

    Args:
        histories: by method.
        backend: "matplotlib" or "plotly".
        theme: "light" or "dark".
        width: in inches, of the matplotlib figure.
        looks: colours by method, from `method_looks`, to agree with other figures.

    Returns:
        The matplotlib or plotly figure.
    """
    named, looks = check_epochs(histories, TrainingHistory, "histories", looks, backend=backend, theme=theme, width=width)
    losses = np.concatenate([np.concatenate([h.train_loss, h.test_loss]) for h in named.values()])
    losses = losses[np.isfinite(losses)]
    log = bool(losses.size and losses.min() > 0)
    names = {"loss": f"loss ({'log' if log else 'linear'} scale)", "accuracy": "accuracy"}
    if backend == "plotly":
        return _plotly(named, looks, theme, log, names)
    with paper_style(theme):
        columns = _COLUMNS if width > 4 else _COLUMNS[:1]
        key = [Line2D([], [], color=looks[name].color, label=label(name, 28)) for name in named]
        key += [
            Line2D([], [], color=INK[theme], ls=dashes, lw=lw, label=text)
            for text, dashes, lw in (("train", "--", 0.8), ("test", "-", 1.2))
        ]
        texts = [str(entry.get_label()) for entry in key]
        figure = PaperFigure(figsize=(width, 3.7 + legend_height(texts, width)), theme=theme)
        axes = figure.subplots(2, len(columns), squeeze=False, sharex="col", sharey="row")
        for row, kind in enumerate(_ROWS):
            for column, (over, text) in enumerate(columns):
                ax = axes[row, column]
                for name, history in named.items():
                    for part, dashes in (("train", "--"), ("test", "-")):
                        x, y = _curve(history, over, f"{part}_{kind}")
                        ax.plot(
                            x,
                            y,
                            dashes,
                            lw=0.8 if part == "train" else 1.2,
                            color=looks[name].color,
                            marker=looks[name].marker if len(x) == 1 else "",
                        )
                if row == 1:
                    ax.set_xlabel(text)
                if column == 0:
                    ax.set_ylabel(names[kind])
                ax.grid(True)
        if log:
            log_ticks(axes[0, 0], losses)
        epoch_axis(axes[1, 0])
        say_if_empty(axes[0, 0], [h.epoch for h in named.values()])
        figure.legend(handles=key, loc="outside lower center", ncols=legend_columns(texts, width))
    return figure


def _curve(history: TrainingHistory, over: str, of: str) -> tuple[Array, Array]:
    y = np.asarray(getattr(history, of), dtype=float)
    return np.asarray(getattr(history, over), dtype=float), np.where(np.isfinite(y), y, np.nan)


def _plotly(named: dict[str, TrainingHistory], looks: Mapping[str, Look], theme: str, log: bool, names: dict[str, str]) -> Any:
    import plotly.graph_objects as go

    figure = new_plotly(theme, rows=2, columns=2, shared_yaxes=True, shared_xaxes="columns", horizontal_spacing=0.04, vertical_spacing=0.06)
    for row, kind in enumerate(_ROWS, start=1):
        for column, (over, text) in enumerate(_COLUMNS, start=1):
            for name, history in named.items():
                for part, dash in (("train", "dash"), ("test", "solid")):
                    x, y = _curve(history, over, f"{part}_{kind}")
                    figure.add_trace(
                        go.Scatter(
                            x=x,
                            y=y,
                            name=f"{plain(name)}, {part}",
                            legendgroup=f"{plain(name)}, {part}",
                            showlegend=row == column == 1,
                            mode="lines",
                            line={"color": looks[name].color, "dash": dash, "width": 1.5},
                        ),
                        row=row,
                        col=column,
                    )
            figure.update_xaxes(title_text=text if row == 2 else "", row=row, col=column)
        figure.update_yaxes(title_text=names[kind], row=row, col=1)
    if log:
        figure.update_yaxes(type="log", row=1)
    figure.update_layout(height=560)
    return figure
