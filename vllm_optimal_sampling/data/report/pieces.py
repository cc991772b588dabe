"""The text of single tokens, so that coloured tokens side by side read as the text they make."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

Decode = Callable[[list[int]], str]

LONGEST_CHARACTER = 8
"""After so many tokens without a whole character what is there is shown as it is: bytes that are no UTF-8."""


@dataclass(frozen=True)
class Piece:
    """A run of tokens that makes whole characters: mostly one token, several where one character is several tokens.

    Attributes:
        text: what it adds to the text.
        start, stop: its tokens, as a slice of the sequence.
    """

    text: str
    start: int
    stop: int


def split(token_ids: Sequence[int], decode: Decode) -> list[Piece]:
    """The pieces of a sequence, which joined give its text.

    A token is decoded together with the ones before it, since a tokenizer may put a space before a word only inside a
    text, and waits for its successors while it ends within a character.
    """
    ids = list(token_ids)
    pieces: list[Piece] = []
    context = read = 0  # decode(ids[context:read]) is already out
    for stop in range(1, len(ids) + 1):
        before, text = decode(ids[context:read]), decode(ids[context:stop])
        waits = text.endswith("\ufffd") and stop < len(ids) and stop - read < LONGEST_CHARACTER
        if waits:
            continue
        pieces.append(Piece(text[len(before) :], read, stop))
        context, read = read, stop
    return pieces


def split_unknown(token_ids: Sequence[int]) -> list[Piece]:
    """One piece for each token, with its id for want of a tokenizer."""
    return [Piece(f"⟨{token}⟩", place, place + 1) for place, token in enumerate(token_ids)]


def load_decoder(name: str) -> Decode:
    """The decoder of a model's tokenizer, special tokens included.

    Args:
        name: folder or name of the model, as transformers takes it. Code that comes with a model is not run.

    Raises:
        OSError, ValueError: transformers cannot load it.
    """
    size, decode_known = _load(name)

    def decode(ids: list[int]) -> str:
        if all(0 <= token < size for token in ids):
            return decode_known(ids)
        return "".join(decode([token]) if 0 <= token < size else f"⟨{token}⟩" for token in ids)

    return decode


def _load(name: str) -> tuple[int, Decode]:
    file = Path(name) / "tokenizer.json"
    if file.is_file():  # transformers would do the same with it, after many seconds of imports
        fast = Tokenizer.from_file(str(file))
        return fast.get_vocab_size(), lambda ids: str(fast.decode(ids, skip_special_tokens=False))
    if Path(name).is_absolute() and not Path(name).is_dir():
        raise ValueError("there is no such folder")
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(name)
    return len(tokenizer), lambda ids: str(
        tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    )
