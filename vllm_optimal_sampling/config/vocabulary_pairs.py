"""Which ids of the teacher's vocabulary and of theta's mean the same, where the two vocabularies do not agree.

Worked out where the engine's configuration is built (see `tokenizers`), and carried in `additional_config` to the processes
that need it: the front end (theta reads the teacher's prompt), the scheduler (block hashes know what theta reads) and the
worker (what theta reads, and its rows). An engine whose vocabularies agree has none, and does nothing.

Imported in the front end: neither torch nor vLLM is imported here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from vllm.config import VllmConfig

PAIRS_KEY = "optimal_sampling_vocabulary_pairs"
"""Where `VllmConfig.additional_config` holds them."""

NO_PARTNER = -1


@dataclass(frozen=True)
class VocabularyPairs:
    """Theta's id for each id of the teacher's, one to one.

    Attributes:
        partners: [ids of the teacher's model] int64: theta's id of the same meaning, `NO_PARTNER` where there is none.
        texts: what theta reads in a prompt for ids of the teacher's without a partner: theta's ids of the token's text.
        unknown: what theta reads for an id that has neither a partner nor text.
    """

    partners: np.ndarray
    texts: Mapping[int, Sequence[int]]
    unknown: int

    @cached_property
    def reads(self) -> np.ndarray:
        """[ids of the teacher's model] int64: the one id that theta reads for a token that was generated.

        A token and theta's share a position, so of a text of several tokens theta reads the first.
        """
        reads = np.where(self.partners == NO_PARTNER, self.unknown, self.partners)
        for token_id, text in self.texts.items():
            reads[token_id] = text[0]
        return reads

    @cached_property
    def partners_of_theta(self) -> Mapping[int, int]:
        """The teacher's id for each of theta's that has one."""
        paired = np.flatnonzero(self.partners != NO_PARTNER)
        return dict(zip(self.partners[paired].tolist(), paired.tolist(), strict=True))

    def read_all(self, token_ids: Sequence[int]) -> list[int]:
        """What theta reads for generated tokens, one id each."""
        reads, last = self.reads, len(self.partners) - 1
        return [int(reads[min(token_id, last)]) for token_id in token_ids]

    def teachers(self, theta_ids: Sequence[int]) -> list[int]:
        """The teacher's ids of theta's tokens, without those that have no partner."""
        return [self.partners_of_theta[token_id] for token_id in theta_ids if token_id in self.partners_of_theta]

    def read_prompt(self, token_ids: Sequence[int]) -> list[int]:
        """The teacher's prompt in theta's ids; a token without a partner becomes its text."""
        reads, last = self.reads, len(self.partners) - 1
        prompt: list[int] = []
        for token_id in token_ids:
            prompt.extend(self.texts.get(token_id) or (int(reads[min(token_id, last)]),))
        return prompt

    def to_mapping(self) -> dict[str, Any]:
        """What `from_mapping` reads, ready for JSON: partners as runs [first id, its partner, length]."""
        paired = self.partners != NO_PARTNER
        steps = np.where(paired[1:], self.partners[1:] - self.partners[:-1], 1)
        starts = [0, *(np.flatnonzero((paired[1:] != paired[:-1]) | (steps != 1)) + 1).tolist()]
        ends = [*starts[1:], len(self.partners)]
        return {
            "runs": [[first, int(self.partners[first]), end - first] for first, end in zip(starts, ends, strict=True)],
            "texts": {str(token_id): list(text) for token_id, text in self.texts.items()},
            "unknown": self.unknown,
        }

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any]) -> VocabularyPairs:
        """The pairs that `to_mapping` wrote down."""
        partners = [
            np.full(length, NO_PARTNER) if partner == NO_PARTNER else np.arange(partner, partner + length)
            for _, partner, length in mapping["runs"]
        ]
        texts = {int(token_id): tuple(text) for token_id, text in mapping["texts"].items()}
        return cls(np.concatenate(partners).astype(np.int64), texts, mapping["unknown"])

    @classmethod
    def from_config(cls, vllm_config: VllmConfig) -> VocabularyPairs | None:
        """The pairs of an engine; None where its vocabularies agree."""
        additional = vllm_config.additional_config
        mapping = additional.get(PAIRS_KEY) if isinstance(additional, dict) else None
        return None if mapping is None else cls.from_mapping(mapping)

    def keep_in(self, vllm_config: VllmConfig) -> None:
        """Let every process of this engine find the pairs."""
        additional = vllm_config.additional_config
        assert isinstance(additional, dict), "an engine with optimal sampling has its settings there"
        additional[PAIRS_KEY] = self.to_mapping()
