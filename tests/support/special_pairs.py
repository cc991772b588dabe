"""Engines of teachers and thetas that have different special tokens, and what a test has to know of their ids.

The expected pairs are written down by the tokens' names; what theta reads is its own tokenizer's text.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer
from vllm import LLM

from support.engines import engine_options, scoring_options
from support.reference_models import Reference
from support.row_audit import Vocabularies
from support.special_tokens import CHATTY, Specials, save_model

ROLES = {"<|im_end|>": "<end of answer>", "<end of answer>": "<|im_end|>"}
"""Names that are paired for what they are for."""


@dataclass(frozen=True)
class Pair:
    """A teacher and a theta with different special tokens, and with so many ids of padding each."""

    teacher: Specials
    theta: Specials
    padding: tuple[int, int]
    scores: bool = False

    @property
    def name(self) -> str:
        order = "other ordinary ids, " if self.theta.first else ""
        chatty = "chatty" if self.teacher.eos == CHATTY.eos else "other"
        return f"{chatty} teacher, {order}{'theta scores' if self.scores else 'theta drafts'}"


@dataclass
class Running:
    llm: LLM
    teacher: Any
    theta: Any
    reference: Reference
    vocabularies: Vocabularies

    def ids(self, *tokens: str) -> list[int]:
        return list(self.teacher.convert_tokens_to_ids(list(tokens)))


def vocabularies(teacher: Any, theta: Any, padding: tuple[int, int]) -> Vocabularies:
    mine, theirs = teacher.get_vocab(), theta.get_vocab()
    partners, texts = {}, {}
    for token, token_id in mine.items():
        name = ROLES.get(token, token)
        if name in theirs:
            partners[token_id] = theirs[name]
            texts[token_id] = [theirs[name]]
        else:
            texts[token_id] = theta.encode(token, add_special_tokens=False)
    for token_id in range(len(mine), len(mine) + padding[0]):  # what a random teacher draws when it is alone
        is_padding_of_both = len(theirs) <= token_id < len(theirs) + padding[1]
        texts[token_id] = [token_id if is_padding_of_both else theta.eos_token_id]
    return Vocabularies(partners, {token_id: text[0] for token_id, text in texts.items()}, texts)


def start_pair(pair: Pair, folder: Path, **options: Any) -> Running:
    """Save random models of the pair, and start an engine with small chunks and prefix caching."""
    paths = (
        save_model(folder / "teacher", pair.teacher, padding=pair.padding[0], hidden_size=128, seed=0),
        save_model(folder / "theta", pair.theta, padding=pair.padding[1], seed=1),
    )
    options = {"max_num_batched_tokens": 64, "enable_prefix_caching": True, **options}
    make = scoring_options(*paths, drafts=2, **options) if pair.scores else engine_options(*paths, **options)
    teacher, theta = (AutoTokenizer.from_pretrained(path) for path in paths)
    known = vocabularies(teacher, theta, pair.padding)
    return Running(LLM(**make), teacher, theta, Reference(*paths), known)


def prompts(running: Running, rng: random.Random, length: int, of_theta: bool = False) -> list[int]:
    tokenizer = running.theta if of_theta else running.teacher
    return [rng.randrange(len(tokenizer)) for _ in range(length)]
