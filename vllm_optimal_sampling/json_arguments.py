"""Arguments that are JSON: a list or an object in Python, and its text on the way, where only text travels."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from vllm_optimal_sampling.argument_checks import ArgumentError, check_unicode, shown

DEEPEST = 16
"""Levels of lists and objects that an argument may have. A chat has 2, one with tool calls about 6."""


def read_json(name: str, text: str, wanted: str) -> Any:
    """What an argument's text says.

    Args:
        name: of the argument.
        text: its JSON.
        wanted: what to give instead of a text that is no JSON, for the error.

    Raises:
        ArgumentError: not JSON, nested too deeply to be read, or with text in it that cannot be written as UTF-8.

    """
    check_unicode(name, text)
    try:
        value = json.loads(text, parse_constant=_refuse_constant)
    except RecursionError:
        raise _too_deep(name) from None
    except ValueError as error:
        raise ArgumentError(name, f"{name}={shown(text)} is not JSON ({error}); {wanted}") from None
    if "\\ud" in text.lower():  # an escape may hide half a surrogate pair
        check_unicode(name, json.dumps(value, ensure_ascii=False))
    return value


def write_json(name: str, value: Any) -> str:
    """An argument as text, without escapes for what UTF-8 can write.

    Raises:
        ArgumentError: something in it cannot be written as JSON or as UTF-8.

    """
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ArgumentError(name, f"{name} cannot be written as JSON ({error})") from None
    check_unicode(name, text)
    return text


def check_depth(name: str, value: object) -> None:
    """Refuse an argument of more than `DEEPEST` levels. Without recursion, so that no nesting is too deep to be refused."""
    level = [value]
    for _ in range(DEEPEST + 1):
        level = [
            child
            for parent in level
            if isinstance(parent, (Mapping, list, tuple))
            for child in (parent.values() if isinstance(parent, Mapping) else parent)
        ]
        if not level:
            return
    raise _too_deep(name)


def _too_deep(name: str) -> ArgumentError:
    return ArgumentError(name, f"{name} is nested more than {DEEPEST} levels deep; flatten it")


def _refuse_constant(name: str) -> object:
    raise ValueError(f"{name} is not a JSON value")
