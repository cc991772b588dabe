"""How the commands read their options."""

from __future__ import annotations

import argparse
import json
from typing import Any


def json_object(text: str) -> dict[str, Any]:
    """An option's JSON object, each key of it there once."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            raise ValueError("a key is there twice")
        return found

    try:
        found = json.loads(text, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise argparse.ArgumentTypeError(f"{text[:80]!r} is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise argparse.ArgumentTypeError(f"{text[:80]!r} is not a JSON object")
    return found


def pair(metavar: str) -> dict[str, Any]:
    """Arguments of `add_argument` for an option with a number, or with two: [start, end]."""
    return {"type": float, "nargs": "+", "action": _Pair, "metavar": metavar}


class Once(argparse.Action):
    """Stores an option's value; another value for the same option is refused, not taken instead of the first.

    Made a parser's default by `parser.register("action", None, Once)`.
    """

    _given: tuple[object, object] | None = None
    """The namespace that was filled last, and this option's value in it."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        """Store `values`, once."""
        if self._given is not None and self._given[0] is namespace and self._given[1] != values:
            parser.error(f"{option_string} is given twice, with {self._given[1]!r} and with {values!r}; give it once")
        self._given = (namespace, values)
        setattr(namespace, self.dest, values)


class _Pair(Once):
    """`Once`, of one number or a list of them."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        """Store `values`, once."""
        super().__call__(parser, namespace, values[0] if len(values) == 1 else values, option_string)
