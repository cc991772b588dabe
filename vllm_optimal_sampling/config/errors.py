"""Why an engine does not start."""

from __future__ import annotations


class UnsupportedEngineError(ValueError):
    """An engine cannot run with optimal sampling; the message says why and what to do."""


def listed(problems: list[str]) -> str:
    """The message about an engine's problems, each a sentence without its full stop."""
    if len(problems) == 1:
        return f"optimal sampling cannot start: {problems[0]}."
    return "optimal sampling cannot start:" + "".join(f"\n- {problem}." for problem in problems)


def first_line(error: BaseException) -> str:
    """The first line of an error of somebody else's, or its type where it says nothing."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
