"""What the sampler returns, and how vLLM's outputs become it."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vllm_optimal_sampling.selection import Scores, Selection


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


def output_of(
    outputs: Sequence[Any], selection: Selection | None, seed: int | None, *, with_alphas: bool
) -> OptimalSamplingOutput:
    """What the sampler returns for these outputs.

    Args:
        outputs: vLLM's, one for each prompt.
        selection: how one of the completions of each is kept; None: there is one.
        seed: of the call, which a random selection is made with.
        with_alphas: whether the completions have records whose alphas are wanted.

    """
    candidates = kept = None
    if selection is not None:
        candidates = [[_scores_of(completion) for completion in output.outputs] for output in outputs]
        generators = (random.Random(None if seed is None else f"select {seed + i}") for i in range(len(outputs)))
        kept = [selection.choose(*pair) for pair in zip(candidates, generators, strict=True)]
    completions = [output.outputs[index] for output, index in zip(outputs, kept or [0] * len(outputs), strict=True)]
    # From the completions' records (see `records`).
    history = [list(completion.optimal_sampling.alpha) for completion in completions] if with_alphas else None
    return OptimalSamplingOutput(
        generated_texts=[completion.text for completion in completions],
        generated_ids=[list(completion.token_ids) for completion in completions],
        num_tokens=[len(completion.token_ids) for completion in completions],
        alpha_stats=None if history is None else [_statistics_of(alphas) for alphas in history],
        alpha_history=history,
        candidates=candidates,
        kept=kept,
    )


def _scores_of(completion: Any) -> Scores:
    """What a completion is compared by, from its record."""
    return Scores.of(vars(completion.optimal_sampling), completion.finish_reason)


def _statistics_of(alphas: Sequence[float]) -> dict[str, float]:
    if not alphas:
        return {"mean": math.nan, "std": math.nan, "min": math.nan, "max": math.nan, "count": 0}
    return {
        "mean": statistics.fmean(alphas),
        "std": statistics.pstdev(alphas),
        "min": min(alphas),
        "max": max(alphas),
        "count": len(alphas),
    }
