"""What is known of whole texts: Σ log Z, right and wrong answers, and what resampling would leave of them."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vllm_optimal_sampling.data.report.streaming import Distribution, Histogram
from vllm_optimal_sampling.data.report.summary import Sequences, TokenFigures, Way
from vllm_optimal_sampling.data.rows import read_settings
from vllm_optimal_sampling.data.scores import CANDIDATES, scores_of_candidate, scores_of_row
from vllm_optimal_sampling.selection import effective_sample_size

MOST_PROMPTS = 1 << 17
"""Prompts whose samples are put together; some 150 bytes of memory each."""
MOST_WAYS = 24


class _Weights:
    """Sums of weights exp(w - largest) and of their squares, of weights that come one at a time."""

    __slots__ = ("count", "largest", "squares", "total")

    def __init__(self) -> None:
        self.count, self.largest, self.total, self.squares = 0, -math.inf, 0.0, 0.0

    def add(self, log_weight: float) -> None:
        if log_weight > self.largest:
            shrink = math.exp(self.largest - log_weight)
            self.total, self.squares, self.largest = self.total * shrink, self.squares * shrink * shrink, log_weight
        weight = math.exp(log_weight - self.largest)
        self.total += weight
        self.squares += weight * weight
        self.count += 1

    @property
    def effective(self) -> float:
        return self.total * self.total / self.squares


class _OfWay:
    def __init__(self) -> None:
        self.num_samples = self.num_judged = self.num_right = 0
        self.kl_sum, self.kl_count = 0.0, 0


class SequenceTally:
    """Everything about whole texts that is counted along the rows.

    Args:
        is_right: whether a row has the right answer; None where answers are not compared.
    """

    def __init__(self, is_right: Callable[[Mapping[str, Any]], bool] | None) -> None:
        self.is_right = is_right
        self.all, self.right, self.wrong = (Histogram(np.logspace(-4, 5, 361), log=True) for _ in range(3))
        self.shares = Histogram(np.linspace(0, 1, 101))
        self.num_texts = 0
        self.prompts: dict[bytes, _Weights] = {}
        self.is_complete = True
        self.ways: dict[str, _OfWay] = {}
        self._file: Path | None = None
        self._way = ""

    def add(self, row: Mapping[str, Any], figures: TokenFigures | None, file: Path) -> None:
        """Take a row that has a text.

        Args:
            row: its columns.
            figures: its record.
            file: that it is from.
        """
        way = self.ways.setdefault(self.way_of(file), _OfWay())
        way.num_samples += 1
        if figures is not None:
            finite = figures.kl[np.isfinite(figures.kl)]
            way.kl_sum += float(finite.sum())
            way.kl_count += len(finite)
        is_right = None if self.is_right is None else self.is_right(row)
        if is_right is not None:
            way.num_judged += 1
            way.num_right += is_right
        scores = scores_of_row(row)
        if scores is not None and scores.log_z is not None:
            cost = np.array([max(-scores.log_z, 0.0)])  # rounding may leave it a little below 0
            self.all.add(cost)
            if is_right is not None:
                (self.right if is_right else self.wrong).add(cost)
        self._weigh(row, None if scores is None else scores.log_z)

    def _weigh(self, row: Mapping[str, Any], log_z: float | None) -> None:
        candidates = row.get(CANDIDATES)
        if isinstance(candidates, list):
            found = [scores_of_candidate(one) for one in candidates if isinstance(one, Mapping)]
            weights = [one.log_z for one in found if one is not None and one.log_z is not None]
            if len(weights) > 1:
                self._share(effective_sample_size(weights), len(weights))
            return
        if log_z is None or row.get("custom_id") is None:
            return
        key = hashlib.blake2b(f"{self._way}\0{row['custom_id']}".encode(errors="replace"), digest_size=8).digest()
        if key not in self.prompts:
            if len(self.prompts) >= MOST_PROMPTS:
                self.is_complete = False
                return
            self.prompts[key] = _Weights()
        self.prompts[key].add(log_z)

    def _share(self, effective: float, count: int) -> None:
        self.shares.add(np.array([effective / count]))
        self.num_texts += count

    def way_of(self, file: Path) -> str:
        """How the rows of a file were sampled, in words, by the settings beside them."""
        if file != self._file:
            self._file = file
            settings, _ = read_settings(file)
            name = "settings not known" if settings is None else way_in_words(settings)
            self._way = name if name in self.ways or len(self.ways) < MOST_WAYS else "others"
        return self._way

    def result(self) -> Sequences:
        for weights in self.prompts.values():
            if weights.count > 1:
                self._share(weights.effective, weights.count)
        self.prompts.clear()
        shares = self.shares.result()
        right, wrong = self.right.result(), self.wrong.result()
        return Sequences(
            cost=self.all.result(),
            right=right if right.count else None,
            wrong=wrong if wrong.count else None,
            likelier=_likelier(right, wrong),
            effective_share=shares,
            num_texts=self.num_texts / shares.count if shares.count else math.nan,
            ways=[
                Way(
                    name,
                    way.num_samples,
                    way.kl_sum / way.kl_count if way.kl_count else math.nan,
                    way.num_judged,
                    way.num_right,
                )
                for name, way in self.ways.items()
            ],
            is_complete=self.is_complete,
        )


def _likelier(right: Distribution, wrong: Distribution) -> float:
    """P(cost of a right text < cost of a wrong one), ties counted half, to the width of a bin."""
    if not right.count or not wrong.count:
        return math.nan
    above = wrong.count - np.cumsum(wrong.counts)
    return float((right.counts * (above + wrong.counts / 2)).sum() / (right.count * wrong.count))


def way_in_words(settings: Mapping[str, Any]) -> str:
    """How rows were sampled, as short as it tells one run's settings from another's."""
    method = str(settings.get("alpha_method", "kl_symmetry"))
    words = [method]
    if method in ("fixed", "arithmetic") and settings.get("alpha") is not None:
        words[0] = f"{method} {settings['alpha']}"
    for name, usual in (
        ("kl_budget", None),
        ("js_sensitivity", 50.0),
        ("alpha_min", 0.0),
        ("alpha_max", 1.0),
        ("alpha_steps", None),
        ("support_top_k", None),
        ("support_top_p", None),
        ("teacher_only_tokens", 0),
        ("max_js_divergence", None),
        ("temperature", 1.0),
    ):
        value = settings.get(name)
        if value is not None and value != usual:
            words.append(f"{name.replace('_', ' ')} {value}")
    if settings.get("best_of") is not None:
        words.append(f"best of {settings['best_of']} by {settings.get('select')}{_mean(settings)}")
    filtered = settings.get("filter")
    if isinstance(filtered, dict) and filtered.get("best_of_group") is not None:
        words.append(f"the best of a {filtered['best_of_group']} by {filtered.get('by', 'log_z')}{_mean(filtered)}")
    elif filtered is not None:
        words.append("filtered")
    return ", ".join(words)[:80]


def _mean(settings: Mapping[str, Any]) -> str:
    return " mean" if settings.get("select_by") == "mean" else ""
