"""Numbers with their error bars, as text: the same everywhere a result is printed."""

from __future__ import annotations

import math

NONE = "–"
_ZERO = 1e-290  # smaller numbers have no powers of ten to be divided by
_DIGITS = 6  # of a value whose error is smaller still


def with_error(value: float | None, error: float | None = None) -> str:
    """Return a value as far as two digits of its error, such as 2.213 ± 0.012 or (1.23 ± 0.04)e+07, and at most six digits.

    Errors are rounded up; one below the last digit shown is given as one unit there, so that what is printed is never closer than what
    was found. Four digits where no error is known.
    """
    if value is None or not math.isfinite(value):
        return NONE
    if error is None or not math.isfinite(error) or error < 0:
        return f"{value:.4g}"
    value, error = (0.0 if abs(x) < _ZERO else x for x in (value, error))
    scale = max(abs(value), error)
    exponent = math.floor(math.log10(scale)) if scale else 0
    power = 0 if -4 <= exponent < 6 else exponent
    value, error, leading = value / 10.0**power, error / 10.0**power, exponent - power
    decimals = _DIGITS - 1 - leading if scale else 0
    if error:
        decimals = min(decimals, 1 - math.floor(math.log10(error)))
    decimals = max(decimals, 0)
    unit = 10.0**-decimals
    if error:
        error = max(math.ceil(error / unit * (1 - 1e-12)) * unit, unit)
    shown = f"{value:.{decimals}f} ± {error:.{decimals}f}" if error else f"{value:.{decimals}f} ± 0"
    return f"({shown})e{power:+03d}" if power else shown
