"""Whether a row's completion has an answer, and the right one: what `filter` drops by and `report` compares by."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, Protocol

from vllm_optimal_sampling.data.filter.answers import AnswerPattern, boxed, contains, same
from vllm_optimal_sampling.data.rows import completion_text


class AnswerSettings(Protocol):
    """How answers are read and compared, see `FilterSettings`."""

    @property
    def answer_regex(self) -> str | None: ...
    @property
    def boxed(self) -> bool: ...
    @property
    def contains_answer(self) -> bool: ...
    @property
    def answer_column(self) -> str | None: ...
    @property
    def reference_regex(self) -> str | None: ...
    @property
    def numeric(self) -> bool: ...
    @property
    def ignore_case(self) -> bool: ...


class AnswerCheck:
    """Reads and judges answers.

    Raises:
        PatternError: (a ValueError) a regular expression is none.
    """

    def __init__(self, settings: AnswerSettings) -> None:
        self.settings = settings
        pattern = settings.reference_regex
        self._find_reference = None if pattern is None else AnswerPattern("--reference-regex", pattern).find
        read: Callable[[str], str | None] | None = None
        if settings.boxed:
            read = boxed
        elif settings.answer_regex is not None:
            read = AnswerPattern("--answer-regex", settings.answer_regex).find
        # Two questions ask for the answer of the same row.
        self._read = None if read is None else lru_cache(maxsize=1)(read)

    @property
    def reads(self) -> bool:
        """Whether an answer is read out of the completion; else it is only looked for in it."""
        return self._read is not None

    def has_answer(self, row: Mapping[str, Any]) -> bool:
        """Whether the completion has an answer; only where `reads`."""
        assert self._read is not None, "asked where answers are read"
        return self._read(completion_text(row.get("completion"))) is not None

    def is_right(self, row: Mapping[str, Any]) -> bool:
        """Whether a completion goes with its row's right answer, or with one of them."""
        column = self.settings.answer_column
        assert column is not None, "asked where there are right answers"
        text, references = completion_text(row.get("completion")), row.get(column)
        for reference in references if isinstance(references, list | tuple) else [references]:
            right = None if reference is None else str(reference)
            if right is not None and self._find_reference is not None:
                right = self._find_reference(right)
            if right is not None and self._goes_with(text, right):
                return True
        return False

    def _goes_with(self, text: str, right: str) -> bool:
        if self._read is None:
            return contains(text, right, self.settings.ignore_case)
        answer = self._read(text)
        return answer is not None and same(answer, right, self.settings.numeric, self.settings.ignore_case)
