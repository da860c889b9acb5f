"""What plotly figures share: layout by theme, text that carries no markup, values under the pointer, and the page around a figure."""

from __future__ import annotations

import base64
import hashlib
import html
import json
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import jinja2
import numpy as np
from markupsafe import Markup

from landscape.plots.scale import LossScale
from landscape.plots.style import INK, MISSING, PALETTE, PAPER, label
from landscape.results.types import Array, Surface

if TYPE_CHECKING:
    import plotly.graph_objects as go

# Newer versions of plotly.js offer to upload the chart; a page that needs no network has no such button. The wheel scrolls the page.
CONFIG = {
    "responsive": True,
    "displaylogo": False,
    "plotlyServerURL": "",
    "scrollZoom": False,
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


def hover(surface: Surface) -> tuple[Array, str]:
    """Return what to say of each point of a plane: loss with its standard error, accuracy, and how far an interpolated loss may be off.

    Args:
        surface: a surface with two axes.

    Returns:
        The values of each point, (ny, nx, k), and the template that shows them.
    """
    values, said = [surface.loss], ["loss %{customdata[0]:.5g}"]

    def add(numbers: Array | None, text: str, joint: str) -> None:
        if numbers is not None and np.isfinite(numbers).any():
            said.append(joint + text.replace("#", f"customdata[{len(values)}]"))
            values.append(np.asarray(numbers, np.float64))

    add(surface.stderr, "%{#:.2g}", " ± ")
    add(surface.accuracy, "accuracy %{#:.2%}", "<br>")
    add(surface.error_estimate, "interpolated, within %{#:.2g}", "<br>")
    return np.stack(values, axis=-1), "".join(said)


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


def with_slider(figure: go.Figure, frames: list[go.Frame], what: str) -> go.Figure:
    """Return the figure with a slider over frames, named after what it moves along; it begins at the last frame."""
    figure.frames = frames
    moves = {"mode": "immediate", "frame": {"duration": 0, "redraw": True}, "transition": {"duration": 0}}
    figure.update_layout(
        sliders=[
            {
                "active": len(frames) - 1,
                "currentvalue": {"prefix": f"{what} "},
                "pad": {"t": 36},
                "steps": [{"label": frame.name, "method": "animate", "args": [[frame.name], moves]} for frame in frames],
            }
        ]
    )
    return figure


def page(figure: go.Figure, title: str, *, plotlyjs: str = "inline") -> str:
    """Return a page that shows the figure without a network, with sliders that the keyboard reaches too.

    Args:
        figure: a plotly figure; one with frames gets a slider over them, one with 3-D scenes sliders that turn them all together.
        title: of the page.
        plotlyjs: "inline", or the name of a file with plotly.js beside the page.

    Returns:
        The HTML.
    """
    theme = "dark" if figure.layout.paper_bgcolor == PAPER["dark"] else "light"
    drawn = json.loads(figure.to_json())
    scripts = [*([library()] if plotlyjs == "inline" else []), template_text("interactive.js")]
    return (
        environment()
        .get_template("figure.html.jinja")
        .render(
            title=title,
            theme=theme,
            live=Live("figure", [title], [drawn], title),
            data=json_element({"figure": [drawn]}),
            style=Markup(template_text("interactive.css")),
            paper=PAPER[theme],
            ink=INK[theme],
            line=MISSING[theme],
            library="" if plotlyjs == "inline" else plotlyjs,
            scripts=[Markup(script) for script in scripts],
            hashes=script_hashes(scripts),
        )
    )


class Live:
    """Figures of a page that share their sliders: for the camera where there are scenes, for the steps where there are frames."""

    def __init__(
        self, key: str, names: list[str], figures: list[dict[str, Any]], alt: str, *, note: str = "", scale: LossScale | None = None
    ):
        """Take the figures, as plotly's JSON, one for each name; `alt` says what they show, `scale` what their colours mean."""
        self.key, self.names, self.figures, self.alt, self.note = key, names, figures, alt, note
        self.bar = _bar(scale) if scale is not None and np.isfinite(scale.lowest) else None
        self.scenes = any(name.startswith("scene") for figure in figures for name in figure["layout"])
        self.frames = [str(frame["name"]) for frame in figures[0].get("frames") or []]
        sliders = figures[0]["layout"].get("sliders") or [{}]
        self.along = str(sliders[0].get("currentvalue", {}).get("prefix", "step")).strip()
        eye = next((f["layout"][n]["camera"]["eye"] for f in figures for n in f["layout"] if n.startswith("scene")), None)
        self.azimuth = round(np.degrees(np.arctan2(eye["y"], eye["x"]))) if eye else 0
        self.elevation = round(np.degrees(np.arctan2(eye["z"], np.hypot(eye["x"], eye["y"])))) if eye else 0


def _bar(scale: LossScale) -> dict[str, Any]:
    """Return a colour bar as a page draws it: places of the ticks in percent of its length, and their texts."""
    levels, _ = scale.ticks(7)
    low, high = (float(v) for v in scale.height(np.array([scale.low, scale.high])))
    at = [round(100 * (float(h) - low) / (high - low), 1) for h in scale.height(levels)]
    return {"ticks": list(zip(at, (f"{v:.3g}" for v in levels), strict=True)), "label": scale.label, "note": scale.note}


def library() -> str:
    """Return plotly.js as a script that can stand inside a page."""
    from plotly.offline import get_plotlyjs

    return str(get_plotlyjs()).replace("</script", r"<\/script")


@cache
def template_text(name: str) -> str:
    """Return a template of a page, or a part of one."""
    return (files(__package__) / "templates" / name).read_text(encoding="utf-8")


@cache
def environment() -> jinja2.Environment:
    """Return where templates are; whatever they are given is escaped."""
    return jinja2.Environment(
        loader=jinja2.FunctionLoader(template_text), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )


def json_element(figures: Mapping[str, Any], **more: Any) -> Markup:
    """Return the data of a page as JSON that holds no character which could end the element around it."""
    text = json.dumps({"figures": figures, "config": CONFIG, **more}, separators=(",", ":"), allow_nan=False)
    for character in "<>&'\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def script_hashes(scripts: list[str]) -> str:
    """Return the scripts that a page's security policy lets run, and no others."""
    digests = (base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts)
    return " ".join(f"'sha256-{digest}'" for digest in digests)
