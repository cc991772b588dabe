"""The intervals and the effective number against their definitions, and against what is known of them."""

from __future__ import annotations

import math

import numpy as np
import pytest
from distillation.intervals import (
    T_QUANTILES,
    bootstrap_difference,
    bootstrap_ratio,
    effective_sample_size,
    t_interval,
)


def test_effective_number_of_draws() -> None:
    assert effective_sample_size([0.3] * 7) == pytest.approx(7)
    assert effective_sample_size([0.0, -800.0, -900.0]) == pytest.approx(1)
    weights = [1.0, 2.0, 3.0]
    assert effective_sample_size(np.log(weights)) == pytest.approx(36 / 14)
    assert effective_sample_size(np.log(weights) + 5000) == pytest.approx(36 / 14)  # only ratios count


@pytest.mark.parametrize("degrees", range(1, len(T_QUANTILES) + 1))
def test_quantiles_of_students_t(degrees: int) -> None:
    """The density integrated up to the quantile: 97.5 %."""
    scale = math.gamma((degrees + 1) / 2) / (math.sqrt(degrees * math.pi) * math.gamma(degrees / 2))
    x = np.linspace(0, T_QUANTILES[degrees - 1], 200_001)
    density = scale * (1 + x**2 / degrees) ** (-(degrees + 1) / 2)
    assert 0.5 + np.trapezoid(density, x) == pytest.approx(0.975, abs=5e-5)


def test_interval_over_runs() -> None:
    mean, low, high = t_interval([1.0, 2.0, 3.0])
    assert mean == 2
    assert (high - low) / 2 == pytest.approx(4.303 / math.sqrt(3))
    with pytest.raises(ValueError, match="needs 2 to"):
        t_interval([1.0])


def test_difference_on_the_same_problems() -> None:
    ours, theirs = ["1" * 60 + "0" * 40], ["1" * 40 + "0" * 60]
    middle, low, high = bootstrap_difference(ours, theirs)
    assert middle == pytest.approx(0.2)
    # One run a side leaves the problems alone: 20 of 100 differ, all one way.
    deviation = math.sqrt(0.2 * 0.8 / 100)
    assert (high - low) / 2 == pytest.approx(1.96 * deviation, rel=0.1)
    assert bootstrap_difference(ours, ours) == (0, 0, 0)
    with pytest.raises(ValueError, match="have to be the same"):
        bootstrap_difference(["10"], ["100"])


def test_difference_widens_with_the_spread_of_runs() -> None:
    even, uneven = ["10" * 100] * 4, ["11" * 100, "00" * 100, "11" * 100, "00" * 100]
    _, low, high = bootstrap_difference(even, even)
    _, wide_low, wide_high = bootstrap_difference(uneven, even)
    assert (low, high) == (0, 0)
    assert wide_low < -0.2 < 0.2 < wide_high


def test_interval_of_a_mean_over_tokens_covers_it() -> None:
    """200 data sets of 60 completions; 95 % intervals of the bootstrap cover some 94 % here: 170 is 5 deviations below."""
    rng = np.random.default_rng(0)
    covered = 0
    for seed in range(200):
        lengths = rng.integers(20, 60, size=60)
        sums = np.array([rng.normal(-0.3, 1, size=length).sum() for length in lengths])
        _, low, high = bootstrap_ratio(sums, lengths, seed)
        covered += low < -0.3 < high
    assert 170 <= covered < 200
