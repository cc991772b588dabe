"""docs/inputs.md says what a wrong value gets, and it does."""

from __future__ import annotations

from collections import Counter

import pytest
from wrong_inputs import BEGIN, DOCUMENT, END, KINDS, REFUSED, WAYS, Wrong, all_answers, table


@pytest.fixture(scope="module")
def answers() -> list[tuple[Wrong, str]]:
    return all_answers()


def test_every_wrong_input_is_refused(answers: list[tuple[Wrong, str]]) -> None:
    assert [(wrong.way, wrong.given, answer) for wrong, answer in answers if not answer.startswith(REFUSED)] == []
    for wrong, answer in answers:
        assert len(answer) > len(REFUSED) + 15, (wrong.given, answer)
        assert "Traceback" not in answer


def test_every_way_in_is_tried_in_every_manner(answers: list[tuple[Wrong, str]]) -> None:
    ways = Counter(wrong.way for wrong, _ in answers)
    assert set(ways) == set(WAYS)
    assert min(ways.values()) >= 5
    assert {wrong.kind for wrong, _ in answers} == set(KINDS)
    assert len({(wrong.way, wrong.given) for wrong, _ in answers}) == len(answers) >= 120


def test_the_table_is_what_was_answered(answers: list[tuple[Wrong, str]]) -> None:
    """`python tests/surface/wrong_inputs.py` writes it anew."""
    text = DOCUMENT.read_text()
    assert BEGIN + text.split(BEGIN)[1].split(END)[0] + END == table(answers)
