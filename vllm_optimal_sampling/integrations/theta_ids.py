"""Tokens in the ids of theta, for what trains it: an engine's outputs are in the teacher's (docs/tokenizers.md)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from vllm_optimal_sampling.config.vocabulary_pairs import VocabularyPairs

if TYPE_CHECKING:
    from vllm import LLM

_PAIRS: WeakKeyDictionary[LLM, VocabularyPairs | None] = WeakKeyDictionary()
"""Of each engine, once read: a loop asks for every completion."""


def _pairs_of(llm: LLM) -> VocabularyPairs | None:
    if llm not in _PAIRS:
        _PAIRS[llm] = VocabularyPairs.from_config(llm.llm_engine.vllm_config)
    return _PAIRS[llm]


def theta_token_ids(llm: LLM, token_ids: Iterable[int]) -> list[int]:
    """Theta's ids of tokens that were drawn, or of the record's `top_token_ids`, one for each.

    For a token without a partner, which q* never draws, it is what theta read in its place.

        completion = llm.generate(...)[0].outputs[0]
        labels = theta_token_ids(llm, completion.token_ids)

    Args:
        llm: the engine (`OptimalSampler.llm`).
        token_ids: of the engine's, which are the teacher's.
    """
    pairs = _pairs_of(llm)
    return list(token_ids) if pairs is None else pairs.read_all(list(token_ids))


def teacher_token_ids(llm: LLM, theta_ids: Iterable[int]) -> list[int]:
    """The engine's ids of theta's tokens, such as its ends of text, without those that have no partner.

    Args:
        llm: the engine.
        theta_ids: theta's.
    """
    pairs = _pairs_of(llm)
    return list(theta_ids) if pairs is None else pairs.teachers(list(theta_ids))
