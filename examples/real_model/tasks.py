"""Three tasks of reasoning-gym whose worked solutions are long: their problems, solutions, prompts, and what is right.

A problem is what the package gives (`question`, `answer`, `metadata`), with its task's name. The worked solution is ours, from
the metadata. Only `make` needs the package (`pip install reasoning-gym==0.1.25`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Problem = Mapping[str, Any]
"""`task`, `question`, `answer`, and `metadata` as the package has it."""
Messages = list[dict[str, str]]

ASKED = '{question}\n\nWork step by step, a line for each step, and end with a line "Answer: " and the number.'
TOLD = "{asked}\n\nThe right answer is {answer}."
SHOWN = "{asked}\n\nThis is a right solution:\n{solution}\n\nWrite it in the same way."
NUMBER = re.compile(r"-?[0-9]+")

LEGS = {
    **dict.fromkeys(("snake", "sea slug", "jellyfish", "flatworm", "leech"), 0),
    **dict.fromkeys(("chicken", "bird", "human", "duck"), 2),
    **dict.fromkeys(("dog", "cat", "cow", "horse", "lion", "elephant", "giraffe", "tiger", "deer", "sheep"), 4),
    "starfish": 5,
    **dict.fromkeys(("insect", "ant", "butterfly", "beetle", "bee", "wasp", "grasshopper", "cricket"), 6),
    **dict.fromkeys(("cockroach", "praying mantis", "firefly"), 6),
    **dict.fromkeys(("spider", "scorpion"), 8),
    **dict.fromkeys(("crab", "lobster", "shrimp"), 10),
    "woodlouse": 14,
}
"""As the package counts them."""


def legs_steps(metadata: Mapping[str, Any]) -> list[str]:
    """Of `leg_counting`: each animal's legs, and the total so far."""
    total, steps = 0, []
    for animal, count in metadata["animals"].items():
        legs = count * LEGS[animal]
        steps.append(f"{animal}: {count} * {LEGS[animal]} = {legs}, {total} + {legs} = {total + legs}")
        total += legs
    return steps


def sum_steps(metadata: Mapping[str, Any]) -> list[str]:
    """Of `chain_sum`: the total after each term."""
    first, *rest = metadata["expression"].split()
    total, steps = int(first), []
    for sign, term in zip(rest[::2], rest[1::2], strict=True):
        following = total + int(term) if sign == "+" else total - int(term)
        steps.append(f"{total} {sign} {term} = {following}")
        total = following
    return steps


def letter_steps(metadata: Mapping[str, Any]) -> list[str]:
    """Of `letter_counting`: how often the letter is in each word, and the total so far."""
    total, steps = 0, []
    for word in metadata["span"]:
        count = word.lower().count(metadata["target_letter"])
        steps.append(f"{word}: {count}, {total} + {count} = {total + count}")
        total += count
    return steps


@dataclass(frozen=True)
class Task:
    """A generator of reasoning-gym with its settings here, and the steps to a problem's answer from its metadata."""

    settings: Mapping[str, int]
    steps: Callable[[Mapping[str, Any]], list[str]]


TASKS: dict[str, Task] = {
    "leg_counting": Task({"min_animals": 7, "max_animals": 9}, legs_steps),
    "chain_sum": Task({"min_terms": 15, "max_terms": 18, "min_digits": 2, "max_digits": 2}, sum_steps),
    "letter_counting": Task({"min_words": 13, "max_words": 15}, letter_steps),
}


def solution(problem: Problem) -> str:
    """The worked solution: a line for each step, and the answer that the last step found."""
    steps = TASKS[problem["task"]].steps(problem["metadata"])
    return "\n".join([*steps, f"Answer: {NUMBER.findall(steps[-1])[-1]}"])


def is_right(text: str, problem: Problem) -> bool:
    """Whether the text's last number is the answer."""
    numbers = NUMBER.findall(text)
    return bool(numbers) and numbers[-1] == problem["answer"]


def is_sound(text: str, problem: Problem) -> bool:
    """Whether every line is that of the worked solution."""
    return [line.strip() for line in text.strip().splitlines()] == solution(problem).splitlines()


def theta_messages(problem: Problem) -> Messages:
    """The problem alone."""
    return [{"role": "user", "content": ASKED.format(question=problem["question"].strip())}]


def told_messages(problem: Problem) -> Messages:
    """The problem and its answer."""
    asked = theta_messages(problem)[0]["content"]
    return [{"role": "user", "content": TOLD.format(asked=asked, answer=problem["answer"])}]


def shown_messages(problem: Problem) -> Messages:
    """The problem and its worked solution: the fine-tuned teacher's prompt."""
    asked = theta_messages(problem)[0]["content"]
    return [{"role": "user", "content": SHOWN.format(asked=asked, solution=solution(problem))}]


def make(task: str, seed: int, count: int) -> list[dict[str, Any]]:
    """Problems of one task, no question twice.

    Args:
        seed: of the first problem; the package's problem i has seed + i, so seeds lie far apart.

    Raises:
        ValueError: the steps of a problem lead to another answer than the package's.
    """
    import reasoning_gym

    data = reasoning_gym.create_dataset(task, size=4 * count, seed=seed, **TASKS[task].settings)
    made: dict[str, dict[str, Any]] = {}
    for entry in data:
        keep = ("animals", "expression", "span", "target_letter")
        problem = {
            "task": task,
            "question": entry["question"],
            "answer": entry["answer"],
            "metadata": {name: value for name, value in entry["metadata"].items() if name in keep},
        }
        if not is_right(solution(problem), problem):
            raise ValueError(f"{problem!r} is solved by\n{solution(problem)}\nwhich is not its answer")
        made.setdefault(problem["question"], problem)
        if len(made) == count:
            return list(made.values())
    raise ValueError(
        f"{task} has {len(made)} different problems from seed {seed} on, {count} are wanted; ask for fewer"
    )


def read(path: Path) -> list[dict[str, Any]]:
    """Problems, a JSON object a line."""
    return [json.loads(line) for line in path.read_text().splitlines()]
