r"""Final answers: reading them from a completion, and telling whether two are the same.

`boxed` is the content of the last complete `\boxed{...}`; `AnswerPattern` the last match of a regular expression.
"""

from __future__ import annotations

import re
from decimal import Decimal, InvalidOperation
from fractions import Fraction

import regex

PATTERN_SECONDS = 1.0
"""For one completion. Linear patterns take microseconds; a pattern that backtracks without end is stopped here."""
MOST_TIMEOUTS = 20
"""After so many completions the pattern itself is at fault."""
LONGEST_NUMBER = 400
"""Characters; longer ones are compared as text."""

_BOX = re.compile(r"(?P<box>\\(?:boxed|fbox)\s*\{)|\\.|(?P<brace>[{}])", re.S)
_FRACTION = re.compile(r"\\[dt]?frac\{([^{}]+)\}\{([^{}]+)\}")
_GROUPED = re.compile(r"[-+]?\d{1,3}(,\d{3})+(\.\d*)?")


class PatternError(ValueError):
    """A regular expression cannot be used; the message is one sentence for the user."""


def boxed(text: str) -> str | None:
    r"""The content of the `\boxed{...}` (or `\fbox`) that begins last among those that are closed, or None.

    One pass, whatever the nesting. A brace after a backslash is a character.
    """
    open_braces: list[int | None] = []  # where a box's content begins; None for other braces
    found: tuple[int, int] | None = None
    for match in _BOX.finditer(text):
        if match["box"]:
            open_braces.append(match.end())
        elif match["brace"] == "{":
            open_braces.append(None)
        elif match["brace"] == "}" and open_braces:
            start = open_braces.pop()
            if start is not None and (found is None or start > found[0]):
                found = (start, match.start())
    return text[found[0] : found[1]].strip() if found else None


class AnswerPattern:
    """The last match of a regular expression: its group `answer`, else its first group, else all of it.

    Args:
        option: the option that it comes from, for messages.
        pattern: in the syntax of the package `regex`, which is that of `re` and more.

    Raises:
        PatternError: it is no regular expression.
    """

    def __init__(self, option: str, pattern: str) -> None:
        self.option = option
        try:
            self.pattern = regex.compile(pattern)
        except regex.error as error:
            raise PatternError(f"{option} {pattern!r} is not a regular expression: {error}") from None
        self.group: int | str = "answer" if "answer" in self.pattern.groupindex else min(self.pattern.groups, 1)
        self.num_timeouts = 0

    def find(self, text: str) -> str | None:
        """The answer in a text; None where there is none, or where looking takes longer than `PATTERN_SECONDS`.

        Raises:
            PatternError: it took too long on `MOST_TIMEOUTS` texts.
        """
        last = None
        try:
            for match in self.pattern.finditer(text, timeout=PATTERN_SECONDS):
                last = match
        except TimeoutError:
            self.num_timeouts += 1
            if self.num_timeouts >= MOST_TIMEOUTS:
                raise PatternError(
                    f"{self.option} {self.pattern.pattern!r} took over {PATTERN_SECONDS:g} s on each of "
                    f"{MOST_TIMEOUTS} completions; write it without nested repetition such as (a+)+"
                ) from None
            return None
        found = None if last is None else last[self.group]
        return None if found is None else str(found).strip()


def same(answer: str, reference: str, numeric: bool, ignore_case: bool = False) -> bool:
    """Whether two answers are the same text, or with `numeric` the same number.

    Text is compared with capital and small letters as they are, but for `ignore_case`, and without the spaces around and
    between words, the `$` around mathematics and the full stop behind.
    Numbers are compared exactly: 1,000 is 1000.0, 1/2 and \\frac{1}{2} are 0.5, and $5, 5% and 5 are alike.
    """
    texts = normalised(answer), normalised(reference)
    if texts[0] == texts[1] or (ignore_case and texts[0].casefold() == texts[1].casefold()):
        return True
    if not numeric:
        return False
    value = as_number(answer)
    return value is not None and value == as_number(reference)


def contains(text: str, reference: str, ignore_case: bool = False) -> bool:
    """Whether a text has an answer in it, as words of its own: not 72 in 172, 72.5, 1,072 or -72, nor "art" in "start".

    Spaces, the `$` around mathematics and the full stop behind do not count, as in `same`. An empty answer is in no text.
    """
    answer = normalised(reference)
    if not answer:
        return False
    words = r"\s+".join(map(regex.escape, answer.split()))
    before = r"(?<!\w)(?<!\d[.,])" if answer[0].isalnum() else ""
    if answer[0].isdigit():
        before += r"(?<!(?:^|[^\w\s)])[-\u2212])(?<!(?:^|\s)[-\u2212])"
    after = r"(?!\w)(?![.,]\d)" if answer[-1].isalnum() else ""
    return regex.search(before + words + after, text, flags=regex.IGNORECASE if ignore_case else 0) is not None


def normalised(answer: str) -> str:
    """An answer as it is compared as text."""
    text = " ".join(answer.split()).rstrip(".").rstrip()
    while len(text) > 1 and text[0] == text[-1] == "$":
        text = text[1:-1].strip()
    return text


def as_number(text: str) -> Fraction | None:
    """The number that an answer is, exactly; None where it is none.

    Commas may only stand between groups of thousands.
    """
    text = normalised(text)
    if not text or len(text) > LONGEST_NUMBER:
        return None
    text = _FRACTION.sub(r"\1/\2", text).replace("\\$", "").replace("\\%", "").replace("\\,", "").replace("\\!", "")
    text = text.replace("\u2212", "-").replace("$", "").replace("%", "").replace("{,}", ",").strip()
    above, slash, below = text.partition("/")
    value, divisor = _decimal(above), _decimal(below) if slash else Fraction(1)
    if value is None or not divisor:
        return None
    return value / divisor


def _decimal(text: str) -> Fraction | None:
    text = text.strip()
    if "_" in text:
        return None
    if _GROUPED.fullmatch(text):
        text = text.replace(",", "")
    try:
        value = Decimal(text)
    except InvalidOperation:
        return None
    # 1e999999999 as an exact fraction would not fit in memory.
    if not value.is_finite() or abs(int(value.as_tuple().exponent)) > LONGEST_NUMBER:
        return None
    return Fraction(value)
