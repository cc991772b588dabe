"""One of a sample's candidates is kept, and the scores of all of them go with it."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence

from vllm_optimal_sampling.data.generate.errors import RowError
from vllm_optimal_sampling.data.generate.jobs import Sample
from vllm_optimal_sampling.data.generate.settings import Settings
from vllm_optimal_sampling.selection import Scores


def keep_one(candidates: Sequence[Sample], settings: Settings, seed: int | None) -> Sample:
    """The sample that a row gets of what was drawn for it.

    Args:
        candidates: with their records; without --best-of the one that there is.
        settings: the run's.
        seed: of the sample, which decides where `resample` chooses at random; None: nothing does.

    Raises:
        RowError: no candidate has the score that is to be compared.

    """
    selection = settings.selection
    if selection is None:
        (sample,) = candidates
        return sample
    scores = []
    for candidate in candidates:
        assert candidate.record is not None, "asked for with every request"
        scores.append(Scores.of(candidate.record, candidate.finish_reason))
    if not any(map(selection.has_score, scores)):
        raise RowError(
            f"none of the {len(scores)} candidates has a score for --select {selection.select}; keep one without "
            "(--select none), and look at the records (--return-alpha)"
        )
    generator = random.Random(None if seed is None else f"select {seed}")
    kept = selection.choose(scores, generator)
    return dataclasses.replace(
        candidates[kept],
        record=candidates[kept].record if settings.optimal_sampling.return_alpha else None,
        candidates=[{**one.to_json(), "kept": number == kept} for number, one in enumerate(scores)],
    )
