"""What a report says, as numbers and texts: the result of `summarise`."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vllm_optimal_sampling.data.report.pieces import Piece
from vllm_optimal_sampling.data.report.streaming import Distribution, Floats

Z_95 = 1.959964
"""A 95 % interval reaches so many standard deviations to both sides."""


@dataclass(frozen=True)
class TokenFigures:
    """The record of some tokens: five arrays `[tokens]`, and whether each was left to the teacher.

    As in `TokenRecords`: natural logarithms at temperature 1, NaN where the record has null.
    """

    alpha: Floats
    kl: Floats
    logprob: Floats
    teacher_logprob: Floats
    theta_logprob: Floats
    fallback: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.alpha)

    def __getitem__(self, tokens: slice) -> TokenFigures:
        return TokenFigures(
            self.alpha[tokens],
            self.kl[tokens],
            self.logprob[tokens],
            self.teacher_logprob[tokens],
            self.theta_logprob[tokens],
            self.fallback[tokens],
        )


@dataclass(frozen=True)
class Sample:
    """One sample as it is shown, cut off where it is long.

    Attributes:
        custom_id, sample: which one.
        place: file and line.
        prompt: (role, text) of each message; the role is "" for a prompt that is plain text.
        privileged_context: what only the teacher saw, or None.
        completion: its text.
        pieces: the text by tokens; empty without token ids.
        figures: the record of those tokens, or None.
        num_tokens: of the whole completion.
        finish_reason: as vLLM gives it, or None.
    """

    custom_id: str
    sample: int | None
    place: str
    prompt: list[tuple[str, str]]
    privileged_context: str | None
    completion: str
    pieces: list[Piece]
    figures: TokenFigures | None
    num_tokens: int
    finish_reason: str | None


@dataclass(frozen=True)
class Disagreement:
    """A token where the models were far apart, with its surroundings.

    Attributes:
        custom_id, sample, place: which sample.
        position: of the token in the completion, from 0 on.
        num_tokens: of the completion.
        kl: D_KL(q* || theta) at the token, in nats.
        alpha, logprob, teacher_logprob, theta_logprob: of the token, see `TokenRecords`; NaN for null.
        before, token, after: the text. `token` is the whole characters that the token is a part of.
        starts, ends: whether `before` begins with the completion, and `after` ends with it.
    """

    custom_id: str
    sample: int | None
    place: str
    position: int
    num_tokens: int
    kl: float
    alpha: float
    logprob: float
    teacher_logprob: float
    theta_logprob: float
    before: str
    token: str
    after: str
    starts: bool
    ends: bool


@dataclass(frozen=True)
class TokenLean:
    """A token that one model wants more than the other: over all its draws."""

    text: str
    count: int
    mean_ratio: float
    """Mean of log teacher - log theta, in nats."""


@dataclass(frozen=True)
class Failure:
    """A kind of failure: `reason` is the first such error in full, `place` where it stands."""

    reason: str
    count: int
    place: str


@dataclass(frozen=True)
class Band:
    """Alpha along the sequence, by stretches of `width` tokens; arrays `[stretches]`, NaN without a token.

    `low` and `high` are the 10 % and the 90 % quantile.
    """

    width: int
    low: Floats
    median: Floats
    high: Floats
    counts: NDArray[np.int64]


@dataclass(frozen=True)
class Way:
    """One way of sampling: the rows of the files that were drawn with the same settings.

    Attributes:
        name: in words, from the settings beside the rows.
        num_samples: with a text.
        kl: mean of D_KL(q* || theta) a token, in nats; NaN without records.
        num_judged, num_right: samples with a right answer to compare with, and those that have it.
    """

    name: str
    num_samples: int
    kl: float
    num_judged: int
    num_right: int

    @property
    def share(self) -> float:
        """Of right ones; NaN where none is judged."""
        return self.num_right / self.num_judged if self.num_judged else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval of `share`."""
        if not self.num_judged:
            return math.nan, math.nan
        spread = Z_95 * Z_95 / self.num_judged
        middle = (self.share + spread / 2) / (1 + spread)
        half = (
            Z_95
            / (1 + spread)
            * math.sqrt(self.share * (1 - self.share) / self.num_judged + spread / 4 / self.num_judged)
        )
        return middle - half, middle + half


@dataclass(frozen=True)
class Sequences:
    """Figures of whole texts.

    Attributes:
        cost: -Σ log Z of each text in nats, at least 0: 0 where both models go along, large where they are pulled apart.
        right, wrong: the same of the texts with a right and with a wrong answer; None where none is judged.
        likelier: how often a right text has the smaller cost than a wrong one, of all such pairs (1/2 says nothing); NaN
            without both.
        effective_share: for each prompt with several texts the effective sample size of importance resampling with weights
            exp(Σ log Z), as a share of the texts.
        num_texts: of these prompts, on average.
        ways: the ways of sampling, in the order of the files.
        is_complete: whether all prompts are in `effective_share`; else those of the first prompts alone.
    """

    cost: Distribution
    right: Distribution | None
    wrong: Distribution | None
    likelier: float
    effective_share: Distribution
    num_texts: float
    ways: list[Way]
    is_complete: bool


@dataclass(frozen=True)
class Summary:
    """What is in the output of `optimal-sampling generate`.

    Attributes:
        source: the file or folder.
        num_samples: rows that could be read, failed ones included.
        num_rows: different `custom_id`s; estimated to 0.3 % where `num_rows_is_exact` is false.
        num_repeated: samples whose `custom_id` and `sample` came before; None where too many came to know.
        num_failed: samples with an `error`.
        num_unreadable: lines that are no rows; torn last lines are not among them.
        num_torn: last lines that were broken off: at most one for each file.
        failures: kinds of errors and unreadable lines, the most frequent first.
        finish_reasons: samples by finish reason, failed ones left out.
        num_tokens: tokens of all completions. None where no row has `completion_token_ids`.
        num_recorded: samples with a per-token record.
        num_fallback: recorded tokens that were to be mixed but were left to the teacher.
        length: tokens of a completion; characters where `num_tokens` is None.
        prompt_length: tokens of a prompt of the teacher.
        alpha, kl: of the recorded tokens; kl in nats.
        ratio: log teacher - log theta of the token drawn, in nats.
        alpha_by_position: alpha along the sequence.
        sequences: of whole texts: Σ log Z, right answers, what resampling would leave, and the ways of sampling.
        disagreements: the tokens with the largest kl, at most one for each `custom_id`, the largest first.
        teacher_tokens, theta_tokens: the tokens that lean furthest to either model, over all their draws.
        samples: some samples, drawn at random.
        settings: of the run, from the file beside the rows; None without it.
        tokenizer: what split the texts into tokens; None where there was none.
        notices: one sentence for each thing that a reader should know about the file.
    """

    source: Path
    num_samples: int
    num_rows: int
    num_rows_is_exact: bool
    num_repeated: int | None
    num_failed: int
    num_unreadable: int
    num_torn: int
    failures: list[Failure]
    finish_reasons: dict[str, int]
    num_tokens: int | None
    num_recorded: int
    num_fallback: int
    length: Distribution
    prompt_length: Distribution
    alpha: Distribution
    kl: Distribution
    ratio: Distribution
    alpha_by_position: Band
    sequences: Sequences
    disagreements: list[Disagreement]
    teacher_tokens: list[TokenLean]
    theta_tokens: list[TokenLean]
    samples: list[Sample]
    settings: dict[str, Any] | None
    tokenizer: str | None
    notices: list[str] = field(default_factory=list)

    @property
    def mean_alpha(self) -> float:
        """Over the recorded tokens; NaN without any."""
        return self.alpha.mean

    @property
    def mean_kl(self) -> float:
        """Over the recorded tokens whose kl is finite; NaN without any."""
        return self.kl.mean

    def __repr__(self) -> str:
        alpha = "no records" if math.isnan(self.mean_alpha) else f"mean alpha {self.mean_alpha:.3f}"
        return f"Summary({str(self.source)!r}: {self.num_samples:,} samples, {self.num_failed:,} failed, {alpha})"
