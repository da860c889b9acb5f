"""One scale for all losses of a figure: logarithmic where it can be, and not ruled by a single spike."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from landscape.plots.style import number
from landscape.results.types import Array

DECADES = 8.0
"""The most decades that a logarithmic scale shows below its upper end."""

_MANTISSAS = ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 5, 7), (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8))


@dataclass(frozen=True)
class LossScale:
    """The range of losses that colours and heights show; what lies outside is drawn like its ends."""

    low: float
    high: float
    log: bool
    lowest: float  # of the data; NaN if nothing is finite
    highest: float

    @property
    def above(self) -> bool:
        """Whether some losses lie above the scale."""
        return self.highest > self.high

    @property
    def below(self) -> bool:
        """Whether some losses lie below the scale."""
        return self.lowest < self.low

    @property
    def extend(self) -> str:
        """The ends of the colour bar that stand for more than their colour, in matplotlib's words."""
        return {(True, True): "both", (True, False): "min", (False, True): "max", (False, False): "neither"}[self.below, self.above]

    @property
    def label(self) -> str:
        """Say what the axis shows."""
        kind = "log scale" if self.log else "linear: some are negative" if self.lowest < 0 else "linear scale"
        return f"loss ({kind})"

    @property
    def note(self) -> str:
        """Say what the scale leaves out; empty if nothing."""
        low, high = f"{self.lowest:.3g}", f"{self.highest:.3g}"
        if self.above and self.below:
            return f"clipped: losses from {low} to {high}"
        return f"clipped: losses reach {high if self.above else low}" if self.above or self.below else ""

    def norm(self) -> Normalize:
        """Return the scale as a matplotlib norm."""
        return LogNorm(self.low, self.high, clip=True) if self.log else Normalize(self.low, self.high, clip=True)

    def clip(self, loss: Array) -> Array:
        """Return the losses moved to the range; NaN where there is none."""
        return np.clip(np.where(np.isfinite(loss), loss, np.nan), self.low, self.high)

    def height(self, loss: Array) -> Array:
        """Return the clipped losses as heights: their decimal logarithm on a logarithmic scale."""
        clipped = self.clip(np.asarray(loss, dtype=float))
        return np.log10(clipped) if self.log else clipped

    def levels(self, count: int = 12) -> Array:
        """Return round numbers inside the range, about `count` at most; spaced logarithmically on a logarithmic scale."""
        if self.log and self.high / self.low > 3:
            decades = np.arange(np.floor(np.log10(self.low)), np.ceil(np.log10(self.high)) + 1)
            best = np.array([])
            for mantissas in _MANTISSAS:
                levels = (10.0 ** decades[:, None] * np.array(mantissas)).ravel()
                levels = levels[(levels >= self.low * (1 - 1e-9)) & (levels <= self.high * (1 + 1e-9))]
                if len(levels) > count and len(best):
                    break
                best = levels
            return best[:: int(np.ceil(len(best) / count))] if len(best) else best
        levels = np.asarray(MaxNLocator(max(2, count), steps=[1, 2, 2.5, 5, 10]).tick_values(self.low, self.high))
        return levels[(levels >= self.low) & (levels <= self.high)]

    def fills(self, count: int = 40) -> Array:
        """Return the bounds of filled bands."""
        if self.log:
            bounds = np.geomspace(self.low, self.high, count)
            bounds[[0, -1]] = self.low, self.high
            return bounds
        return np.linspace(self.low, self.high, count)

    def ticks(self, count: int = 7) -> tuple[Array, list[str]]:
        """Return tick positions, as losses, and their texts."""
        levels = self.levels(count)
        return levels, [number(v) for v in levels]


def loss_scale(losses: Iterable[Array], *, log: bool = True) -> LossScale:
    """Return one scale for several surfaces.

    Losses that would stretch the scale by more than a third beyond the 98th percentile of every surface are left out, so that one spike
    does not take the colours from everything else; `note` says so. A logarithmic scale ends eight decades below its top.

    Args:
        losses: of all the surfaces of a figure.
        log: whether to use a logarithmic scale where no loss is negative.

    Returns:
        The scale.
    """
    values = [loss[np.isfinite(loss)] for loss in (np.asarray(loss, dtype=float) for loss in losses)]
    values = [v for v in values if v.size]
    if not values:
        return LossScale(0.0, 1.0, False, np.nan, np.nan)
    lowest, highest = min(float(v.min()) for v in values), max(float(v.max()) for v in values)
    most = max(float(np.quantile(v, 0.98, method="lower")) for v in values)
    log = log and lowest >= 0 and most > 1e-280  # further down, logarithms of the ends of a colour bar overflow
    low = min(float(v[v > 0].min()) for v in values if (v > 0).any()) if log else lowest
    if log:
        low = max(low, most * 10**-DECADES)
    if most > low:
        high = max(float(v[_span(low, np.maximum(v, low), log) <= 4 / 3 * _span(low, most, log)].max()) for v in values)
    else:
        high = low if max(v.size for v in values) >= 25 else highest  # among a few points nothing is a spike
    if not _span(low, high, log) > 1e-9 * (1 if log else max(abs(low), abs(high))):
        # all the same: a little room on both sides, so that the value has a place
        low, high = (low * 0.9, high * 1.1) if log else (low - 0.1 * (abs(low) or 1), high + 0.1 * (abs(high) or 1))
    return LossScale(low, high, log, lowest, highest)


def _span(low: float, high: Any, log: bool) -> Any:
    return np.log10(high) - np.log10(low) if log else high - low


def draw_colorbar(figure: Figure, axes: Axes, scale: LossScale) -> None:
    """Draw the scale as a colour bar into the axes."""
    bar = figure.colorbar(ScalarMappable(scale.norm()), cax=axes, extend=scale.extend)
    levels, texts = scale.ticks()
    bar.set_ticks(list(levels), labels=texts)
    bar.minorticks_off()
    bar.set_label(f"{scale.label}\n{scale.note}" if scale.note else scale.label, size=7)
    bar.outline.set_linewidth(0.4)


def log_ticks(axes: Axes, values: Array, axis: Literal["x", "y"] = "y") -> None:
    """Make an axis logarithmic, with round numbers as ticks also where there is less than a decade."""
    (axes.set_xscale if axis == "x" else axes.set_yscale)("log")
    positive = values[np.isfinite(values) & (values > 0)]
    if positive.size and positive.max() / positive.min() < 1e4:
        low, high = float(positive.min()), float(positive.max())
        levels, texts = LossScale(low, high, True, low, high).ticks(6)
        (axes.set_xticks if axis == "x" else axes.set_yticks)(levels, labels=texts)
        (axes.xaxis if axis == "x" else axes.yaxis).minorticks_off()
