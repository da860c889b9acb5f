"""Bands around curves, for the figures that have them in plotly too: the range over seeds, or a standard error on either side."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from landscape.results.types import Array

if TYPE_CHECKING:
    import plotly.graph_objects as go


def plotly_band(x: Array, low: Array, high: Array, color: str, group: str) -> list[go.Scatter]:
    """Return the two traces of a band; it comes and goes with the curve of the same legend group.

    Args:
        x: (n,) places.
        low: (n,) lower edge.
        high: (n,) upper edge.
        color: as #rrggbb.
        group: of the legend.

    Returns:
        Traces to add in this order.
    """
    import plotly.graph_objects as go

    edge: dict[str, Any] = {
        "x": x,
        "mode": "lines",
        "line": {"width": 0},
        "hoverinfo": "skip",
        "showlegend": False,
        "legendgroup": group,
    }
    red, green, blue = (int(color[i : i + 2], 16) for i in (1, 3, 5))
    return [go.Scatter(y=low, **edge), go.Scatter(y=high, fill="tonexty", fillcolor=f"rgba({red},{green},{blue},0.2)", **edge)]
