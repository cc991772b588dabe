"""The rules that a row has to pass, in the order in which they are asked.

A rule is a name and a function of a row's columns that says whether it stays. Rules that compare rows remember hashes
alone: some 150 bytes for each row (189 MiB in all for a million rows) that is kept.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

from vllm_optimal_sampling.data.filter.answers import AnswerPattern, boxed, contains, same
from vllm_optimal_sampling.data.rows import completion_text

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
        if settings.contains_answer:
            self._add_right_answer("--contains-answer", lambda text, right: contains(text, right, settings.ignore_case))
            return
        if settings.boxed:
            read: Callable[[str], str | None] = boxed
        elif settings.answer_regex is not None:
            read = AnswerPattern("--answer-regex", settings.answer_regex).find
        else:
            return
        read = lru_cache(maxsize=1)(read)  # two rules ask for the answer of the same row
        self._needs("completion", "--boxed" if settings.boxed else "--answer-regex")
        self.rules.append(Rule("no answer", lambda row: read(completion_text(row.get("completion"))) is not None))
        if settings.answer_column is None:
            return

        def is_right(text: str, right: str) -> bool:
            answer = read(text)
            return answer is not None and same(answer, right, settings.numeric, settings.ignore_case)

        self._add_right_answer("--answer-column", is_right)

    def _add_right_answer(self, option: str, is_right: Callable[[str, str], bool]) -> None:
        """The rule that a completion goes with its row's right answer, or with one of them."""
        column, pattern = self.settings.answer_column, self.settings.reference_regex
        assert column is not None, "the settings ask for it"
        self._needs("completion", option)
        self._needs(column, "--answer-column")
        find = AnswerPattern("--reference-regex", pattern).find if pattern is not None else None

        def keeps(row: Row) -> bool:
            text, references = completion_text(row.get("completion")), row.get(column)
            for reference in references if isinstance(references, list | tuple) else [references]:
                right = None if reference is None else str(reference)
                if right is not None and find is not None:
                    right = find(right)
                if right is not None and is_right(text, right):
                    return True
            return False

        self.rules.append(Rule("wrong answer", keeps))

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
