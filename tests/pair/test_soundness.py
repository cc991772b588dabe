"""The checker of sound texts: takes every solution the task makes, and refuses each way to spoil one."""

import itertools
import re

import pytest
import soundness
import task


@pytest.mark.parametrize("kind", ["story", "longer", "sorting"])
def test_every_solution_of_the_task_is_sound(kind: task.Kind) -> None:
    for problem in itertools.islice(task.problems(kind, "train", seed=5), 2000):
        assert soundness.is_sound(problem.solution, problem.row()), problem


@pytest.mark.parametrize("kind", ["story", "longer", "sorting"])
def test_one_wrong_number_anywhere_makes_it_unsound(kind: task.Kind) -> None:
    """Each number of a solution in turn, one more than it should be: none of them may be overlooked."""
    for problem in itertools.islice(task.problems(kind, "train", seed=6), 300):
        for found in re.finditer("[0-9]+", problem.solution):
            wrong = problem.solution[: found.start()] + str(int(found[0]) + 1) + problem.solution[found.end() :]
            assert not soundness.is_sound(wrong, problem.row()), wrong


def test_a_sentence_left_out_or_said_twice_makes_it_unsound() -> None:
    for problem in itertools.islice(task.problems("longer", "train", seed=7), 200):
        sentences = soundness.SENTENCE.split(problem.solution)
        for place in range(len(sentences)):
            without = " ".join(sentences[:place] + sentences[place + 1 :])
            twice = " ".join(sentences[: place + 1] + sentences[place:])
            assert not soundness.is_sound(without, problem.row()), without
            assert not soundness.is_sound(twice, problem.row()), twice


PROBLEM = {
    "problem": "Mia has 47 apples. She buys 25 more and then sells 13. How many apples does Mia have now?",
    "answer": "59",
    "steps": [72, 59],
    "kind": "story",
}


@pytest.mark.parametrize(
    ("text", "sound"),
    [
        ("We start with 47. 47 plus 25 is 72. Then 72 minus 13 is 59. The answer is 59.", True),
        ("We start with 47. 47 plus 20 is 67, plus 5 is 72. Without 13 there are 59. So the answer is 59.", True),
        ("We start with 47. 47 plus 20 is 67, plus 5 is 71. Without 13 there are 59. So the answer is 59.", False),
        ("We start with 47. 47 plus 25 is 71. Then 71 minus 13 is 58. The answer is 59.", False),
        ("We start with 47. 47 plus 12 is 59. The answer is 59.", False),
        ("We start with 47. 47 minus 13 is 34. Then 34 plus 25 is 59. The answer is 59.", False),
        ("We start with 47. 47 plus 25 is 72. Then 72 minus 13 is 59. The answer is 58.", False),
        ("The answer is 59.", False),
        ("", False),
    ],
)
def test_texts_by_hand(text: str, sound: bool) -> None:
    assert soundness.is_sound(text, PROBLEM) is sound


def test_sound_is_stricter_than_right_with_right_totals() -> None:
    """A half step that is wrong leaves the totals in their order, and the text unsound."""
    text = "We start with 47. 47 plus 20 is 68, plus 5 is 72. Then 72 minus 13 is 59. The answer is 59."
    assert task.is_right(text, PROBLEM["answer"])
    assert task.follows(text, PROBLEM["steps"])
    assert not soundness.is_sound(text, PROBLEM)


def test_rows_are_counted() -> None:
    texts = (
        "We start with 47. 47 plus 25 is 72. Then 72 minus 13 is 59. The answer is 59.",
        "We start with 47. 47 plus 25 is 71. Then 71 minus 13 is 58. The answer is 59.",
        "We start with 47. 47 plus 25 is 72. Then 72 minus 13 is 58. The answer is 58.",
    )
    rows = [PROBLEM | {"completion": [{"role": "assistant", "content": text}]} for text in texts]
    counts = soundness.judged(rows)
    assert (counts["rows"], counts["right"], counts["sound"]) == (3, 2, 1)
