"""The problems of each draw: to train on, to hold out, and those of validation, kept apart by their numbers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache
from itertools import islice
from typing import Any

import task

from distillation import PAIR
from distillation.protocol import SETS

FIRST_SEED = 20_000
"""Of task.problems: draw d uses this + d. The shipped problems use 0, the pair's training about 1 and 2 million."""
VALIDATION_SEED = 19_999


def numbers_of(problem: dict[str, Any]) -> tuple[int, ...]:
    """What makes a problem: its numbers in order and its totals, whatever its wording."""
    return tuple(map(int, task.NUMBER.findall(problem["problem"]))) + tuple(problem["steps"])


@cache
def shipped_numbers() -> frozenset[tuple[int, ...]]:
    """The numbers of all problems that the pair's folder has."""
    return frozenset(numbers_of(row) for path in sorted(PAIR.glob("problems*.jsonl")) for row in task.read_rows(path))


def distinct(problems: Iterable[task.Problem], count: int, but: Iterable[tuple[int, ...]] = ()) -> list[dict[str, Any]]:
    """The first `count` problems of a stream, no two with the same numbers and none with any of `but`."""
    seen = set(but)
    rows = []
    for row in (problem.row() for problem in problems):
        if numbers_of(row) not in seen:
            seen.add(numbers_of(row))
            rows.append(row)
            if len(rows) == count:
                break
    return rows


def training(draw: int, count: int) -> list[dict[str, Any]]:
    """The first `count` training stories of a draw, in the order that its sources share; no text twice.

    Their numbers may repeat: there are some 5,600 stories of one change in the split.
    """
    texts: dict[str, dict[str, Any]] = {}
    for problem in task.problems("story", "train", FIRST_SEED + draw):
        texts.setdefault(problem.problem, problem.row())
        if len(texts) == count:
            break
    return list(texts.values())


def held_out(draw: int, count: int) -> dict[str, list[dict[str, Any]]]:
    """A draw's held-out problems by set."""
    seed = FIRST_SEED + draw
    return {
        name: distinct(task.problems(kind, "heldout", seed), count, shipped_numbers()) for name, kind in SETS.items()
    }


@cache
def validation(count: int) -> dict[str, list[dict[str, Any]]]:
    """The validation problems by set, the same for all draws."""
    return {
        name: distinct(task.problems(kind, "validation", VALIDATION_SEED), count, shipped_numbers())
        for name, kind in SETS.items()
    }


@cache
def worked_validation(count: int) -> Sequence[task.Problem]:
    """Validation stories with a worked solution, by which a student's temperature is chosen."""
    return tuple(islice(task.problems("story", "validation", VALIDATION_SEED + 1), count))
