"""Medians, spreads and percentiles."""

from __future__ import annotations

import math
import statistics
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


def percentile(values: Sequence[float], share: float) -> float:
    """The nearest-rank percentile; ``share`` from 0 to 1. NaN where there are no values."""
    if not values:
        return math.nan
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, math.ceil(share * len(ordered)) - 1))]


def median(values: Sequence[float]) -> float:
    """The median. NaN where there are no values."""
    return statistics.median(values) if values else math.nan


def number(value: float) -> str:
    """A figure with as many digits as it deserves."""
    if math.isnan(value):
        return "–"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def spread(values: Sequence[float]) -> str:
    """The median of the runs and, in brackets, the lowest and highest."""
    known = [value for value in values if not math.isnan(value)]
    if not known:
        return "–"
    if len(known) == 1:
        return number(known[0])
    return f"{number(median(known))} ({number(min(known))}–{number(max(known))})"


def ratio(value: float, base: float) -> str:
    """How many times ``base`` the value is."""
    if not base or math.isnan(value) or math.isnan(base):
        return "–"
    return f"{value / base:.2f}×"
