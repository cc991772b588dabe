"""What is said of draws whose outcome is known, the gate, and the pilot's bound."""

from __future__ import annotations

import random
from typing import Any

import pytest
from real_model.analysis import difference, primary, sentences
from real_model.gate import passes
from real_model.protocol import CONTROLS, DEFAULT, SOURCES
from real_model.work import matched_bound


def evaluated(points: float) -> dict[str, Any]:
    """A student whose endpoint is so many per cent: twice the mean on one task, the mean on another, none on the third."""
    shares = {"leg_counting": 2 * points, "chain_sum": points, "letter_counting": 0.0}
    return {"tasks": {name: {"problems": 1000, "right": 10 * share} for name, share in shares.items()}}


def draws(count: int, noise: float = 1.0, **gains: float) -> list[dict[str, Any]]:
    """Draws in which a source's endpoint is 30 + its gain, with noise."""
    generator = random.Random(3)
    return [
        {"students": {name: evaluated(30 + gains.get(name, 0.0) + generator.gauss(0, noise)) for name in SOURCES}}
        for _ in range(count)
    ]


def test_the_endpoint_is_the_mean_of_the_tasks() -> None:
    assert primary(evaluated(30)) == pytest.approx(30)
    assert primary({"tasks": None}) is None


def test_a_difference_has_its_t_interval() -> None:
    gap = difference(draws(5, noise=0.0, entropy=10.0), "entropy", DEFAULT)
    assert gap is not None and gap.value == pytest.approx(10) and gap.count == 5
    noisy = difference(draws(5, entropy=10.0), "entropy", DEFAULT)
    assert noisy is not None and noisy.high - noisy.value == pytest.approx(1.2417 * noisy.deviation, rel=1e-3)


def test_a_draw_without_a_student_is_left_out() -> None:
    made = draws(4, entropy=10.0)
    made[1]["students"]["entropy"] = {"tasks": None}
    gap = difference(made, "entropy", DEFAULT)
    assert gap is not None and gap.count == 3
    made[0]["students"]["entropy"] = {"tasks": None}
    assert difference(made, "entropy", DEFAULT) is None


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (draws(2, entropy=30.0), ["2 draws: nothing is said of students before there are 3."]),
        (draws(5), ["5 draws do not tell."]),
        (draws(5, entropy=10.0), ["KL symmetry lost to entropy."]),
        (draws(5, entropy=-10.0), ["entropy lost to KL symmetry."]),
        (
            draws(5, **dict.fromkeys(CONTROLS, -10.0)),
            ["q* taught better here than each of theta's and the teacher's own texts."],
        ),
        (draws(5, **dict.fromkeys(CONTROLS[1:], -10.0)), ["5 draws do not tell."]),
    ],
)
def test_only_what_the_protocol_names_is_said(made: list[dict[str, Any]], said: list[str]) -> None:
    assert sentences(made) == said


@pytest.mark.parametrize(
    ("theta", "teacher", "is_open"), [(25, 60, True), (25, 59, False), (41, 60, False), (40, 60, True)]
)
def test_the_gate(theta: int, teacher: int, is_open: bool) -> None:
    assert passes({"right": theta, "problems": 100}, {"right": teacher, "problems": 100}) is is_open


def test_the_bound_has_the_mean_that_is_asked_for() -> None:
    divergences = [0.0, 0.0, 0.1, 0.5, 2.0, 4.0]
    for mean in (0.01, 0.3, 1.0):
        bound = matched_bound(divergences, mean)
        assert sum(min(one, bound) for one in divergences) / len(divergences) == pytest.approx(mean)
    assert matched_bound(divergences, 9.0) == 4.0
