"""Checking one argument at a time: the error that refuses it, and the sentences that say why."""

from __future__ import annotations

import difflib
import math
import numbers
import reprlib
from collections.abc import Collection, Sequence

LARGEST_COUNT = 2**31 - 1
"""Counts and token ids reach the device as int32."""

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 48
_SHORT.maxlist = _SHORT.maxtuple = _SHORT.maxdict = 4
_SHORT.maxlevel = 2


class ArgumentError(ValueError):
    """An argument was refused.

    Attributes:
        argument: its name, as a request spells it.
        message: what was given, what is allowed and what to do.

    """

    def __init__(self, argument: str, message: str) -> None:
        super().__init__(argument, message)
        self.argument = argument
        self.message = message

    def __str__(self) -> str:
        return self.message


def shown(value: object) -> str:
    """A value as an error message quotes it: its repr, abbreviated when long."""
    try:
        return _SHORT.repr(value)
    except ValueError:  # Python writes no integer of more than 4300 digits
        return f"<{type(value).__name__}, too long to show>"


def check_bool(name: str, value: object) -> None:
    """Refuse what is not true or false."""
    if not isinstance(value, bool):
        raise wrong_type(name, value, "true or false")


def check_text(name: str, value: object) -> None:
    """Refuse what is not None, and not text that has a character and can be written as UTF-8."""
    if value is None:
        return
    if not isinstance(value, str):
        raise wrong_type(name, value, "text")
    if not value:
        raise ArgumentError(
            name, f"{name} is empty; give theta at least one token, or leave it out for the teacher's prompt"
        )
    check_unicode(name, value)


def check_unicode(name: str, value: str) -> None:
    """Refuse text that cannot be written as UTF-8."""
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ArgumentError(
            name,
            f"{name} has half a surrogate pair (U+{ord(value[error.start]):04X}) at character {error.start}; "
            "send valid Unicode text",
        ) from None


def checked_token_ids(value: object) -> tuple[int, ...] | None:
    """`theta_prompt_token_ids` as integers in [0, 2^31 - 1]; at least one, or None."""
    name = "theta_prompt_token_ids"
    if value is None:
        return None
    if not isinstance(value, Sequence) or isinstance(value, (str, bytes)):
        raise wrong_type(name, value, "a list of token ids")
    if not value:
        raise ArgumentError(name, f"{name} is empty; give at least one token, or leave it out for the teacher's prompt")
    if set(map(type, value)) == {int} and min(value) >= 0 and max(value) <= LARGEST_COUNT:
        return tuple(value)  # a long prompt, without a Python loop
    for position, token in enumerate(value):
        if not _is_integer(token):
            raise wrong_type(f"{name}[{position}]", token, "a whole number", argument=name)
        if not 0 <= token <= LARGEST_COUNT:
            raise ArgumentError(
                name,
                f"{name}[{position}]={shown(token)} is not a token id; ids run from 0 to below the vocabulary size",
            )
    return tuple(int(token) for token in value)


def checked_count(name: str, value: object, least: int, remedy: str, largest: int = LARGEST_COUNT) -> int:
    """A whole number in [least, largest]."""
    if not _is_integer(value):
        raise wrong_type(name, value, "a whole number")
    number = int(value)  # type: ignore[call-overload]
    if not least <= number <= largest:
        raise ArgumentError(name, f"{name}={shown(number)} is outside [{least}, {largest}]; {remedy}")
    return number


def checked_number(name: str, value: object, argument: str | None = None) -> float:
    """A finite number; `argument` is what is refused where `name` is a part of it."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise wrong_type(name, value, "a number", argument)
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise ArgumentError(argument or name, f"{name}={shown(value)} is not a finite number; give an ordinary one")
    return number


def checked_ends(name: str, value: object) -> float | tuple[float, float]:
    """A finite number, or a pair [start, end] of them."""
    if not isinstance(value, (list, tuple)):
        return checked_number(name, value)
    if len(value) != 2:
        raise ArgumentError(
            name,
            f"{name}={shown(value)} has {len(value)} entr{'y' if len(value) == 1 else 'ies'}; give one number, or a pair "
            "[start, end]",
        )
    start, end = (checked_number(f"{name}[{index}]", number, argument=name) for index, number in enumerate(value))
    return start, end


def _is_integer(value: object) -> bool:
    return type(value) is int or (isinstance(value, numbers.Integral) and not isinstance(value, bool))


def wrong_type(name: str, value: object, wanted: str, argument: str | None = None) -> ArgumentError:
    """The error about a value of another type than the `wanted` one."""
    hint = ""
    if isinstance(value, str) and wanted in ("a number", "a whole number", "true or false"):
        hint = f"; send it without quotes{f' ({value})' if len(value) <= 12 and value.isprintable() else ''}"
    return ArgumentError(argument or name, f"{name}={shown(value)} is {kind_of(value)}, not {wanted}{hint}")


def kind_of(value: object) -> str:
    """A value\'s type, in words."""
    kinds = {
        bool: "a bool",
        str: "text",
        bytes: "bytes",
        int: "an integer",
        float: "a float",
        list: "a list",
        tuple: "a tuple",
        dict: "an object",
        type(None): "null",
    }
    return kinds.get(type(value), f"a {type(value).__name__}")


def closest(name: object, known: Collection[str], likeness: float = 0.7) -> str:
    """The end of a sentence about an unknown name: ": did you mean ...?", or nothing where none is close.

    Args:
        name: what was given.
        known: the names that there are.
        likeness: in [0, 1]: from which similarity on a name is close, 1 for the same letters.

    """
    if not isinstance(name, str):
        return ""
    close = difflib.get_close_matches(name[:64].lower().replace("-", "_"), known, n=1, cutoff=likeness)
    return f": did you mean {close[0]}?" if close else ""
