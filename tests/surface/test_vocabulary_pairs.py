"""Tokenizers that agree but for special and added tokens: what is shared, what is paired, what is refused."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from support.special_tokens import CHATTY, OTHER, TRAINED_ON, Specials, save_model
from vllm_optimal_sampling.config.errors import UnsupportedEngineError
from vllm_optimal_sampling.config.vocabulary_pairs import NO_PARTNER, PAIRS_KEY, VocabularyPairs
from vllm_optimal_sampling.engine_core.layout import ThetaLayout

BuildConfig = Callable[..., Any]


def configuration(build_config: BuildConfig, teacher: str, theta: str, **arguments: Any) -> Any:
    return build_config(model=teacher, speculative_config={"model": theta, "num_speculative_tokens": 2}, **arguments)


def pairs_of(
    build_config: BuildConfig, folder: Path, teacher: Specials, theta: Specials, padding: tuple[int, int] = (6, 3)
) -> tuple[VocabularyPairs | None, dict[str, int], dict[str, int]]:
    """The pairs, and both vocabularies."""
    paths = [
        save_model(folder / name, specials, padding=more)
        for name, specials, more in zip(("teacher", "theta"), (teacher, theta), padding, strict=True)
    ]
    config = configuration(build_config, *paths)
    mine, theirs = (PreTrainedTokenizerFast.from_pretrained(path).get_vocab() for path in paths)
    return VocabularyPairs.from_config(config), mine, theirs


def partners_by_string(pairs: VocabularyPairs, mine: dict[str, int], theirs: dict[str, int]) -> dict[str, str | None]:
    names = {token_id: token for token, token_id in theirs.items()}
    return {
        token: None if pairs.partners[token_id] == NO_PARTNER else names[int(pairs.partners[token_id])]
        for token, token_id in mine.items()
    }


def test_equal_strings_and_equal_roles_are_paired(
    build_config: BuildConfig, tmp_path: Path, package_log: pytest.LogCaptureFixture
) -> None:
    with package_log.at_level(logging.INFO, "vllm_optimal_sampling"):
        pairs, mine, theirs = pairs_of(build_config, tmp_path, CHATTY, OTHER)
    assert pairs is not None
    found = partners_by_string(pairs, mine, theirs)
    assert {token for token, partner in found.items() if token == partner} == mine.keys() & theirs.keys()
    assert mine["<user>"] != theirs["<user>"]
    others = {token: partner for token, partner in found.items() if token != partner}
    assert others == {"<|im_end|>": "<end of answer>", "<|endoftext|>": None, "<|im_start|>": None, "<tool>": None}
    assert (pairs.partners[len(mine) :] == NO_PARTNER).all()  # padding means nothing
    shared = len(mine.keys() & theirs.keys())
    # Heard twice where an engine of this process has let vLLM configure its logger.
    assert {message for message in package_log.messages if message.startswith("Teacher")} == {
        f"Teacher and theta have vocabularies that nearly agree: {shared} tokens are shared; end of turn is '<|im_end|>' for "
        "the teacher and '<end of answer>' for theta, which are paired; 3 of the teacher's tokens have no partner "
        "('<|endoftext|>', '<|im_start|>', '<tool>'), 2 of theta's have no partner ('<begin>', '<bot>'): q* never draws them."
    }


def test_the_other_direction(build_config: BuildConfig, tmp_path: Path) -> None:
    pairs, mine, theirs = pairs_of(build_config, tmp_path, OTHER, CHATTY)
    assert pairs is not None
    found = partners_by_string(pairs, mine, theirs)
    assert {token: partner for token, partner in found.items() if token != partner} == {
        "<end of answer>": "<|im_end|>",
        "<begin>": None,
        "<bot>": None,
    }


def test_ordinary_tokens_may_lie_elsewhere(build_config: BuildConfig, tmp_path: Path) -> None:
    pairs, mine, theirs = pairs_of(build_config, tmp_path, CHATTY, replace(OTHER, first=True))
    assert pairs is not None and mine["the"] != theirs["the"]
    found = partners_by_string(pairs, mine, theirs)
    assert all(found[token] == token for token in mine.keys() & theirs.keys())
    assert len(pairs.to_mapping()["runs"]) < 20


def test_added_tokens_of_theta_cost_nothing_where_the_teacher_has_no_such_ids(
    build_config: BuildConfig, tmp_path: Path
) -> None:
    more = replace(CHATTY, tokens=(*CHATTY.tokens, "<one>", "<two>"))
    pairs, *_ = pairs_of(build_config, tmp_path / "a", CHATTY, more, padding=(0, 0))
    assert pairs is None
    # The teacher's padding is where theta's tokens are: it must not draw them.
    pairs, mine, theirs = pairs_of(build_config, tmp_path / "b", CHATTY, more, padding=(1, 0))
    assert pairs is not None
    assert pairs.partners.tolist() == [*range(len(mine)), NO_PARTNER]
    assert theirs["<one>"] == len(mine)


def test_a_student_that_learnt_another_end(build_config: BuildConfig, tmp_path: Path) -> None:
    """Theta keeps the teacher's end of text and ends its answers with an added token."""
    base = Specials(("<|endoftext|>",), eos="<|endoftext|>")
    tuned = Specials(
        ("<|endoftext|>", "<|im_start|>", "<|im_end|>"), eos="<|endoftext|>", chat_template=CHATTY.chat_template
    )
    pairs, mine, theirs = pairs_of(build_config, tmp_path, base, tuned)
    assert pairs is not None
    assert pairs.partners[mine["<|endoftext|>"]] == theirs["<|im_end|>"]
    assert theirs["<|endoftext|>"] not in pairs.partners


def test_what_theta_reads(build_config: BuildConfig, tmp_path: Path) -> None:
    pairs, mine, theirs = pairs_of(build_config, tmp_path, CHATTY, OTHER)
    assert pairs is not None
    theta = PreTrainedTokenizerFast.from_pretrained(tmp_path / "theta")
    text = theta.encode("<tool>", add_special_tokens=False)
    assert len(text) > 1 and all(token_id < len(TRAINED_ON) + 300 for token_id in text)
    the, end, tool, user = (mine[token] for token in ("the", "<|im_end|>", "<tool>", "<user>"))
    generated = [the, end, tool, user]
    read = [theirs["the"], theirs["<end of answer>"], text[0], theirs["<user>"]]
    assert pairs.read_all(generated) == read
    assert pairs.teachers([theirs["<end of answer>"], theirs["<bot>"], theirs["the"]]) == [end, the]
    assert pairs.read_prompt(generated) == [*read[:2], *text, read[3]]
    # Padding of both is read at its own place, and padding where theta has a token as an unknown one.
    assert pairs.read_all([len(mine) + 1]) == [len(mine) + 1]
    assert pairs.reads.max() < len(theirs) + 3


def test_the_pairs_survive_the_way_to_other_processes(build_config: BuildConfig, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for size in (1, 2, 50):
        partners = rng.permutation(size)
        partners[rng.random(size) < 0.3] = NO_PARTNER
        pairs = VocabularyPairs(partners, {3: (1, 2)}, 7)
        again = VocabularyPairs.from_mapping(pairs.to_mapping())
        assert (again.partners == partners).all() and again.texts == pairs.texts and again.unknown == 7


def test_a_block_says_what_theta_reads() -> None:
    """A token that was generated and the same id in theta's prompt are not the same to theta."""
    pairs = VocabularyPairs(np.array([0, 1, 3, 2]), {}, 0)
    teacher = [0, 1, 2, 3]
    first = ThetaLayout.of_prompts([0, 1], 2, 4, pairs)
    second = ThetaLayout.of_prompts([0, 1, 2], 3, 4, pairs)
    assert first.tokens_in_slots(0, 4, teacher, 2) == (0, 1, 3, 2)
    assert second.tokens_in_slots(0, 4, teacher, 3) == (0, 1, 2, 2)


# What is refused


def test_other_merges_are_refused(build_config: BuildConfig, tmp_path: Path) -> None:
    """The same tokens, of the same ids, put together in another order."""
    teacher, theta = (save_model(tmp_path / name, CHATTY, padding=0) for name in ("teacher", "theta"))
    path = Path(theta) / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(path))
    state = json.loads(tokenizer.to_str())
    merges = [tuple(merge) for merge in state["model"]["merges"]]
    tokenizer.model = models.BPE(vocab=state["model"]["vocab"], merges=[*merges[5:], *merges[:5]])
    tokenizer.save(str(path))
    with pytest.raises(
        UnsupportedEngineError, match="the tokens are the same, and their byte pairs are merged in another"
    ):
        configuration(build_config, teacher, theta)


def test_more_than_a_hundredth_is_refused(build_config: BuildConfig, tmp_path: Path) -> None:
    """A few ordinary tokens that are other strings; with one alone the engine starts."""
    for changed in (1, 12):
        teacher, theta = (save_model(tmp_path / f"{name}{changed}", CHATTY, padding=0) for name in ("teacher", "theta"))
        path = Path(theta) / "tokenizer.json"
        text = path.read_text()
        for letter in "zqxkvbjpygfw"[:changed]:  # single bytes, which no merge of theirs needs
            text = text.replace(f'"{letter.upper()}":', f'"{letter.upper()}{letter.upper()}":')
        path.write_text(text)
        if changed == 1:
            assert PAIRS_KEY in configuration(build_config, teacher, theta).additional_config
            continue
        with pytest.raises(UnsupportedEngineError) as caught:
            configuration(build_config, teacher, theta)
        message = str(caught.value)
        assert "teacher and theta have different tokenizers: 12 ids differ, the first is" in message
        assert (
            "% of what a sample text is split into differs, and 1% is allowed, for special and added tokens. q* is"
            in message
        )


def test_agreeing_vocabularies_have_no_pairs(build_config: BuildConfig) -> None:
    config = build_config()
    assert PAIRS_KEY not in config.additional_config
    assert VocabularyPairs.from_config(config) is None
