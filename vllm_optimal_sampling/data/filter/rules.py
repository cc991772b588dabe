"""The rules that a row has to pass, in the order in which they are asked.

A rule is a name and a function of a row's columns that says whether it stays. Rules that compare rows remember hashes
alone: some 150 bytes for each row (189 MiB in all for a million rows) that is kept.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from vllm_optimal_sampling.argument_checks import ArgumentError
from vllm_optimal_sampling.data.filter.answer_check import AnswerCheck
from vllm_optimal_sampling.data.filter.best_of_group import BestOfGroup
from vllm_optimal_sampling.selection import SCORED, Selection

Row = Mapping[str, Any]
Deduplicate = Literal["completion", "prompt+completion"]


class ColumnError(ValueError):
    """No row has a column that a rule needs; the message is one sentence for the user."""


@dataclass(frozen=True)
class FilterSettings:
    """What to keep.

    Attributes:
        drop_errors: drop rows with an `error`. Lines that cannot be read are dropped in any case.
        drop_truncated: drop rows that ended at the token limit (`finish_reason` "length").
        min_tokens, max_tokens: bounds on the tokens of a completion, both inclusive.
        answer_regex, boxed: how the final answer is read from the completion: one of both. Without an
            `answer_column` a row is kept if it has an answer.
        contains_answer: instead of reading an answer: keep a row if the right answer is anywhere in its completion.
        answer_column: the column with the right answer, or a list of right answers.
        reference_regex: how the right answer is read from that column; None: the column is the answer.
        numeric: compare as numbers where both are numbers.
        ignore_case: compare answers without regard to capital and small letters. Regular expressions have `(?i)` for it.
        best_of_group: of the rows with the same value in this column keep one, of those that the rules before let through.
        by: which one: by `log_z` (None), `resample` or `teacher_logprob`, see `selection`.
        select_by: `sum` (None) or `mean` over the tokens, for `log_z` and `teacher_logprob`.
        seed: of the random choices of `resample`; None: 0.
        deduplicate: keep the first of the rows whose completion, or prompt and completion, is the same but for spaces.
        max_per_prompt: keep at most so many rows of a prompt, the first ones.

    Raises:
        ValueError: a number is out of range, or an option needs another one.
    """

    drop_errors: bool = True
    drop_truncated: bool = False
    min_tokens: int | None = None
    max_tokens: int | None = None
    answer_regex: str | None = None
    boxed: bool = False
    contains_answer: bool = False
    answer_column: str | None = None
    reference_regex: str | None = None
    numeric: bool = False
    ignore_case: bool = False
    best_of_group: str | None = None
    by: str | None = None
    select_by: str | None = None
    seed: int | None = None
    deduplicate: Deduplicate | None = None
    max_per_prompt: int | None = None

    def __post_init__(self) -> None:
        for name, value, least in (
            ("--min-tokens", self.min_tokens, 0),
            ("--max-tokens", self.max_tokens, 0),
            ("--max-per-prompt", self.max_per_prompt, 1),
        ):
            if value is not None and value < least:
                raise ValueError(f"{name} is {value}; it has to be at least {least}")
        if self.min_tokens is not None and self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise ValueError(
                f"--min-tokens {self.min_tokens} is above --max-tokens {self.max_tokens}; nothing would stay"
            )
        reading = [
            option
            for option, given in (
                ("--boxed", self.boxed),
                ("--answer-regex", self.answer_regex is not None),
                ("--contains-answer", self.contains_answer),
            )
            if given
        ]
        if len(reading) > 1:
            raise ValueError(f"{' and '.join(reading)} both say how the answer is read; give one of them")
        if self.answer_column is not None and not reading:
            raise ValueError(
                "--answer-column needs --boxed, --answer-regex or --contains-answer, which say how the answer is read"
            )
        for name, given in (
            ("--reference-regex", self.reference_regex is not None),
            ("--contains-answer", self.contains_answer),
            ("--numeric", self.numeric),
            ("--ignore-case", self.ignore_case),
        ):
            if given and self.answer_column is None:
                raise ValueError(f"{name} is about the right answer; give --answer-column too")
        if self.contains_answer and self.numeric:
            raise ValueError(
                "--numeric compares an answer that was read, and --contains-answer reads none; drop one of them"
            )
        self._check_best_of_group()

    def _check_best_of_group(self) -> None:
        if self.best_of_group is None:
            for name in ("by", "select_by", "seed"):
                if (value := getattr(self, name)) is not None:
                    option = f"--{name.replace('_', '-')}"
                    raise ValueError(f"{option} {value} is about the best row of a group; give --best-of-group too")
            return
        if self.by is not None and self.by not in SCORED:
            raise ValueError(f"--by {self.by} is not one of {', '.join(SCORED)}")
        try:
            selection = self.selection
        except ArgumentError as error:
            raise ValueError(error.message) from None
        if self.seed is not None and selection.select != "resample":
            raise ValueError(
                f"--seed {self.seed} has no effect with --by {selection.select}, which draws nothing; drop it"
            )

    @property
    def selection(self) -> Selection:
        """Which row of a group is kept."""
        return Selection(self.by or "log_z", self.select_by)


@dataclass(frozen=True)
class Rule:
    """A rule: its name in the table of what was dropped, and whether a row stays."""

    name: str
    keeps: Callable[[Row], bool]


class Rules:
    """All rules of some settings, with how many rows each has dropped.

    Raises:
        PatternError: (a ValueError) a regular expression is none.
    """

    def __init__(self, settings: FilterSettings) -> None:
        self.settings = settings
        self.rules: list[Rule] = []
        self.missing: dict[str, str] = {}  # needed column -> who needs it, until a row has it
        self.num_read = 0
        self.dropped: Counter[str] = Counter()
        if settings.drop_errors:
            self.rules.append(Rule("error", lambda row: row.get("error") is None))
        if settings.drop_truncated:
            self._needs("finish_reason", "--drop-truncated")
            self.rules.append(Rule("truncated", lambda row: row.get("finish_reason") != "length"))
        if settings.min_tokens is not None:
            least = settings.min_tokens
            self._needs("completion_token_ids", "--min-tokens")
            self.rules.append(Rule(f"under {least:,} tokens", lambda row: _length(row) >= least))
        if settings.max_tokens is not None:
            most = settings.max_tokens
            self._needs("completion_token_ids", "--max-tokens")
            self.rules.append(Rule(f"over {most:,} tokens", lambda row: _length(row) <= most))
        self._add_answer_rules()
        self.best_of_group: BestOfGroup | None = None
        self._add_best_of_group()
        if settings.deduplicate is not None:
            self._needs("completion", "--deduplicate")
            self.rules.append(Rule("duplicate", self._is_new))
            self.seen: set[bytes] = set()
        if settings.max_per_prompt is not None:
            self._needs("prompt", "--max-per-prompt")
            self.rules.append(Rule(f"over {settings.max_per_prompt:,} of a prompt", self._has_room))
            self.of_prompt: Counter[bytes] = Counter()

    def _needs(self, column: str, option: str) -> None:
        self.missing.setdefault(column, option)

    def _add_answer_rules(self) -> None:
        settings = self.settings
        check = AnswerCheck(settings)
        if check.reads:
            self._needs("completion", "--boxed" if settings.boxed else "--answer-regex")
            self.rules.append(Rule("no answer", check.has_answer))
        if settings.answer_column is not None:
            self._needs("completion", "--answer-column" if check.reads else "--contains-answer")
            self._needs(settings.answer_column, "--answer-column")
            self.rules.append(Rule("wrong answer", check.is_right))

    def _add_best_of_group(self) -> None:
        settings = self.settings
        if settings.best_of_group is None:
            return
        self._needs(settings.best_of_group, "--best-of-group")
        best = BestOfGroup(settings.best_of_group, settings.selection, settings.seed or 0)
        self.best_of_group, self.rules_before = best, tuple(self.rules)
        self.rules.append(Rule("not the best of its group", lambda _: best.is_kept(self.num_read)))

    def look_for_best(self, rows: Iterable[Row | None]) -> None:
        """Find the best row of each group, where that is asked for, in a first pass over all rows.

        Args:
            rows: as `keeps` will be asked about them, in the same order.

        Raises:
            ColumnError: no row has what they are compared by.
        """
        if self.best_of_group is None:
            return
        offered = False
        for number, row in enumerate(rows, 1):
            if row is not None and all(rule.keeps(row) for rule in self.rules_before):
                offered = True
                self.best_of_group.offer(row, number)
        if offered and not self.best_of_group.has_scores:
            raise ColumnError(
                f"no row has what --by {self.settings.selection.select} compares; it is in the per-token record, which "
                "generate writes with --return-alpha, and in the candidates of --best-of"
            )

    def keeps(self, row: Row | None) -> bool:
        """Whether a row stays; None is a line that cannot be read, which no file of rows can keep."""
        self.num_read += 1
        if row is None:
            self.dropped["unreadable"] += 1
            return False
        for column in [column for column in self.missing if row.get(column) is not None]:
            del self.missing[column]
        for rule in self.rules:
            if not rule.keeps(row):
                self.dropped[rule.name] += 1
                return False
        return True

    def check_columns(self) -> None:
        """Say so if a column was in no row: its rule has dropped everything, most likely for a mistyped name.

        Raises:
            ColumnError: which column, and what needs it.
        """
        sound = self.num_read - self.dropped["unreadable"] - self.dropped["error"]
        for column, option in self.missing.items():
            if sound:
                raise ColumnError(f"no row has a column {column!r}, which {option} needs")

    def table(self) -> str:
        """How many rows each rule has dropped, and how many were left after it."""
        left = self.num_read
        lines = [("rule", "dropped", "left"), ("read", "", f"{left:,}")]
        for name in ["unreadable", *(rule.name for rule in self.rules)]:
            count = self.dropped[name]
            left -= count
            if count or name != "unreadable":
                lines.append((name, f"{count:,}", f"{left:,}"))
        width = max(len(name) for name, _, _ in lines)
        return "".join(f"{name:<{width}}  {dropped:>12}  {left:>12}\n" for name, dropped, left in lines)

    def _is_new(self, row: Row) -> bool:
        key = _hash(row.get("completion"), row.get("prompt") if "prompt" in str(self.settings.deduplicate) else None)
        if key in self.seen:
            return False
        self.seen.add(key)
        return True

    def _has_room(self, row: Row) -> bool:
        key = _hash(row.get("prompt"))
        if self.of_prompt[key] >= (self.settings.max_per_prompt or 0):
            return False
        self.of_prompt[key] += 1
        return True


def _length(row: Row) -> int:
    ids = row.get("completion_token_ids")
    return len(ids) if isinstance(ids, list) else 0


def _hash(*values: object) -> bytes:
    """16 bytes that stand for some texts or messages, alike for those that differ in spaces alone."""
    text = json.dumps([_squeezed(value) for value in values], sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def _squeezed(value: object) -> object:
    if isinstance(value, str):
        return " ".join(value.split())
    if isinstance(value, list):
        return [_squeezed(item) for item in value]
    if isinstance(value, dict):
        return {key: _squeezed(item) for key, item in value.items()}
    return value
