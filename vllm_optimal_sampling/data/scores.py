"""The scores of a row that `generate` has written: of its record, or as they stand among its candidates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from vllm_optimal_sampling.front_end.records import JSON_FIELD
from vllm_optimal_sampling.selection import Scores

CANDIDATES = "candidates"
"""The column with the scores of all that was drawn for a row (`generate --best-of`)."""


def scores_of_row(row: Mapping[str, Any]) -> Scores | None:
    """What a row's completion is compared by; None where it has neither a record nor candidates that can be read."""
    record = row.get(JSON_FIELD)
    if isinstance(record, Mapping):
        try:
            return Scores.of(record, row.get("finish_reason"))
        except (KeyError, TypeError, ValueError):
            return None
    candidates = row.get(CANDIDATES)
    for candidate in candidates if isinstance(candidates, list) else ():
        if isinstance(candidate, Mapping) and candidate.get("kept"):
            return scores_of_candidate(candidate)
    return None


def scores_of_candidate(candidate: Mapping[str, Any]) -> Scores | None:
    """A candidate as `Scores.to_json` gave it."""
    try:
        scores = Scores(**{one.name: candidate[one.name] for one in fields(Scores)})
    except KeyError:
        return None
    numbers = (scores.log_z, scores.teacher_logprob)
    fits = all(value is None or isinstance(value, int | float) for value in numbers)
    return scores if fits and isinstance(scores.num_tokens, int) else None
