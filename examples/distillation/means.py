"""Means over draws, with intervals and p values of Student's t."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Mean:
    """The mean of independent values with its interval of 95 %, and the p value of a mean of zero."""

    value: float
    low: float
    high: float
    p: float
    deviation: float
    """Of the values."""
    count: int


def mean_of(values: Sequence[float], level: float = 0.05) -> Mean:
    """Mean and interval over draws. A single value has no interval: it is infinite, and p is 1."""
    count = len(values)
    mean = math.fsum(values) / count
    if count == 1:
        return Mean(mean, -math.inf, math.inf, 1.0, math.nan, 1)
    from scipy import special  # the pages need it; a machine that only makes draws may not have it

    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (count - 1))
    error = deviation / math.sqrt(count)
    half = float(special.stdtrit(count - 1, 1 - level / 2)) * error
    p = 2 * float(special.stdtr(count - 1, -abs(mean) / error)) if error else float(mean == 0)
    return Mean(mean, mean - half, mean + half, p, deviation, count)
