"""Student's t: tail probabilities and intervals, without scipy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

TINY = 1e-300
TERMS = 500


def incomplete_beta(a: float, b: float, x: float) -> float:
    """The regularised incomplete beta function I_x(a, b), by its continued fraction (Abramowitz and Stegun 26.5.8)."""
    if x <= 0 or x >= 1:
        return float(x >= 1)
    if x > (a + 1) / (a + b + 2):
        return 1 - incomplete_beta(b, a, 1 - x)
    front = math.exp(math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)) / a
    # The fraction 1 / (1 + d1 / (1 + d2 / (1 + ...))) from its front, by Lentz's method.
    value, c, d = 1.0, 1.0, 0.0
    for term in range(TERMS):
        m = term // 2
        if term == 0:
            step = 1.0
        elif term % 2:
            step = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        else:
            step = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        d = 1 / (1 + step * d or TINY)
        c = 1 + step / c or TINY
        value *= c * d
        if abs(c * d - 1) < 1e-14:
            break
    return front * (value - 1)


def two_sided_p(t: float, degrees: int) -> float:
    """The probability of a value at least as far from zero as t."""
    return incomplete_beta(degrees / 2, 0.5, degrees / (degrees + t * t))


@cache
def quantile(degrees: int, level: float) -> float:
    """The t whose two-sided probability is `level`."""
    low, high = 0.0, 1e6
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if two_sided_p(middle, degrees) > level else (low, middle)
    return (low + high) / 2


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
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (count - 1))
    error = deviation / math.sqrt(count)
    half = quantile(count - 1, level) * error
    p = two_sided_p(mean / error, count - 1) if error else float(mean == 0)
    return Mean(mean, mean - half, mean + half, p, deviation, count)
