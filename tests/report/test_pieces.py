"""The text of tokens, put side by side, is the text."""

from hypothesis import given
from hypothesis import strategies as st

from support.example_pair import TEACHER
from support.written_rows import TOKENIZER
from vllm_optimal_sampling.data.report.pieces import LONGEST_CHARACTER, load_decoder, split

DECODE = load_decoder(str(TEACHER))


@given(st.text(max_size=60))
def test_pieces_make_the_text(text: str) -> None:
    ids = TOKENIZER.encode(text, add_special_tokens=False).ids
    pieces = split(ids, DECODE)
    assert "".join(piece.text for piece in pieces) == DECODE(ids)
    assert [piece.start for piece in pieces] == [0, *(piece.stop for piece in pieces[:-1])][: len(pieces)]
    assert not pieces or pieces[-1].stop == len(ids)


def test_a_character_of_several_tokens_is_one_piece() -> None:
    ids = TOKENIZER.encode("a 🧮 b", add_special_tokens=False).ids
    pieces = split(ids, DECODE)
    (wide,) = [piece for piece in pieces if "🧮" in piece.text]
    assert wide.stop - wide.start > 1
    assert not any("\ufffd" in piece.text for piece in pieces)


def test_bytes_that_are_no_text_do_not_hold_up_the_rest() -> None:
    (broken, *_) = TOKENIZER.encode("🧮", add_special_tokens=False).ids
    letter = TOKENIZER.encode("a", add_special_tokens=False).ids
    pieces = split([broken] * 40 + letter, DECODE)
    assert max(piece.stop - piece.start for piece in pieces) <= LONGEST_CHARACTER
    assert "".join(piece.text for piece in pieces).endswith("a")


def test_an_id_outside_the_vocabulary_is_shown_as_such() -> None:
    assert DECODE([10**6]) == "⟨1000000⟩"
    assert [piece.text for piece in split([-1, 10**6], DECODE)] == ["⟨-1⟩", "⟨1000000⟩"]
