"""The page is what report.py makes of the results; the protocol has the numbers that the code has."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from real_model import HERE, protocol
from real_model.cost import Assumed, engine_seconds, extrapolated, predicted
from real_model.protocol import SOURCES, Sizes
from real_model.report import (
    PAGE,
    Results,
    draws_table,
    pilot_cost_table,
    pilot_state,
    pilot_table,
    state,
    written_into,
)
from test_analysis import draws


def test_the_page_is_what_the_results_say() -> None:
    assert written_into(PAGE.read_text(), Results.load()) == PAGE.read_text()


def test_another_result_makes_another_page() -> None:
    results = Results.load()
    gate = results.gate | {"passes": {"told": True}}
    assert "passes the gate with the answer" in state(replace(results, gate=gate))
    way = results.gate["ways"]["theta"]
    gate = results.gate | {"ways": results.gate["ways"] | {"theta": way | {"right": way["right"] + 1}}}
    assert written_into(PAGE.read_text(), replace(results, gate=gate)) != PAGE.read_text()
    cost = results.cost | {"cpu_seconds_a_token": 3 * results.cost["cpu_seconds_a_token"]}
    assert written_into(PAGE.read_text(), replace(results, cost=cost)) != PAGE.read_text()


def counts(right: int, problems: int) -> dict[str, Any]:
    low, high = right / problems - 0.1, right / problems + 0.1
    return {"problems": problems, "right": right, "interval_95": [low, high], "sound": 1}


@pytest.mark.parametrize(
    ("theta_stages", "teacher_stages", "gate", "said"),
    [
        (0, 0, None, "has begun"),
        (2, 0, None, "after 2 stages of theta's training 3 of 24 texts are right, and training ends at 25 %"),
        (2, 1, None, "after 1 stage of the teacher's training 3 of 24 texts are right, and training ends at 70 %"),
        (2, 1, True, "**passes the gate**: 40 of 60 texts are right, of theta's 9 of 60"),
        (2, 1, False, "**fails the gate**: 40 of 60 texts are right, of theta's 9 of 60"),
    ],
)
def test_the_pilot_is_said_as_far_as_it_is(
    theta_stages: int, teacher_stages: int, gate: bool | None, said: str
) -> None:
    stage = counts(3, 24) | {"loss": 0.5, "cpu_seconds": 300.0, "sampling_cpu_seconds": 60.0, "seconds": 700.0}
    pilot = {
        "stages": {"theta": [stage] * theta_stages, "teacher": [stage] * teacher_stages},
        "gate": None if gate is None else {"theta": counts(9, 60), "teacher": counts(40, 60), "passes": gate},
        "parts": {f"draw-0000/rows/{name}": {"cpu_seconds": 50.0, "seconds": 80.0} for name in ("teacher", "entropy")},
    }
    results = replace(Results.load(), pilot=pilot)
    assert said in pilot_state(results) and pilot_state(results) in written_into(PAGE.read_text(), results)
    shown = [line for line in pilot_table(results).splitlines() if line.startswith(("| theta", "| teacher"))]
    stages = theta_stages + teacher_stages + len(results.answer_teacher["stages"])
    assert len(shown) == stages + (0 if gate is None else 2)
    assert "| rows of draw 0 | 100 | 50 a part, of 2 | 160 |" in pilot_cost_table(results)
    assert ("480 + 120 | 2.00 a solution, 2.50 a text | 1400" in pilot_cost_table(results)) is (theta_stages == 2)


def test_draws_make_a_table() -> None:
    made = draws(5, noise=0.5, entropy=10.0)
    for draw in made:
        draw["data"] = {name: {"rows": 10, "right": 5, "kl": 0.25} for name in SOURCES}
        draw["theta"] = draw["students"]["teacher"]
    results = replace(Results.load(), draws=made)
    assert "5 of 5 draws. KL symmetry lost to entropy." in state(results)
    (row,) = (line for line in draws_table(results).splitlines() if line.startswith("| entropy"))
    _, _, right, divergence, trained, untrained, gap, _ = (cell.strip() for cell in row.split("|"))
    assert (right, divergence, untrained) == ("50.0", "0.250", "0.0")
    assert float(trained) == pytest.approx(60, abs=1) and gap.startswith("+")


def test_the_protocol_has_the_codes_numbers() -> None:
    text, sizes = (HERE / "PROTOCOL.md").read_text(), Sizes()
    for said in (
        f"**{protocol.DRAWS} draws**",
        f"Each source gives {sizes.rows} rows",
        f"at most {sizes.max_tokens} tokens",
        f"up to the {sizes.training_problems}th",
        f"{protocol.EPOCHS} epochs ({protocol.EPOCHS * sizes.rows // protocol.ROWS_PER_STEP} steps)",
        f"Each draw has {sizes.held_out} of each task",
        f"at least {protocol.THETA_RATE:.0%}".replace("%", " %"),
        f"at least {protocol.TEACHER_RATE:.0%}".replace("%", " %"),
        f"stages of {sizes.steps} steps",
        f"after {sizes.stages} stages at the latest",
        f"gate with {sizes.gate_problems} other problems",
        f"fewer than {round(protocol.FEWEST * sizes.rows)} rows",
        f"Draw {protocol.PILOT} is made first",
        f"fewer than {protocol.FEWEST_DRAWS} draws",
        *(f"| `{name}` |" for name in SOURCES),
    ):
        assert said in text, said


def test_the_protocol_has_the_pilots_numbers() -> None:
    (said,) = (line for line in (HERE / "PROTOCOL.md").read_text().split("\n- ") if "a **pilot on two cores**" in line)
    sizes, (rate,) = protocol.TWO_CORES, protocol.TWO_CORES.learning_rates
    for number in (
        f"A stage is {sizes.steps} steps of {sizes.stage_rows} solutions",
        f"{sizes.stage_problems} problems are sampled after it",
        f"at most {sizes.stages} stages",
        f"The gate has {sizes.gate_problems} problems",
        f"{sizes.rows} rows a source",
        f"up to the {sizes.training_problems}nd problem",
        f"{sizes.epochs} epochs",
        f"{sizes.held_out} held-out problems of each task",
        f"the learning rate {rate:.0e}".replace("e-0", "e-"),
    ):
        assert number in " ".join(said.split()), number
    assert sizes.draws == 1


def test_what_it_takes_follows_the_sizes() -> None:
    sizes, assumed = Sizes(), Assumed()
    waiting = 2 * assumed.seats
    assert engine_seconds(waiting, assumed, 100) > engine_seconds(assumed.seats, assumed, 100)
    parts = predicted(sizes, assumed)
    assert sum(parts.values()) < 540  # what run.py takes by itself
    alone = predicted(sizes, replace(assumed, processes=1))
    assert alone["rows of 5 draws"] == pytest.approx(3 * parts["rows of 5 draws"])
    results = Results.load()
    once, twice = (
        extrapolated(results.gate, results.cost, replace(sizes, rows=rows, training_problems=3 * rows))
        for rows in (100, 200)
    )
    assert twice["rows"] == pytest.approx(2 * once["rows"]) and twice["answers"] == once["answers"]
