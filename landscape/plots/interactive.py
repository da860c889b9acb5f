"""What plotly figures share: layout by theme, text that carries no markup, and the page around a figure."""

from __future__ import annotations

import html
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from landscape.plots.scale import LossScale
from landscape.plots.style import INK, MISSING, PALETTE, PAPER, label

if TYPE_CHECKING:
    import plotly.graph_objects as go

# newer versions of plotly.js offer to upload the chart; a page that needs no network has no such button
CONFIG = {
    "responsive": True,
    "displaylogo": False,
    "plotlyServerURL": "",
    "modeBarButtonsToRemove": ["sendChartToCloud", "sendDataToCloud"],
}
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif"


def plain(text: object, limit: int = 40) -> str:
    """Return text for plotly, which reads a little HTML, so that it shows every character and obeys none."""
    shown = label(text, limit).replace(r"\$", "$").replace("∖", "\\").strip()
    return html.escape(shown, quote=False).replace("%{", "%\u200b{")


def new_plotly(theme: str, *, rows: int = 1, columns: int = 1, titles: list[str] | None = None, **kwargs: Any) -> go.Figure:
    """Return an empty figure of so many panels; the titles are plain text."""
    from plotly.subplots import make_subplots

    figure = make_subplots(rows=rows, cols=columns, subplot_titles=[plain(t, 28) for t in titles] if titles else None, **kwargs)
    figure.update_layout(
        template="none",
        font={"family": FONT, "size": 13, "color": INK[theme]},
        paper_bgcolor=PAPER[theme],
        plot_bgcolor=PAPER[theme],
        colorway=list(PALETTE),
        margin={"l": 64, "r": 16, "t": 40 if titles else 24, "b": 56},
        legend={"orientation": "h", "y": -0.22, "yanchor": "top", "x": 0},
        hoverlabel={"font": {"family": FONT}},
    )
    line = {
        "linecolor": INK[theme],
        "gridcolor": MISSING[theme],
        "zeroline": False,
        "showline": True,
        "ticks": "outside",
        "automargin": True,
    }
    figure.update_xaxes(**line)
    figure.update_yaxes(**line)
    return figure


def colorbar(scale: LossScale, theme: str, *, logarithm: bool) -> dict[str, Any]:
    """Return a colour bar in losses for colours that are heights (`logarithm`) or losses themselves."""
    levels, _ = scale.ticks(8)
    note = f"<br><span style='font-size:11px'>{scale.note}</span>" if scale.note else ""
    return {
        "title": {"text": f"{scale.label}{note}", "side": "right"},
        "tickvals": list(scale.height(levels) if logarithm else levels),
        "ticktext": [f"{v:.3g}" for v in levels],
        "thickness": 14,
        "outlinewidth": 0,
        "tickfont": {"color": INK[theme]},
    }


@cache
def camera_script() -> str:
    """Return the JavaScript that makes all 3-D scenes of one figure turn together; `gd` is the figure's element."""
    return (files(__package__) / "templates" / "cameras.js").read_text(encoding="utf-8")


def page(figure: go.Figure, title: str, *, plotlyjs: bool | str = True) -> str:
    """Return a page that shows the figure without a network; `plotlyjs` as in plotly's `write_html`."""
    script = f"(function (gd) {{{camera_script()}}})(document.getElementById('{{plot_id}}'));"
    body = figure.to_html(full_html=False, include_plotlyjs=plotlyjs, div_id="figure", post_script=script, config=CONFIG)
    theme = "dark" if figure.layout.paper_bgcolor == PAPER["dark"] else "light"
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'self' 'unsafe-inline' data: blob: file:\">"
        f"<title>{html.escape(title)}</title>"
        '<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">'
        f"<style>html,body{{margin:0;height:100%;background:{PAPER[theme]}}}body>div{{height:100%}}#figure{{min-height:100%}}</style></head>"
        f"<body>{body}</body></html>\n"
    )
