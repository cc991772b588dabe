"""The task: problems have the answers they claim, answers are read strictly, held-out problems stay held out."""

import itertools
import re
from pathlib import Path

import pytest
import task
import torch
import train

CHANGE = re.compile(r"(buys|finds|gets|wins|sells|loses|gives(?: away)?) ([0-9]+)")
GAINS = {"buys", "finds", "gets", "wins"}
WORKED = re.compile(r"([0-9]+) (plus|minus) ([0-9]+) is ([0-9]+)(?:, (plus|minus) ([0-9]+) is ([0-9]+))?")
FILES = {"problems": "story", "problems_longer": "longer", "problems_sorting": "sorting"}


def told_numbers(problem: str) -> list[int]:
    """A story's first count and its signed changes, read from the words of the problem."""
    first = re.search(r"[0-9]+", problem)
    assert first
    return [int(first[0]), *(int(n) if verb in GAINS else -int(n) for verb, n in CHANGE.findall(problem))]


def numbers_of(row: dict) -> tuple[int, ...]:
    if row["kind"] == "sorting":
        return tuple(map(int, re.findall("[0-9]+", row["problem"])))
    return tuple(told_numbers(row["problem"]))


@pytest.mark.parametrize("name", FILES)
def test_shipped_answers_follow_from_the_words(pair: Path, name: str) -> None:
    rows = task.read_rows(pair / f"{name}.jsonl")
    assert len(rows) >= 300
    for row in rows:
        numbers = numbers_of(row)
        if row["kind"] == "sorting":
            assert row["steps"] == sorted(numbers)
            assert row["answer"] == ", ".join(map(str, sorted(numbers)))
        else:
            assert row["steps"] == list(itertools.accumulate(numbers))[1:]
            assert row["answer"] == str(sum(numbers))


def test_longer_problems_have_more_changes_than_stories(pair: Path) -> None:
    changes = {
        name: {len(row["steps"]) for row in task.read_rows(pair / f"{name}.jsonl")}
        for name in ("problems", "problems_longer")
    }
    assert changes == {"problems": {1, 2}, "problems_longer": {3}}


@pytest.mark.parametrize("name", FILES)
def test_shipped_problems_are_what_the_generator_makes(pair: Path, name: str) -> None:
    kind, count = train.HELD_OUT[name]
    made = [problem.row() for problem in task.distinct(kind, "heldout", seed=0, count=count)]
    assert task.read_rows(pair / f"{name}.jsonl") == made


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("split", ["train", "validation"])
def test_held_out_numbers_are_in_no_other_split(pair: Path, name: str, split: task.Split) -> None:
    held_out = {numbers_of(row) for row in task.read_rows(pair / f"{name}.jsonl")}

    def drawn(split: task.Split) -> set[tuple[int, ...]]:
        stream = itertools.islice(task.problems(FILES[name], split, seed=7), 5000)
        return {numbers_of(problem.row()) for problem in stream}

    assert not held_out & drawn(split)
    if name != "problems_longer":  # three changes: so many numbers that two streams seldom meet
        assert held_out & drawn("heldout"), "streams of one split do meet, so the line above can fail"


@pytest.mark.parametrize("kind", ["story", "longer", "sorting"])
def test_solutions_are_right_and_work_their_steps(kind: task.Kind) -> None:
    for problem in itertools.islice(task.problems(kind, "train", seed=3), 1000):
        assert task.is_right(problem.solution, problem.answer), problem
        assert task.follows(problem.solution, problem.steps), problem
        for a, sign, b, c, sign_2, d, e in WORKED.findall(problem.solution):
            assert int(c) == int(a) + (int(b) if sign == "plus" else -int(b)), problem
            assert not d or int(e) == int(c) + (int(d) if sign_2 == "plus" else -int(d)), problem


@pytest.mark.parametrize(
    ("text", "answer", "right"),
    [
        ("So the answer is 132.", "132", True),
        ("The answer is 132.", "32", False),
        ("The answer is 132.", "13", False),
        ("The answer is 132", "132", False),
        ("The answer is 132. Then the answer is 9.", "132", False),
        ("The answer is 132. And more", "132", False),
        ("132.", "132", False),
        ("The answer is 12, 47, 85.", "12, 47, 85", True),
        ("The answer is 12, 85, 47.", "12, 47, 85", False),
        ("", "1", False),
    ],
)
def test_an_answer_is_read_strictly(text: str, answer: str, right: bool) -> None:
    assert task.is_right(text, answer) is right


def test_steps_must_occur_in_their_order() -> None:
    assert task.follows("47 plus 85 is 132. 132 minus 23 is 109.", (132, 109))
    assert not task.follows("132 minus 23 is 109. 47 plus 85 is 132.", (132, 109, 3))
    assert not task.follows("47 plus 85 is 1320. The answer is 109.", (132, 109))


def test_only_the_teacher_sees_the_answer() -> None:
    problem = task.distinct("story", "heldout", seed=0, count=1)[0]
    assert problem.answer in task.teacher_messages(problem.problem, problem.answer)[0]["content"].split("Answer: ")[1]
    assert task.theta_messages(problem.problem) == [{"role": "user", "content": problem.problem}]


@pytest.mark.parametrize("step", [0, train.TEACHER.steps - 1], ids=["without answers", "half with answers"])
def test_a_training_batch_labels_only_what_the_assistant_says(step: int) -> None:
    """And of that everything but slips, which stand between sound steps and the right answer."""
    tokenizer = train.make_tokenizer()
    tokens, labels = train.training_batch(train.TEACHER, step, tokenizer)
    given, slips = 0, 0
    for row, row_labels in zip(tokens, labels, strict=True):
        prompt, _, completion = tokenizer.decode(row[row != tokenizer.pad_token_id]).partition("<|assistant|>")
        given += "Answer: " in prompt
        places = (row_labels != -100).nonzero()[:, 0]
        first, last = int(places[0]), int(places[-1])
        assert tokenizer.decode(row[first : last + 1]) == completion
        unlabelled = [place for place in range(first, last) if row_labels[place] == -100]
        assert torch.equal(row[places], row_labels[places])
        assert tokenizer.decode(row[unlabelled]).isdigit() or not unlabelled
        slips += bool(unlabelled)
        assert not unlabelled or task.is_right(
            completion.removesuffix("<|end|>"), prompt.split("Answer: ")[1].removesuffix(".<|end|>")
        )
    assert (given, slips) == (0, 0) if step == 0 else given > slips > 0
