"""The page is what report.py makes of the results; the protocol has the numbers that the code has."""

from __future__ import annotations

from dataclasses import replace

import pytest
from real_model import HERE, protocol
from real_model.cost import Assumed, engine_seconds, extrapolated, predicted
from real_model.protocol import SOURCES, Sizes
from real_model.report import PAGE, Results, draws_table, state, written_into
from test_analysis import draws


def test_the_page_is_what_the_results_say() -> None:
    assert written_into(PAGE.read_text(), Results.load()) == PAGE.read_text()


def test_another_result_makes_another_page() -> None:
    results = Results.load()
    gate = results.gate | {"passes": {"told": True, "shown": False}}
    assert "passes the gate with the answer" in state(replace(results, gate=gate))
    way = results.gate["ways"]["shown"]
    gate = results.gate | {"ways": results.gate["ways"] | {"shown": way | {"right": way["right"] + 1}}}
    assert written_into(PAGE.read_text(), replace(results, gate=gate)) != PAGE.read_text()
    cost = results.cost | {"cpu_seconds_a_token": 3 * results.cost["cpu_seconds_a_token"]}
    assert written_into(PAGE.read_text(), replace(results, cost=cost)) != PAGE.read_text()


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


def test_what_it_takes_follows_the_sizes() -> None:
    sizes, assumed = Sizes(), Assumed()
    waiting = 2 * assumed.seats
    assert engine_seconds(waiting, assumed, 100) > engine_seconds(assumed.seats, assumed, 100)
    parts = predicted(sizes, assumed)
    assert sum(parts.values()) < 540  # what run.py takes by itself
    alone = predicted(sizes, replace(assumed, processes=1))
    assert alone["rows of 5 draws"] == pytest.approx(3 * parts["rows of 5 draws"])
    results = Results.load()
    once, twice = (extrapolated(results.gate, results.cost, replace(sizes, rows=rows)) for rows in (100, 200))
    assert twice["rows"] == pytest.approx(2 * once["rows"]) and twice["answers"] == once["answers"]
