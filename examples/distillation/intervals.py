"""The intervals that are quoted, all of 95 %, and what each covers."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

RESAMPLES = 4000

# Student's t, the 97.5 % quantile for 1, 2, ... degrees of freedom.
T_QUANTILES = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131)


def t_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean with Student's interval over independent runs: it covers another seed, not other data nor other problems.

    Raises:
        ValueError: fewer than 2 values, or more than 16.

    """
    count = len(values)
    if not 2 <= count <= len(T_QUANTILES) + 1:
        raise ValueError(f"{count} runs; the interval over runs needs 2 to {len(T_QUANTILES) + 1}")
    mean = sum(values) / count
    deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / (count - 1))
    half = T_QUANTILES[count - 2] * deviation / math.sqrt(count)
    return mean, mean - half, mean + half


def outcomes(marks: Sequence[str]) -> np.ndarray:
    """Strings of 0 and 1, one for each run, as [runs, problems]."""
    return np.array([[mark == "1" for mark in run] for run in marks], dtype=float)


def bootstrap_difference(ours: Sequence[str], theirs: Sequence[str], seed: int = 0) -> tuple[float, float, float]:
    """The difference of two shares of right answers on the same problems, over resampled runs and resampled problems.

    The runs of each side are drawn with replacement by themselves, the problems for both sides together. The interval
    covers other seeds and other problems of the kind, not another draw of the training data.

    Args:
        ours, theirs: for each run a string of 0 and 1, one for each problem, in the same order on both sides.
        seed: of the resampling.

    """
    a, b = outcomes(ours), outcomes(theirs)
    if a.shape[1] != b.shape[1]:
        raise ValueError(f"{a.shape[1]} problems on one side and {b.shape[1]} on the other; they have to be the same")
    rng = np.random.default_rng(seed)
    differences = np.empty(RESAMPLES)
    for i in range(RESAMPLES):
        runs_a = np.bincount(rng.integers(len(a), size=len(a)), minlength=len(a)) / len(a)
        runs_b = np.bincount(rng.integers(len(b), size=len(b)), minlength=len(b)) / len(b)
        picked = rng.integers(a.shape[1], size=a.shape[1])
        differences[i] = (runs_a @ a - runs_b @ b)[picked].mean()
    low, high = np.quantile(differences, (0.025, 0.975))
    return float(a.mean() - b.mean()), float(low), float(high)


def bootstrap_ratio(sums: Sequence[float], counts: Sequence[float], seed: int = 0) -> tuple[float, float, float]:
    """A mean over tokens, total of ``sums`` by total of ``counts``, over resampled completions."""
    top, bottom = np.asarray(sums, dtype=float), np.asarray(counts, dtype=float)
    rng = np.random.default_rng(seed)
    picked = rng.integers(len(top), size=(RESAMPLES, len(top)))
    low, high = np.quantile(top[picked].sum(1) / bottom[picked].sum(1), (0.025, 0.975))
    return float(top.sum() / bottom.sum()), float(low), float(high)


def effective_sample_size(log_weights: Sequence[float]) -> float:
    """Kish's effective number, (sum w)^2 / sum w^2, of draws with these log-weights: from 1 to their number."""
    weights = np.asarray(log_weights, dtype=float)
    weights = np.exp(weights - weights.max())
    return float(weights.sum() ** 2 / (weights**2).sum())
