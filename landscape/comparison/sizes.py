"""How much a comparison measures, and time as users write it."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

from landscape.sharpness import chosen


@dataclass(frozen=True)
class Sizes:
    """How much is measured; the defaults suit a small network. What is 0 or empty is left out."""

    eigenpairs: int = 5
    eigen_tol: float = 1e-3
    products: int = 300
    """Products with the Hessian at most, for the eigenvalues and again for the trace."""
    trace_tol: float = 0.05
    density_probes: int = 4
    density_steps: int = 32
    rho: float = 0.05
    shards: tuple[int, ...] = (1, 16, 128)
    """Examples per shard of m-sharpness, one measurement each."""
    measures: tuple[str, ...] = ("all",)
    """Of sharpness, by name; see docs/sharpness.md."""
    draws: int | None = None
    """Of the measures that average over noise; None for each one's own number."""
    points: int = 51
    """Points per axis of the plane; on the line and between two models they cost little, and are as many where there are some."""
    tolerance: float | None = 0.01
    """Surfaces are evaluated where the others cannot be interpolated so well, relative to the loss; None evaluates every point."""
    span: float = 1.0
    """Surfaces reach from -span to span in units of the filter-normalised directions."""
    between: int = 25
    """Points between two models."""
    examples: int | None = None
    """Examples to measure on, spread evenly over the data; None for all."""
    surface_examples: int | None = None
    """Of these, the ones that surfaces and the way between two models are computed on; None for all."""
    test_examples: int | None = None
    """Of the test data; None for all."""

    def __post_init__(self) -> None:
        """Refuse sizes that cannot be, before anything is measured."""
        least = {"eigenpairs": 1, "products": 3, "density_probes": 0, "density_steps": 2, "points": 0, "between": 0}
        least |= {name: 1 for name in ("examples", "surface_examples", "test_examples") if getattr(self, name) is not None}
        least |= {"draws": 3} if self.draws is not None else {}
        for name, low in least.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < low:
                raise ValueError(f"sizes: {name} must be a whole number of at least {low}, got {value!r}")
        for name in ("points", "between"):
            if getattr(self, name) == 1:
                raise ValueError(f"sizes: {name} must be 0 or at least 2, got 1")
        for name in ("eigen_tol", "trace_tol", "span"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"sizes: {name} must be a positive number, got {getattr(self, name)!r}")
        if self.tolerance is not None and not 0 < self.tolerance < 1:
            raise ValueError(f"sizes: tolerance must be above 0 and below 1, or None, got {self.tolerance!r}")
        if not 0 <= self.rho < math.inf:
            raise ValueError(f"sizes: rho must be at least 0 and finite, got {self.rho!r}")
        object.__setattr__(self, "shards", tuple(self.shards))
        if any(isinstance(m, bool) or not isinstance(m, int) or m < 1 for m in self.shards):
            raise ValueError(f"sizes: shards must be whole numbers of at least 1 (examples per shard), got {self.shards!r}")
        object.__setattr__(self, "measures", chosen(self.measures) if self.measures else ())


_UNITS = {"s": 1, "sec": 1, "m": 60, "min": 60, "h": 3600}


def seconds_of(budget: Any) -> float:
    """Return a time as seconds: a number of them, or such as "90s", "5m", "1h", "1h30m".

    Args:
        budget: the time.

    Returns:
        Seconds.

    Raises:
        ValueError: it is no time above zero.
    """
    found: float | None = None
    if isinstance(budget, (int, float)) and not isinstance(budget, bool):
        found = float(budget)
    elif isinstance(budget, str) and (text := budget.strip().lower()):
        pairs = re.findall(r"([0-9]*\.?[0-9]+)\s*(sec|min|s|m|h)?\s*", text)
        whole = re.fullmatch(r"(?:[0-9]*\.?[0-9]+\s*(?:sec|min|s|m|h)\s*)+|[0-9]*\.?[0-9]+", text)
        found = sum(float(number) * _UNITS[unit or "s"] for number, unit in pairs) if whole else None
    if found is None or not 0 < found < math.inf:
        raise ValueError(f"budget must be a time such as 90s, 5m or 1h, got {budget!r}")
    return found


def in_words(seconds: float) -> str:
    """Return a time as people say it: 40 s, 3 min 20 s, 2 h 5 min."""
    if seconds < 9.5:
        return f"{seconds:.1f} s" if seconds < 9.95 else "10 s"
    whole = round(seconds)
    if whole < 100:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s" if whole % 60 else f"{whole // 60} min"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
