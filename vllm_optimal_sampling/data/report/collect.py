"""One pass over the rows, in bounded memory, to a `Report`."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vllm_optimal_sampling.data.filter.answer_check import AnswerCheck, AnswerSettings
from vllm_optimal_sampling.data.report import pieces
from vllm_optimal_sampling.data.report.page import Report
from vllm_optimal_sampling.data.report.sequences import SequenceTally
from vllm_optimal_sampling.data.report.shown import (
    SHOWN_CHARACTERS,
    Identity,
    Picked,
    Spot,
    check_tokenizer,
    decoded_sample,
    decoded_spot,
    pick,
)
from vllm_optimal_sampling.data.report.streaming import (
    Distinct,
    GrowingBand,
    GrowingHistogram,
    Histogram,
    Reservoir,
)
from vllm_optimal_sampling.data.report.summary import (
    Band,
    Failure,
    TokenFigures,
    TokenLean,
)
from vllm_optimal_sampling.data.rows import SampledRow, completion_text, read_rows, read_settings
from vllm_optimal_sampling.front_end.records import JSON_FIELD

BUFFERED_TOKENS = 1 << 16
"""Tokens whose figures are counted at once: numpy's cost by call no longer shows."""
MOST_REASONS = 200
"""Kinds of failures and finish reasons that are told apart; more come together as one."""
TOKENS_BEFORE, TOKENS_AFTER = 32, 16
"""Around a disagreement."""
LARGEST_TOKEN_ID = 1 << 20
"""Larger ids are in no vocabulary, and would only cost memory."""
LEANING_TOKENS, LEAST_DRAWS = 12, 3
OTHER = "others"


def summarise(
    path: str | Path,
    *,
    tokenizer: str | None = None,
    num_samples: int = 6,
    num_disagreements: int = 24,
    seed: int = 0,
    answers: AnswerSettings | None = None,
) -> Report:
    """Read the output of `optimal-sampling generate` once and say what is in it.

    Memory does not grow with the number of rows. The settings are read from `PATH.settings.json`, if it is there.

    Args:
        path: a JSON lines, parquet or Arrow file, or a folder of them.
        tokenizer: folder or name of the model whose tokenizer splits the texts; None: the settings' teacher.
        num_samples: at least 0: samples shown in full, drawn at random.
        num_disagreements: at least 0: tokens shown where the models are furthest apart.
        seed: which samples are drawn.
        answers: how right answers are told from wrong ones, a `filter.rules.FilterSettings` with an `answer_column`; None:
            they are not compared.

    Returns:
        The figures; in a notebook they show themselves as the report.

    Raises:
        RowsError: (a ValueError) the file cannot be read at all.
        ValueError: a number is negative, `answers` names no column of right answers or one that no row has, or the
            tokenizer that was asked for cannot be loaded.
    """
    if answers is not None and answers.answer_column is None:
        raise ValueError("answers are compared with the right ones, which are in a column; give --answer-column")
    for name, value in (("num_samples", num_samples), ("num_disagreements", num_disagreements)):
        if value < 0:
            raise ValueError(f"{name} is {value}; it has to be at least 0")
    path = Path(path)
    settings, notices = read_settings(path)
    decode = None
    if tokenizer is not None:
        decode = _load(tokenizer)
    tally = _Tally(num_samples, num_disagreements, seed, None if answers is None else AnswerCheck(answers))
    for row in read_rows(path):
        tally.add(row)
    if answers is not None and tally.num_with_text and not tally.has_answers:
        raise ValueError(f"no row has a column {answers.answer_column!r}, which --answer-column needs")
    tally.flush()
    if decode is None and tally.num_with_ids and (teacher := _teacher_of(settings)):
        try:
            decode = _load(teacher)
            tokenizer = teacher
        except ValueError as error:
            notices.append(f"Tokens are shown by their ids: {error}. Another one can be given with --tokenizer.")
    return tally.result(path, settings, notices, decode, tokenizer)


def _load(name: str) -> pieces.Decode:
    try:
        return pieces.load_decoder(name)
    except Exception as error:  # whatever a broken folder makes transformers raise
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"the tokenizer of {name!r} cannot be loaded ({reason})") from None


def _teacher_of(settings: dict[str, Any] | None) -> str | None:
    """The tokenizer's name in the settings, which may be grouped."""
    groups = [settings or {}, *(value for value in (settings or {}).values() if isinstance(value, dict))]
    for key in ("tokenizer", "teacher", "model_teacher"):
        for group in groups:
            if isinstance(group.get(key), str):
                return str(group[key])
    return None


class _Tally:
    """Everything that is counted along the rows."""

    def __init__(self, num_samples: int, num_disagreements: int, seed: int, answers: AnswerCheck | None) -> None:
        self.answers = answers
        self.num_with_text, self.has_answers = 0, False
        self.sequences = SequenceTally(None if answers is None else answers.is_right)
        self.num_samples = self.num_failed = self.num_unreadable = self.num_torn = 0
        self.num_with_ids = self.num_tokens = self.num_recorded = self.num_fallback = self.num_misfits = 0
        self.num_named = 0
        self.rows, self.pairs = Distinct(), Distinct()
        self.finish_reasons: Counter[str] = Counter()
        self.failures: dict[str, list[Any]] = {}
        self.lengths, self.characters, self.prompt_lengths = (GrowingHistogram(512) for _ in range(3))
        self.pending_lengths: dict[str, list[float]] = {"tokens": [], "characters": [], "prompt": []}
        self.alpha = Histogram(np.linspace(0, 1, 1001))
        self.kl = Histogram(np.logspace(-8, 2, 401), log=True)
        self.ratio = Histogram(np.linspace(-40, 40, 4001))
        self.band = GrowingBand(64, 200)
        self.pending: list[tuple[TokenFigures, NDArray[np.int64]]] = []
        self.num_pending = 0
        self.draws = np.zeros(1024, np.int64)
        self.leans = np.zeros(1024)
        self.picked: Reservoir[Picked] = Reservoir(num_samples, seed)
        self.num_spots = num_disagreements
        self.spots: dict[str, tuple[float, int, Spot]] = {}
        self.floor = 0.0

    def add(self, row: SampledRow) -> None:
        """Take one row."""
        values = row.values
        if values is None:
            if row.is_torn:
                self.num_torn += 1
            else:
                self.num_unreadable += 1
                self._fail(str(row.problem), row.place)
            return
        self.num_samples += 1
        sample = values.get("sample")
        identity = Identity(str(values.get("custom_id", "")), sample if isinstance(sample, int) else None, row.place)
        if values.get("custom_id") is not None:
            self.num_named += 1
            self.rows.add(identity.custom_id)
            # Files that were drawn in several ways may have the same samples.
            self.pairs.add(f"{self.sequences.way_of(row.file)}\0{identity.custom_id}\0{identity.sample}")
        if values.get("error") is not None:
            self.num_failed += 1
            self._fail(str(values["error"]), row.place)
            return
        self.finish_reasons[self._known(self.finish_reasons, str(values.get("finish_reason") or "not given"))] += 1
        self.pending_lengths["characters"].append(len(completion_text(values.get("completion"))))
        ids = _token_ids(values.get("completion_token_ids"))
        if ids is not None:
            self.num_with_ids += 1
            self.num_tokens += len(ids)
            self.pending_lengths["tokens"].append(len(ids))
        if isinstance(prompt := values.get("prompt_token_ids"), list):
            self.pending_lengths["prompt"].append(len(prompt))
        figures = None
        if values.get(JSON_FIELD) is not None:
            figures = _figures(values[JSON_FIELD])
            if figures is None or (ids is not None and len(ids) != len(figures)):
                self.num_misfits += 1
                figures = None
        if figures is not None:
            self.num_recorded += 1
            self.num_fallback += int(figures.fallback.sum())
            known = ids if ids is not None else np.full(len(figures), -1, np.int64)
            self.pending.append((figures, known))
            self.num_pending += len(figures)
            self._look_for_disagreement(identity, figures, known)
        self.num_with_text += 1
        if self.answers is not None:
            self.has_answers |= values.get(str(self.answers.settings.answer_column)) is not None
        self.sequences.add(values, figures, row.file)
        self.picked.offer(lambda: pick(identity, values, ids, figures))
        if self.num_pending >= BUFFERED_TOKENS or len(self.pending_lengths["characters"]) >= BUFFERED_TOKENS:
            self.flush()

    def _known(self, known: dict[str, Any], key: str) -> str:
        return key[:200] if key[:200] in known or len(known) < MOST_REASONS else OTHER

    def _fail(self, reason: str, place: str) -> None:
        """Errors that differ only in their numbers and quoted names are of one kind."""
        kind = re.sub(r"\d+", "#", re.sub(r"'[^']{0,200}'|\"[^\"]{0,200}\"", "'…'", reason[:1000]))
        entry = self.failures.setdefault(self._known(self.failures, kind), [reason[:SHOWN_CHARACTERS], 0, place])
        entry[1] += 1

    def _look_for_disagreement(self, row: Identity, figures: TokenFigures, ids: NDArray[np.int64]) -> None:
        if not self.num_spots or not len(figures):
            return
        kl = np.where(np.isfinite(figures.kl) & ~figures.fallback, figures.kl, -1.0)
        position = int(kl.argmax())
        largest = float(kl[position])
        if largest <= self.floor:
            return
        earlier = self.spots.get(row.custom_id)
        if earlier is not None and earlier[0] >= largest:
            return
        start, stop = max(0, position - TOKENS_BEFORE), min(len(ids), position + 1 + TOKENS_AFTER)
        figure = figures[position : position + 1]
        spot = Spot(row, position, len(ids), start, ids[start:stop].tolist(), figure)
        self.spots[row.custom_id] = (largest, self.num_samples, spot)
        if len(self.spots) > self.num_spots:
            del self.spots[min(self.spots, key=lambda key: self.spots[key][0])]
        if len(self.spots) == self.num_spots:
            self.floor = min(kl for kl, _, _ in self.spots.values())

    def flush(self) -> None:
        """Count what was buffered."""
        histograms = {"tokens": self.lengths, "characters": self.characters, "prompt": self.prompt_lengths}
        for name, histogram in histograms.items():
            histogram.add(np.array(self.pending_lengths[name], np.float64))
            self.pending_lengths[name].clear()
        if not self.num_pending:
            self.pending.clear()
            return
        alpha = np.concatenate([figures.alpha for figures, _ in self.pending])
        ratio = np.concatenate([figures.teacher_logprob - figures.theta_logprob for figures, _ in self.pending])
        self.alpha.add(alpha)
        self.kl.add(np.concatenate([figures.kl for figures, _ in self.pending]))
        self.ratio.add(ratio)
        self.band.add(np.concatenate([np.arange(len(figures)) for figures, _ in self.pending]), alpha)
        self._count_leans(np.concatenate([ids for _, ids in self.pending]), ratio)
        self.pending.clear()
        self.num_pending = 0

    def _count_leans(self, ids: NDArray[np.int64], ratio: NDArray[np.float64]) -> None:
        keep = np.isfinite(ratio) & (ids >= 0) & (ids < LARGEST_TOKEN_ID)
        ids, ratio = ids[keep], ratio[keep]
        if not len(ids):
            return
        size = max(len(self.draws), int(ids.max()) + 1)
        self.draws.resize(size, refcheck=False)
        self.leans.resize(size, refcheck=False)
        self.draws += np.bincount(ids, minlength=size)
        self.leans += np.bincount(ids, weights=ratio, minlength=size)

    def result(
        self,
        path: Path,
        settings: dict[str, Any] | None,
        notices: list[str],
        decode: pieces.Decode | None,
        tokenizer: str | None,
    ) -> Report:
        samples = [decoded_sample(picked, decode) for picked in self.picked.in_order()]
        spots = sorted(self.spots.values(), key=lambda entry: (-entry[0], entry[1]))
        num_rows, exact = self.rows.count(), self.rows.is_exact
        num_pairs = self.pairs.count()
        repeated = self.num_named - num_pairs if self.pairs.is_exact else None
        notices = [*notices, *self._notices(repeated), *check_tokenizer(samples, decode, tokenizer)]
        failures = [Failure(reason, count, place) for reason, count, place in self.failures.values()]
        return Report(
            source=path,
            num_samples=self.num_samples,
            num_rows=num_rows,
            num_rows_is_exact=exact,
            num_repeated=repeated,
            num_failed=self.num_failed,
            num_unreadable=self.num_unreadable,
            num_torn=self.num_torn,
            failures=sorted(failures, key=lambda failure: -failure.count),
            finish_reasons=dict(self.finish_reasons.most_common()),
            num_tokens=self.num_tokens if self.num_with_ids else None,
            num_recorded=self.num_recorded,
            num_fallback=self.num_fallback,
            length=(self.lengths if self.num_with_ids else self.characters).result(),
            prompt_length=self.prompt_lengths.result(),
            alpha=self.alpha.result(),
            kl=self.kl.result(),
            ratio=self.ratio.result(),
            alpha_by_position=self._band(),
            sequences=self.sequences.result(),
            disagreements=[decoded_spot(spot, kl, decode) for kl, _, spot in spots],
            teacher_tokens=self._leaning(decode, 1),
            theta_tokens=self._leaning(decode, -1),
            samples=samples,
            settings=settings,
            tokenizer=tokenizer if decode is not None else None,
            notices=notices,
        )

    def _band(self) -> Band:
        counts = self.band.counts.sum(axis=1)
        used = int(np.flatnonzero(counts).max(initial=-1)) + 1
        low, median, high = (self.band.quantiles(q)[:used] for q in (0.1, 0.5, 0.9))
        return Band(self.band.width, low, median, high, counts[:used])

    def _leaning(self, decode: pieces.Decode | None, sign: int) -> list[TokenLean]:
        """The tokens by the sum of their log ratios: what is drawn often counts for more than what is drawn once."""
        order = np.argsort(-sign * self.leans, kind="stable")[:LEANING_TOKENS]
        return [
            TokenLean(
                decode([token]) if decode is not None else f"⟨{token}⟩",
                int(self.draws[token]),
                float(self.leans[token] / self.draws[token]),
            )
            for token in order.tolist()
            if sign * self.leans[token] > 0 and self.draws[token] >= LEAST_DRAWS
        ]

    def _notices(self, repeated: int | None) -> list[str]:
        notices = []
        if self.num_torn:
            notices.append(
                "The last line is broken off, as a killed run leaves it; resuming the run does it again."
                if self.num_torn == 1
                else f"The last lines of {self.num_torn:,} files are broken off, as killed runs leave them; resuming "
                "the runs does them again."
            )
        if repeated:
            notices.append(
                f"{_count(repeated, 'sample is', 'samples are')} there more than once by custom_id and sample."
            )
        if self.num_misfits:
            notices.append(
                f"{_count(self.num_misfits, 'record', 'records')} cannot be read or does not fit its tokens; "
                "such samples are counted without it."
            )
        if self.num_fallback:
            notices.append(
                f"{_count(self.num_fallback, 'token was', 'tokens were')} left to the teacher, since the models' "
                "probabilities could not be mixed."
            )
        without = self.num_samples - self.num_failed - self.num_recorded - self.num_misfits
        if self.num_recorded and without:
            notices.append(f"{_count(without, 'sample has', 'samples have')} no per-token record.")
        return notices


def _count(number: int, one: str, many: str) -> str:
    return f"{number:,} {one if number == 1 else many}"


def _token_ids(value: object) -> NDArray[np.int64] | None:
    """Token ids `[tokens]`, or None where they are none."""
    if not isinstance(value, list):
        return None
    try:
        ids = np.array(value, dtype=np.int64)
    except (ValueError, TypeError, OverflowError):
        return None
    return ids if ids.ndim == 1 else None


def _figures(record: object) -> TokenFigures | None:
    """The record of a sample as arrays, or None where it is none."""
    if not isinstance(record, dict):
        return None
    try:
        columns = {one.name: np.array(record[one.name], dtype=np.float64) for one in fields(TokenFigures)}
    except (KeyError, ValueError, TypeError, OverflowError):
        return None
    fallback = columns.pop("fallback")
    if any(column.shape != fallback.shape or column.ndim != 1 for column in columns.values()):
        return None
    return TokenFigures(**columns, fallback=np.nan_to_num(fallback) != 0)
