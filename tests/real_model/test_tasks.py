"""The worked solutions against the package's own answers, and their lines against arithmetic; the files of problems."""

from __future__ import annotations

import json
import re
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

import pytest
from real_model import PROBLEMS, problem_files, tasks
from real_model.protocol import SMALL, TRAINED, Sizes

SHIPPED = tasks.read(PROBLEMS)
EQUATION = re.compile(r"(-?\d+) ([*+-]) (-?\d+) = (-?\d+)")


def test_each_task_has_problems() -> None:
    assert Counter(problem["task"] for problem in SHIPPED) == dict.fromkeys(tasks.TASKS, 24)


@pytest.mark.parametrize("problem", SHIPPED, ids=lambda problem: problem["task"])
def test_the_worked_solution_is_true(problem: tasks.Problem) -> None:
    """It ends with the package's answer, which its steps do not look at; every equation holds, each from the last total."""
    *steps, last = tasks.solution(problem).splitlines()
    assert last == f"Answer: {problem['answer']}"
    total = None
    for step in steps:
        equations = [(int(a), int(b), int(c), sign) for a, sign, b, c in EQUATION.findall(step)]
        assert equations, step
        for left, right, result, sign in equations:
            assert result == {"*": left * right, "+": left + right, "-": left - right}[sign], step
        before, _, total_now, _ = equations[-1]
        assert total in (None, before), step
        total = total_now
    assert str(total) == problem["answer"]


def test_the_steps_are_those_of_the_question() -> None:
    for problem in SHIPPED:
        solution = tasks.solution(problem)
        if problem["task"] == "leg_counting":
            asked = re.findall(r"(\d+) ([a-z ]+)(?=[,?])", problem["question"])
            animals = [(name if count == "1" else name.removesuffix("s"), count) for count, name in asked]
            assert re.findall(r"^([a-z ]+): (\d+)", solution, re.M) == animals
        elif problem["task"] == "chain_sum":
            first, *terms = re.findall(r"[+-]? ?\d+", problem["question"])
            assert [f"{sign} {term}" for sign, term in re.findall(r"([+-]) (\d+) =", solution)] == terms
            assert solution.startswith(f"{first.strip()} ")
        else:
            text = re.search(r'text: "(.*)"', problem["question"])
            assert text is not None and re.findall(r"^(\w+): ", solution, re.M)[:-1] == text[1].split()


def test_right_and_sound() -> None:
    problem = SHIPPED[0]
    solution = tasks.solution(problem)
    assert tasks.is_right(solution, problem) and tasks.is_sound(solution, problem)
    *steps, last = solution.splitlines()
    shorter = "\n".join([*steps[1:], last])  # the answer is right, the way to it is not
    assert tasks.is_right(shorter, problem) and not tasks.is_sound(shorter, problem)
    assert not tasks.is_right(f"{solution}1", problem)
    assert not tasks.is_right("no number", problem) and not tasks.is_right("", problem)
    assert tasks.is_sound(f"\n{solution} \n", problem)


def test_only_the_teacher_reads_the_answer() -> None:
    for problem in SHIPPED:
        (asked,), (told,), (shown,) = (
            prompt(problem) for prompt in (tasks.theta_messages, tasks.told_messages, tasks.shown_messages)
        )
        assert asked["content"].startswith(problem["question"].strip())
        assert "right" not in asked["content"]
        assert told["content"] == f"{asked['content']}\n\nThe right answer is {problem['answer']}."
        assert tasks.solution(problem) in shown["content"]


@pytest.mark.skipif(find_spec("reasoning_gym") is None, reason="needs pip install reasoning-gym==0.1.25")
def test_the_shipped_problems_are_the_packages() -> None:
    made = [json.dumps(problem) for name in tasks.TASKS for problem in tasks.make(name, 1_000_000, 24)]
    assert PROBLEMS.read_text().splitlines() == made


def made_up(task: str, count: int) -> list[tasks.Problem]:
    return [{"task": task, "question": f"{task} {number}"} for number in range(count)]


def test_no_question_is_in_two_files(tmp_path: Path) -> None:
    sizes = Sizes(
        rows=4, training_problems=6, held_out=2, stages=1, steps=1, stage_problems=2, gate_problems=2, draws=2
    )
    needed = problem_files.needed(sizes)
    problem_files.write(tmp_path, sizes, {task: made_up(task, count) for task, count in needed.items()})
    files = {path.stem: tasks.read(path) for path in tmp_path.glob("*.jsonl")}
    assert set(files) == set(problem_files.uses(sizes))
    questions = [row["question"] for rows in files.values() for row in rows]
    assert len(questions) == len(set(questions)) == sum(needed.values())
    assert [row["task"] for row in files[problem_files.training(0)]] == [*TRAINED] * 3
    assert Counter(row["task"] for row in files[problem_files.held_out(1)]) == dict.fromkeys(tasks.TASKS, 2)
    assert {row["task"] for row in files["teacher"]} == set(TRAINED)


def test_too_few_problems_are_refused(tmp_path: Path) -> None:
    problems = {task: made_up(task, count) for task, count in problem_files.needed(SMALL).items()}
    problems["chain_sum"].pop()
    with pytest.raises(ValueError, match=r"problems of chain_sum, .* are needed"):
        problem_files.write(tmp_path, SMALL, problems)
