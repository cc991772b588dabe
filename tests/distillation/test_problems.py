"""No problem is trained on and tested on, and every draw has its own."""

from __future__ import annotations

import task  # found by the package `distillation`
from distillation import problems
from distillation.problems import numbers_of
from distillation.protocol import DRAWS, PILOTS, SETS, Sizes


def test_held_out_problems_are_nobody_elses() -> None:
    """Not trained on in any draw, not of validation, not shipped; within a draw no numbers twice."""
    sizes = Sizes()
    training = {
        numbers_of(row) for draw in (*range(DRAWS), *PILOTS) for row in problems.training(draw, sizes.rows + 600)
    }
    validation = {numbers_of(row) for rows in problems.validation(sizes.validation).values() for row in rows}
    worked = {numbers_of(one.row()) for one in problems.worked_validation(sizes.validation)}
    for draw in (0, DRAWS - 1):
        for name, rows in problems.held_out(draw, sizes.held_out).items():
            numbers = {numbers_of(row) for row in rows}
            assert len(rows) == len(numbers) == sizes.held_out
            assert {row["kind"] for row in rows} == {SETS[name]}
            assert not numbers & (training | validation | worked | problems.shipped_numbers())


def test_draws_differ_and_come_again() -> None:
    texts = [{row["problem"] for row in problems.training(draw, 300)} for draw in range(4)]
    assert all(len(one) == 300 for one in texts)
    assert max(len(one & other) for i, one in enumerate(texts) for other in texts[:i]) < 10
    assert problems.training(2, 300) == problems.training(2, 400)[:300]
    held_out = [problems.held_out(draw, 200)["longer"] for draw in range(2)]
    assert not {numbers_of(row) for row in held_out[0]} & {numbers_of(row) for row in held_out[1]}


def test_the_pool_lasts_for_the_right_ones() -> None:
    """Theta is right on 48 of 100 stories; 900 of the first 3,000 have a right text with room to spare."""
    assert Sizes().training_problems * 0.4 > Sizes().rows
    assert len(problems.training(0, Sizes().training_problems)) == Sizes().training_problems


def test_a_problem_given_twice_is_left_out() -> None:
    stream = [next(task.problems("story", "train", seed)) for seed in (1, 1, 2, 3)]
    found = problems.distinct(iter(stream), 2, {numbers_of(stream[3].row())})
    assert found == [stream[0].row(), stream[2].row()]
