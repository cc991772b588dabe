"""What the sampler returns, and how vLLM's outputs become it."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vllm_optimal_sampling.selection import Scores


@dataclass(frozen=True)
class OptimalSamplingOutput:
    """What `OptimalSampler.generate` returns: lists with one entry for each prompt, in their order."""

    generated_texts: list[str]
    """The completions, without their prompts."""
    generated_ids: list[list[int]]
    """Their token ids."""
    num_tokens: list[int]
    """The lengths of `generated_ids`."""
    alpha_stats: list[dict[str, float]] | None = None
    """For each completion `mean`, `std` (of the population), `min`, `max` and `count` of its alphas; NaN but for the
    count where there is no token. None without `track_alpha_stats`, and where the teacher draws alone."""
    alpha_history: list[list[float]] | None = None
    """For each completion alpha, the weight of the teacher in [0, 1], at each of its tokens. None as `alpha_stats`."""
    candidates: list[list[Scores]] | None = None
    """With `best_of`: for each prompt the scores of all that was drawn for it."""
    kept: list[int] | None = None
    """With `best_of`: for each prompt which of its `candidates` the completion is."""


def alphas_of(completion: Any) -> list[float]:
    """Alpha at each token of a completion, from its record (see `records`)."""
    return list(completion.optimal_sampling.alpha)


def scores_of(completion: Any) -> Scores:
    """What a completion is compared by, from its record."""
    return Scores.of(vars(completion.optimal_sampling), completion.finish_reason)


def statistics_of(alphas: Sequence[float]) -> dict[str, float]:
    if not alphas:
        return {"mean": math.nan, "std": math.nan, "min": math.nan, "max": math.nan, "count": 0}
    return {
        "mean": statistics.fmean(alphas),
        "std": statistics.pstdev(alphas),
        "min": min(alphas),
        "max": max(alphas),
        "count": len(alphas),
    }
