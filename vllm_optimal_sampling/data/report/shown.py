"""The single samples and tokens that a report shows: what is kept of them along the rows, and their texts at the end."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vllm_optimal_sampling.data.report import pieces
from vllm_optimal_sampling.data.report.summary import Disagreement, Sample, TokenFigures
from vllm_optimal_sampling.data.rows import completion_text

SHOWN_TOKENS = 1200
"""Of a sample that is shown."""
SHOWN_CHARACTERS = 6000
"""Of each text that is shown."""


@dataclass(frozen=True)
class Identity:
    """Which sample, and where it stands."""

    custom_id: str
    sample: int | None
    place: str


@dataclass(frozen=True)
class Spot:
    """A disagreement before its tokens are decoded: `token_ids` are `[start, start + n)` of the completion."""

    row: Identity
    position: int
    num_tokens: int
    start: int
    token_ids: list[int]
    figures: TokenFigures


@dataclass(frozen=True)
class Picked:
    """A sample before its tokens are decoded."""

    row: Identity
    values: dict[str, Any]
    token_ids: list[int]
    num_tokens: int
    figures: TokenFigures | None


def pick(row: Identity, values: dict[str, Any], ids: NDArray[np.int64] | None, figures: TokenFigures | None) -> Picked:
    """What is kept of a sample that may be shown."""
    shown = {name: values.get(name) for name in ("prompt", "privileged_context", "completion", "finish_reason")}
    cut = slice(0, SHOWN_TOKENS)
    num_tokens = len(ids) if ids is not None else 0
    return Picked(row, shown, [] if ids is None else ids[cut].tolist(), num_tokens, figures[cut] if figures else None)


def decoded_sample(picked: Picked, decode: pieces.Decode | None) -> Sample:
    """A sample with its tokens as text, or as their ids without a tokenizer."""
    values = picked.values
    ids = picked.token_ids
    split = pieces.split(ids, decode) if decode is not None else pieces.split_unknown(ids)
    reason = values["finish_reason"]
    return Sample(
        custom_id=picked.row.custom_id,
        sample=picked.row.sample,
        place=picked.row.place,
        prompt=_messages(values["prompt"]),
        privileged_context=None if values["privileged_context"] is None else _text(values["privileged_context"]),
        completion=_text(completion_text(values["completion"])),
        pieces=split,
        figures=picked.figures if ids else None,
        num_tokens=picked.num_tokens,
        finish_reason=None if reason is None else str(reason),
    )


def decoded_spot(spot: Spot, kl: float, decode: pieces.Decode | None) -> Disagreement:
    """A disagreement with its surroundings as text, or as ids without a tokenizer."""
    known = spot.token_ids[spot.position - spot.start] >= 0
    if not known:  # a record without token ids
        split = [pieces.Piece(f"token {spot.position + 1}", spot.position - spot.start, spot.position - spot.start + 1)]
    elif decode is None:
        split = pieces.split_unknown(spot.token_ids)
    else:
        split = pieces.split(spot.token_ids, decode)
    at = next(number for number, piece in enumerate(split) if piece.stop > spot.position - spot.start)
    starts = spot.start == 0 or not known
    before = "".join(piece.text for piece in split[:at])
    return Disagreement(
        custom_id=spot.row.custom_id,
        sample=spot.row.sample,
        place=spot.row.place,
        position=spot.position,
        num_tokens=spot.num_tokens,
        kl=kl,
        alpha=float(spot.figures.alpha[0]),
        logprob=float(spot.figures.logprob[0]),
        teacher_logprob=float(spot.figures.teacher_logprob[0]),
        theta_logprob=float(spot.figures.theta_logprob[0]),
        before=before if starts else before.lstrip("\ufffd"),  # the window may begin within a character
        token=split[at].text,
        after="".join(piece.text for piece in split[at + 1 :]),
        starts=starts,
        ends=spot.start + len(spot.token_ids) == spot.num_tokens or not known,
    )


def _messages(prompt: object) -> list[tuple[str, str]]:
    """A prompt as (role, text) of each message; a role of "" for text that is no chat."""
    if not isinstance(prompt, list):
        return [] if prompt is None else [("", _text(prompt))]
    messages = []
    for message in prompt[:50]:
        if isinstance(message, dict):
            content = message.get("content")
            if isinstance(content, list):  # parts, as the OpenAI interface has them
                content = "\n".join(
                    part["text"] for part in content if isinstance(part, dict) and isinstance(part.get("text"), str)
                )
            messages.append((str(message.get("role", ""))[:50], _text(content)))
        else:
            messages.append(("", _text(message)))
    return messages


def _text(value: object) -> str:
    if not isinstance(value, str):
        value = "" if value is None else json.dumps(value, ensure_ascii=False, default=str)
    return value if len(value) <= SHOWN_CHARACTERS else value[:SHOWN_CHARACTERS] + " …"


def check_tokenizer(samples: list[Sample], decode: pieces.Decode | None, name: str | None) -> list[str]:
    """One sentence where the tokenizer is another than the one that the rows are made with."""
    if decode is None:
        return []
    for sample in samples:
        decoded = "".join(piece.text for piece in sample.pieces)
        begin = sample.completion.strip()[:40]
        if begin and sample.pieces and begin not in decoded:
            return [f"The tokenizer of {name!r} does not give the text of the completions; it may be another model's."]
    return []
