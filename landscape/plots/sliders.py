"""Figures with a slider along training: surfaces and spectra of several epochs, the steps of a trajectory, gradients layer by layer.

They are plotly figures with frames. A page that `save` or `report` writes moves them with a slider of the browser's own, which the keyboard
reaches; in a notebook plotly draws one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from landscape.plots.checks import check_drawing, check_named, check_plane, check_type
from landscape.plots.interactive import new_plotly, plain, with_slider
from landscape.plots.paths import trajectory
from landscape.plots.scale import LossScale, loss_scale
from landscape.plots.spectra import spectra
from landscape.plots.style import INK, PALETTE, Look, looks_for
from landscape.plots.surfaces3d import heights, surface3d
from landscape.results.types import CurvatureTrace, GradientTrace, LossPath, SpectralDensity, Surface

if TYPE_CHECKING:
    import plotly.graph_objects as go

MOST = 60
"""The most steps of a slider: of longer records so many are chosen, evenly, the first and the last among them."""


def surface_slider(surfaces: Mapping[int, Surface], *, theme: str = "light", scale: LossScale | None = None, along: str = "epoch") -> Any:
    """Draw the losses on planes around a network at several moments of its training, one at a time, all on one scale.

    Args:
        surfaces: with two axes, by epoch, in the order of the slider.
        theme: "light" or "dark".
        scale: the range of losses, to share it with other figures; from these surfaces by default.
        along: what the slider moves along.

    Returns:
        The plotly figure; it begins at the last surface.
    """
    check_drawing("plotly", theme, 1)
    named = check_named(surfaces, Surface, "surfaces")
    for name, surface in named.items():
        check_plane(surface, f"surfaces[{name!r}]")
    chosen = _some(named)
    scale = scale or loss_scale(s.loss for s in named.values())
    figure = surface3d(list(chosen.values())[-1], backend="plotly", theme=theme, scale=scale)
    return with_slider(figure, [_frame(name, [{"type": "surface", **heights(s, scale)}]) for name, s in chosen.items()], along)


def spectrum_slider(densities: Mapping[int, SpectralDensity], *, theme: str = "light", along: str = "epoch") -> Any:
    """Draw the spectral densities of a network at several moments of its training, one at a time, on the same axes.

    Args:
        densities: by epoch, in the order of the slider.
        theme: "light" or "dark".
        along: what the slider moves along.

    Returns:
        The plotly figure; it begins at the last density.
    """
    check_drawing("plotly", theme, 1)
    named = check_named(densities, SpectralDensity, "densities")
    last = list(named)[-1]
    looks = {last: Look(PALETTE[0], "o", "-")}
    every = spectra(named, backend="plotly", theme=theme)
    figure = spectra({last: named[last]}, backend="plotly", theme=theme, looks=looks)
    nodes = np.concatenate([d.nodes[np.isfinite(d.nodes)] for d in named.values()])
    wide = max(d.sigma for d in named.values())
    if nodes.size:
        figure.update_xaxes(range=[nodes.min() - 5 * wide, nodes.max() + 5 * wide])
    figure.update_yaxes(range=every.layout.yaxis.range, title_text="density (log scale)", exponentformat="power", dtick=1)
    figure.update_layout(showlegend=False)
    frames = []
    for name, density in _some(named).items():
        drawn = spectra({last: density}, backend="plotly", theme=theme, looks=looks).data
        empty = [{"type": "scatter", "x": [], "y": []}] * (len(figure.data) - len(drawn))
        frames.append(_frame(name, [{"type": "scatter", "x": t.x, "y": t.y} for t in drawn][: len(figure.data)] + empty))
    return with_slider(figure, frames, along)


def trajectory_slider(one: LossPath, surface: Surface, *, theme: str = "light", scale: LossScale | None = None) -> Any:
    """Draw a training run step by step over the loss on its plane; the pointer says loss, accuracy and distance from the plane.

    Args:
        one: the steps, projected on the plane of the surface.
        surface: the loss on that plane.
        theme: "light" or "dark".
        scale: the range of losses, to share it with other figures.

    Returns:
        The plotly figure; it begins at the last step.
    """
    path, plane = check_type(one, LossPath, "path"), check_plane(surface, "surface")
    figure = trajectory(path, plane, backend="plotly", theme=theme, scale=scale)
    assert path.coordinates is not None
    x, y = path.coordinates.T
    numbers = path.step if path.step is not None else path.t
    assert numbers is not None
    place = next(i for i, trace in enumerate(figure.data) if trace.name == "trajectory")
    distance = np.zeros(len(x)) if path.distance is None else path.distance
    said = np.stack([np.asarray(numbers, float), path.loss, path.accuracy, distance], axis=-1)
    lines = ["step %{customdata[0]}", "loss %{customdata[1]:.5g}"]
    lines += ["accuracy %{customdata[2]:.2%}"] if np.isfinite(path.accuracy).any() else []
    lines += ["%{customdata[3]:.3g} away from the plane"] if path.distance is not None else []
    figure.data[place].update(customdata=said, hovertemplate="<br>".join(lines) + "<extra></extra>")
    figure.update_layout(showlegend=True)
    now = {"symbol": "circle", "size": 13, "color": PALETTE[1], "line": {"color": "#ffffff", "width": 2}}
    figure.add_scatter(x=x[-1:], y=y[-1:], mode="markers", marker=now, name="this step", hoverinfo="skip")
    frames = [
        _frame(
            f"{numbers[i]:g}",
            [
                {"type": "scatter", "x": x[: i + 1], "y": y[: i + 1], "customdata": said[: i + 1]},
                {"type": "scatter", "x": x[i : i + 1], "y": y[i : i + 1]},
            ],
            [place, len(figure.data) - 1],
        )
        for i in _chosen(len(x))
    ]
    return with_slider(figure, frames, "step")


def layers_slider(trace: GradientTrace, *, theme: str = "light") -> Any:
    """Draw how well the gradients agree in each layer at one step of training, and where that step lies on the whole trace.

    Args:
        trace: what was recorded while training.
        theme: "light" or "dark".

    Returns:
        The plotly figure; it begins at the last step.

    Raises:
        ValueError: nothing was recorded.
    """
    import plotly.graph_objects as go

    check_drawing("plotly", theme, 1)
    check_type(trace, GradientTrace, "trace")
    if not len(trace.step) or not trace.layer_cosine.size:
        raise ValueError("trace holds no steps, or no layers: record some with landscape.GradientTraceHook")
    figure = new_plotly(theme, rows=2, columns=1, row_heights=[0.3, 0.7], vertical_spacing=0.2)
    names = [plain(name, 30) for name in trace.layers]
    figure.add_trace(go.Scatter(x=trace.step, y=trace.cosine, mode="lines", line={"color": PALETTE[0]}, showlegend=False), row=1, col=1)
    now = {"size": 11, "color": PALETTE[1], "line": {"color": "#ffffff", "width": 1.5}}
    figure.add_trace(go.Scatter(x=trace.step[-1:], y=trace.cosine[-1:], mode="markers", marker=now, showlegend=False), row=1, col=1)
    dots = go.Scatter(
        x=trace.layer_cosine[-1],
        y=names,
        mode="markers",
        marker={"color": PALETTE[0], "size": 9},
        hovertemplate="%{y}<br>cosine %{x:.5g}<extra></extra>",
        showlegend=False,
        cliponaxis=False,
    )
    figure.add_trace(dots, row=2, col=1)
    finite = trace.layer_cosine[np.isfinite(trace.layer_cosine)]
    low = min(float(finite.min()), 1 - 1e-6) if finite.size else 0.0
    figure.update_xaxes(title_text="training step", row=1, col=1)
    figure.update_yaxes(title_text="cosine", row=1, col=1)
    figure.update_xaxes(title_text="cosine of the gradients, by layer", range=[low - 0.02 * (1 - low), 1.0], row=2, col=1)
    figure.update_yaxes(autorange="reversed", row=2, col=1)
    figure.update_layout(height=330 + 18 * len(names))
    frames = [
        _frame(
            f"{trace.step[i]}",
            [
                {"type": "scatter", "x": trace.step[i : i + 1], "y": trace.cosine[i : i + 1]},
                {"type": "scatter", "x": trace.layer_cosine[i]},
            ],
            [1, 2],
        )
        for i in _chosen(len(trace.step))
    ]
    return with_slider(figure, frames, "step")


def eigenvalues_slider(traces: Mapping[str, CurvatureTrace], *, theme: str = "light", looks: Mapping[str, Look] | None = None) -> Any:
    """Draw the largest eigenvalues of the Hessian at one epoch of training, side by side, with their residuals as error bars.

    Args:
        traces: by method.
        theme: "light" or "dark".
        looks: colours by method, from `method_looks`, to agree with other figures.

    Returns:
        The plotly figure; it begins at the last epoch.

    Raises:
        ValueError: nothing was recorded.
    """
    import plotly.graph_objects as go

    check_drawing("plotly", theme, 1)
    named = check_named(traces, CurvatureTrace, "traces")
    looks = looks_for(named, looks)
    epochs = sorted({int(e) for trace in named.values() for e in trace.epoch})
    if not epochs:
        raise ValueError("traces hold no epochs: measure some with `landscape train --curvature-every`")

    def bars(epoch: int) -> list[dict[str, Any]]:
        found = []
        for trace in named.values():
            rows = np.flatnonzero(trace.epoch == epoch)
            values = trace.values[rows[-1]] if rows.size else np.full(trace.values.shape[1], np.nan)
            errors = np.nan_to_num(trace.residuals[rows[-1]]) if rows.size else np.zeros_like(values)
            ranks = np.arange(1, len(values) + 1)
            found.append({"type": "bar", "x": ranks, "y": values, "error_y": {"type": "data", "array": errors}})
        return found

    figure = new_plotly(theme)
    for (name, _), bar in zip(named.items(), bars(epochs[-1]), strict=True):
        text = f"rank %{{x}}<br>%{{y:.5g}} ± %{{error_y.array:.2g}}<extra>{plain(name)}</extra>"
        color = looks[name].color
        shown = {k: v for k, v in bar.items() if k != "type"}
        shown["error_y"] = {**bar["error_y"], "color": INK[theme], "thickness": 1}
        figure.add_trace(go.Bar(name=plain(name), marker={"color": color}, hovertemplate=text, **shown))
    every = np.concatenate([t.values.ravel() for t in named.values()])
    every = every[np.isfinite(every)]
    low, high = (min(0.0, float(every.min())), max(0.0, float(every.max()))) if every.size else (0.0, 1.0)
    figure.update_xaxes(title_text="rank by magnitude", dtick=1)
    figure.update_yaxes(title_text="eigenvalue ± residual", range=[1.06 * low, 1.06 * high or 1.0])
    figure.update_layout(barmode="group", showlegend=True)
    return with_slider(figure, [_frame(str(epochs[i]), bars(epochs[i])) for i in _chosen(len(epochs))], "epoch")


def _chosen(count: int) -> list[int]:
    return [int(i) for i in np.unique(np.linspace(0, count - 1, min(count, MOST)).round().astype(int))]


def _some(named: Mapping[str, Any]) -> dict[str, Any]:
    every = list(named.items())
    return dict(every[i] for i in _chosen(len(every)))


def _frame(name: object, data: list[dict[str, Any]], traces: list[int] | None = None) -> go.Frame:
    import plotly.graph_objects as go

    return go.Frame(name=plain(name), data=data, traces=list(range(len(data))) if traces is None else traces)
