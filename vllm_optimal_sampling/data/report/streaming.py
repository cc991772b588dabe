"""Figures of a stream in bounded memory: histograms, a band along the sequence, a count of distinct keys, a sample.

Nothing here keeps a value. What comes out is exact for counts, means, smallest and largest values, and to the width of a
bin for quantiles.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
T = TypeVar("T")

QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)


@dataclass(frozen=True)
class Distribution:
    """What a stream of numbers looked like.

    Attributes:
        count: how many were finite; the other figures are of those, and NaN where there is none.
        num_not_finite: how many were infinite, NaN or null.
        mean, std, min, max: std is that of the population.
        quantiles: value by probability, for those in `QUANTILES`.
        edges: `[bins + 1]`, rising. Values beyond the ends are counted in the first and last bin.
        counts: `[bins]`.
    """

    count: int
    num_not_finite: int
    mean: float
    std: float
    min: float
    max: float
    quantiles: dict[float, float]
    edges: Floats
    counts: NDArray[np.int64]


class Moments:
    """Count, mean, spread and ends of numbers that come in arrays (Chan's parallel update)."""

    def __init__(self) -> None:
        self.count = 0
        self.mean = math.nan
        self.squares = 0.0
        self.min = math.inf
        self.max = -math.inf

    def add(self, values: Floats) -> None:
        """Take finite numbers."""
        if not len(values):
            return
        mean = float(values.mean())
        squares = float(np.square(values - mean).sum())
        total = self.count + len(values)
        if self.count:
            shift = mean - self.mean
            self.squares += squares + shift * shift * self.count * len(values) / total
            self.mean += shift * len(values) / total
        else:
            self.mean, self.squares = mean, squares
        self.count = total
        self.min = min(self.min, float(values.min()))
        self.max = max(self.max, float(values.max()))

    @property
    def std(self) -> float:
        return math.sqrt(self.squares / self.count) if self.count else math.nan


class Histogram:
    """Counts of numbers in bins that are fixed beforehand.

    Args:
        edges: `[bins + 1]`, rising.
        log: the bins are equal on a logarithmic axis, and quantiles are interpolated there.
    """

    def __init__(self, edges: Floats, log: bool = False) -> None:
        self.edges = edges
        self.log = log
        self.counts = np.zeros(len(edges) - 1, np.int64)
        self.moments = Moments()
        self.num_not_finite = 0

    def add(self, values: Floats) -> None:
        """Take numbers; what is not finite is only counted."""
        finite = values[np.isfinite(values)]
        self.num_not_finite += len(values) - len(finite)
        self.moments.add(finite)
        bins = np.searchsorted(self.edges, finite, side="right") - 1
        self.counts += np.bincount(np.clip(bins, 0, len(self.counts) - 1), minlength=len(self.counts))

    def result(self) -> Distribution:
        moments = self.moments
        empty = moments.count == 0
        return Distribution(
            count=moments.count,
            num_not_finite=self.num_not_finite,
            mean=moments.mean,
            std=moments.std,
            min=math.nan if empty else moments.min,
            max=math.nan if empty else moments.max,
            quantiles={
                q: math.nan
                if empty
                else min(max(quantile(self.edges, self.counts, q, self.log), moments.min), moments.max)
                for q in QUANTILES
            },
            edges=self.edges,
            counts=self.counts,
        )


class GrowingHistogram:
    """Counts of whole numbers from 0 on, in equal bins that double in width whenever a number is beyond them.

    Args:
        bins: even number of bins.
    """

    def __init__(self, bins: int) -> None:
        self.width = 1
        self.counts = np.zeros(bins, np.int64)
        self.moments = Moments()

    def add(self, values: Floats) -> None:
        """Take whole numbers of at least 0."""
        if not len(values):
            return
        self.moments.add(values)
        while values.max() >= self.width * len(self.counts):
            self.counts = doubled(self.counts)
            self.width *= 2
        self.counts += np.bincount((values // self.width).astype(np.int64), minlength=len(self.counts))

    def result(self) -> Distribution:
        # A bin [0, 2) holds 0 and 1; shifted by a half it is centred on what it holds.
        histogram = Histogram(np.arange(len(self.counts) + 1, dtype=np.float64) * self.width - 0.5)
        histogram.counts, histogram.moments = self.counts, self.moments
        return histogram.result()


class GrowingBand:
    """For each stretch of positions a histogram of values in [0, 1]; stretches double as sequences get longer.

    Args:
        stretches: even number of stretches.
        bins: bins of the values.
    """

    def __init__(self, stretches: int, bins: int) -> None:
        self.width = 1
        self.counts = np.zeros((stretches, bins), np.int64)

    def add(self, positions: NDArray[np.int64], values: Floats) -> None:
        """Take values, `[n]`, at positions from 0 on, `[n]`; those that are not finite are left out."""
        keep = np.isfinite(values)
        positions, values = positions[keep], values[keep]
        if not len(values):
            return
        stretches, bins = self.counts.shape
        while positions.max() >= self.width * stretches:
            self.counts = doubled(self.counts)
            self.width *= 2
        cells = positions // self.width * bins + np.clip((values * bins).astype(np.int64), 0, bins - 1)
        self.counts += np.bincount(cells, minlength=self.counts.size).reshape(self.counts.shape)

    def quantiles(self, q: float) -> Floats:
        """`[stretches]`, NaN for a stretch without values."""
        edges = np.linspace(0, 1, self.counts.shape[1] + 1)
        return np.array([quantile(edges, row, q) if row.any() else math.nan for row in self.counts])


def doubled(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Pairs of bins along the first axis added up, and as many empty ones behind them."""
    pairs = counts[0::2] + counts[1::2]
    return np.concatenate([pairs, np.zeros_like(pairs)])


def quantile(edges: Floats, counts: NDArray[np.int64], q: float, log: bool = False) -> float:
    """The q-quantile of what was counted, as if it were spread evenly in each bin; `counts` is not all zero."""
    cumulative = np.cumsum(counts)
    target = q * cumulative[-1]
    bin_ = min(int(np.searchsorted(cumulative, target, side="left")), len(counts) - 1)
    while counts[bin_] == 0:  # q = 0 before the first value
        bin_ += 1
    share = float(np.clip((target - (cumulative[bin_] - counts[bin_])) / counts[bin_], 0, 1))
    low, high = float(edges[bin_]), float(edges[bin_ + 1])
    return low * (high / low) ** share if log else low + share * (high - low)


class Distinct:
    """How many different keys came: exact up to `size`, and estimated beyond it from the `size` smallest hashes.

    The error of the estimate is about 1 / sqrt(size): 0.3 % here.
    """

    def __init__(self, size: int = 1 << 17) -> None:
        self.size = size
        self.smallest = np.zeros(0, np.uint64)
        self.buffer: list[int] = []
        self.is_exact = True

    def add(self, key: str) -> None:
        digest = hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=8).digest()
        self.buffer.append(int.from_bytes(digest, "little"))
        if len(self.buffer) >= self.size // 2:
            self._merge()

    def _merge(self) -> None:
        merged = np.union1d(self.smallest, np.array(self.buffer, np.uint64))
        self.buffer.clear()
        self.is_exact &= len(merged) <= self.size
        self.smallest = merged[: self.size]

    def count(self) -> int:
        self._merge()
        if self.is_exact:
            return len(self.smallest)
        return round((self.size - 1) * 2.0**64 / float(self.smallest[-1]))


class Reservoir(Generic[T]):
    """A uniform sample of `size` of a stream's items, made only for those that are taken; the seed decides which."""

    def __init__(self, size: int, seed: int) -> None:
        self.size = size
        self.items: list[tuple[int, T]] = []
        self.num_offered = 0
        self.random = random.Random(seed)

    def offer(self, make: Callable[[], T]) -> None:
        number = self.num_offered
        self.num_offered += 1
        if len(self.items) < self.size:
            self.items.append((number, make()))
        elif (place := self.random.randrange(self.num_offered)) < self.size:
            self.items[place] = (number, make())

    def in_order(self) -> list[T]:
        """The items as they came."""
        return [item for _, item in sorted(self.items, key=lambda pair: pair[0])]
