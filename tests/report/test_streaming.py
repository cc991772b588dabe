"""What is counted along a stream, against numpy on all of it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from vllm_optimal_sampling.data.report.streaming import (
    Distinct,
    GrowingBand,
    GrowingHistogram,
    Histogram,
    Reservoir,
)

SHARES = arrays.arrays(np.float64, st.integers(1, 60), elements=st.floats(0, 1))
LENGTHS = st.lists(st.lists(st.integers(0, 5000), max_size=20), min_size=1, max_size=6)


@given(st.lists(SHARES, min_size=1, max_size=6))
def test_a_histogram_knows_what_numpy_knows(parts: list[np.ndarray]) -> None:
    histogram = Histogram(np.linspace(0, 1, 101))
    for part in parts:
        histogram.add(part)
    whole = np.concatenate(parts)
    result = histogram.result()
    assert result.count == len(whole)
    assert result.counts.tolist() == np.histogram(whole, np.linspace(0, 1, 101))[0].tolist()
    assert result.mean == pytest.approx(whole.mean(), abs=1e-12)
    assert result.std == pytest.approx(whole.std(), abs=1e-9)
    assert (result.min, result.max) == (whole.min(), whole.max())
    for q, value in result.quantiles.items():
        # In the bin of the order statistic that the quantile is, at most one bin's width from it.
        assert abs(value - np.quantile(whole, q, method="inverted_cdf")) <= 0.01 + 1e-12


def test_what_is_no_number_is_counted_apart() -> None:
    histogram = Histogram(np.linspace(-1, 1, 11))
    histogram.add(np.array([0.5, np.nan, np.inf, -np.inf, 7.0]))
    result = histogram.result()
    assert (result.count, result.num_not_finite) == (2, 3)
    assert result.counts[-1] == 1  # beyond the end
    assert result.max == 7.0


def test_an_empty_histogram_has_no_figures() -> None:
    result = Histogram(np.linspace(0, 1, 11)).result()
    assert result.count == 0
    assert np.isnan([result.mean, result.std, result.min, result.max, *result.quantiles.values()]).all()


@given(LENGTHS)
def test_a_growing_histogram_loses_nothing(parts: list[list[int]]) -> None:
    histogram = GrowingHistogram(16)
    for part in parts:
        histogram.add(np.array(part, np.float64))
    whole = np.array([value for part in parts for value in part], np.int64)
    result = histogram.result()
    assert result.counts.sum() == len(whole)
    width = round(result.edges[1] - result.edges[0])
    assert result.counts.tolist() == np.bincount(whole // width, minlength=16).tolist() if len(whole) else True


@given(st.lists(st.tuples(st.integers(0, 300), st.floats(0, 1)), min_size=1, max_size=200))
def test_a_band_is_the_quantiles_of_each_stretch(points: list[tuple[int, float]]) -> None:
    band = GrowingBand(8, 200)
    for start in range(0, len(points), 7):
        part = points[start : start + 7]
        band.add(np.array([p for p, _ in part]), np.array([v for _, v in part]))
    medians = band.quantiles(0.5)
    for stretch in range(8):
        values = [v for p, v in points if p // band.width == stretch]
        assert band.counts[stretch].sum() == len(values)
        if values:
            assert abs(medians[stretch] - np.quantile(values, 0.5, method="inverted_cdf")) <= 1 / 200 + 1e-12
        else:
            assert np.isnan(medians[stretch])


def test_distinct_keys_are_exact_while_few_and_close_when_many() -> None:
    few, many = Distinct(size=1 << 12), Distinct(size=1 << 12)
    for i in range(4000):
        few.add(f"key {i % 1000}")
    assert (few.count(), few.is_exact) == (1000, True)
    for i in range(60_000):
        many.add(f"key {i // 2}")
    assert not many.is_exact or many.count() == 30_000
    assert not many.is_exact
    assert abs(many.count() / 30_000 - 1) < 5 / np.sqrt(1 << 12)  # five standard errors


def test_a_reservoir_is_uniform_and_follows_its_seed() -> None:
    taken = np.zeros(20)
    for seed in range(3000):
        reservoir: Reservoir[int] = Reservoir(5, seed)
        for item in range(20):
            reservoir.offer(lambda item=item: item)
        items = reservoir.in_order()
        assert items == sorted(items)
        taken[items] += 1
    # Each is taken in a quarter of the draws: 750 of 3,000, standard deviation 24; the seeds are fixed.
    assert np.abs(taken - 750).max() < 4.5 * 24
