"""The rule of PROTOCOL.md on made-up endpoints, its statistics against known values, and on simulated draws."""

from __future__ import annotations

import math
import random
import re
import statistics

import pytest
from distillation import HERE, decision, protocol, simulation
from distillation.decision import decide, holm
from distillation.means import mean_of
from distillation.protocol import CONTROLS, DEFAULT, DRAWS, RIVALS, SOURCES


@pytest.mark.parametrize(
    ("count", "level", "quantile"),
    [
        (2, 0.05, 12.7062),
        (3, 0.05, 4.3027),
        (5, 0.01, 4.6041),
        (20, 0.05, 2.0930),
        (20, 0.01, 2.8609),
        (121, 0.05, 1.9799),
    ],
)
def test_an_interval_is_that_of_the_printed_tables(count: int, level: float, quantile: float) -> None:
    rng = random.Random(count)
    values = [rng.gauss(1, 2) for _ in range(count)]
    found = mean_of(values, level)
    error = statistics.stdev(values) / math.sqrt(count)
    assert found.value == pytest.approx(statistics.mean(values)) and found.deviation == pytest.approx(
        statistics.stdev(values)
    )
    assert (found.high - found.value) / error == pytest.approx(quantile, abs=5e-5)
    assert found.high - found.value == pytest.approx(found.value - found.low)
    shifted = mean_of([value - found.low for value in values])
    if level == 0.05:
        assert shifted.p == pytest.approx(level), "the end of an interval is what is just not rejected"


def test_p_with_one_degree_has_a_closed_form() -> None:
    for t in (0.01, 0.5, 3.0, 80.0):
        for sign in (1, -1):  # two values around their mean: t is the mean over half their distance
            assert mean_of([sign * t - 1, sign * t + 1]).p == pytest.approx(1 - 2 / math.pi * math.atan(t), rel=1e-9)


def test_a_mean_without_spread() -> None:
    assert (mean_of([2.0, 2.0]).p, mean_of([0.0, 0.0]).p) == (0.0, 1.0)
    alone = mean_of([3.0])
    assert (alone.low, alone.high, alone.p, alone.count) == (-math.inf, math.inf, 1.0, 1)


def test_holm_is_stepwise() -> None:
    assert holm({"a": 0.01, "b": 0.02, "c": 0.04}) == {"a", "b", "c"}  # 0.0167, 0.025, 0.05
    assert holm({"a": 0.01, "b": 0.03, "c": 0.04}) == {"a"}
    assert holm({"a": 0.02, "b": 0.02, "c": 0.02}) == set()


def endpoints(spread: float = 0.5, draws: int = DRAWS, **effects: float) -> dict[str, list[float]]:
    """Endpoints around 60 with these effects; differences deviate by some 0.7 times the spread."""
    rng = random.Random(0)
    shift = {name.replace(".", "_"): name for name in SOURCES}
    means = dict.fromkeys(SOURCES, 60.0) | {shift[name]: 60.0 + effect for name, effect in effects.items()}
    common = [rng.gauss(0, 5) for _ in range(draws)]
    return {name: [means[name] + draw + rng.gauss(0, spread / 2) for draw in common] for name in SOURCES}


def test_nothing_passes_where_nothing_differs() -> None:
    found = decide(endpoints())
    assert found == decision.Decision(DEFAULT, frozenset(), teaches_better=False, changes_the_default=False)


def test_worse_ones_do_not_pass() -> None:
    assert decide(endpoints(entropy=-3.0, fixed_0_5=-2.0)).recommended == DEFAULT


def test_a_constant_wins_ties() -> None:
    assert decide(endpoints(entropy=2.0, fixed_0_5=2.0)).recommended == "fixed_0.5"
    assert decide(endpoints(entropy=2.0, fixed_0_5=2.0)).passing == {"entropy", "fixed_0.5"}
    assert decide(endpoints(entropy=4.0, fixed_0_5=2.0)).recommended == "entropy"
    assert decide(endpoints(entropy=4.0, kl_budget=6.0, fixed_0_5=2.0)).recommended == "kl_budget"
    assert decide(endpoints(entropy=4.0, kl_budget=3.0)).recommended == "entropy"


def test_the_claim_needs_every_control() -> None:
    below = dict.fromkeys(CONTROLS, -2.0)
    assert decide(endpoints(**below)).teaches_better
    for control in CONTROLS:
        assert not decide(endpoints(**below | {control: 0.0})).teaches_better
    # What is recommended is compared, not the default.
    assert decide(endpoints(**dict.fromkeys(CONTROLS, 1.0), entropy=3.0)).teaches_better


def test_a_request_changes_only_by_far() -> None:
    assert not decide(endpoints(entropy=2.9)).changes_the_default
    assert decide(endpoints(entropy=5.0)).changes_the_default


@pytest.mark.parametrize("draws", [3, DRAWS - 1, DRAWS + 1])
def test_it_is_taken_once_with_all_draws(draws: int) -> None:
    with pytest.raises(ValueError, match=f"{draws} draws, and the decision is taken at 20"):
        decide(endpoints(draws=draws))


def test_it_finds_what_is_there_and_nothing_else() -> None:
    """The whole analysis on 300 simulated experiments of known effects, with deviations of 2.4 points.

    Bounds are more than four binomial deviations away: 5 % of 300 is 15 with a deviation of 3.8, 95 % is 285, and the power
    at 3 points is above 98 %.
    """
    nothing = simulation.rates({}, 2.4, 300, seed=1)
    assert nothing["entropy_passes"] + nothing["any_other_passes"] <= 0.05 + 4 * 0.0126
    assert 0.95 - 4 * 0.0126 <= nothing["covered"] <= 1
    assert nothing["teaches_better"] <= 0.025
    effect = simulation.rates({"entropy": 3.0}, 2.4, 300, seed=2)
    assert effect["entropy_passes"] >= 0.95
    assert effect["any_other_passes"] <= 0.05 + 4 * 0.0126
    assert 0.95 - 4 * 0.0126 <= effect["covered"] <= 1
    tied = simulation.rates(simulation.scenarios()["q* is as good as the best control"], 2.4, 300, seed=3)
    assert tied["teaches_better"] <= 0.025 + 4 * 0.009


def test_the_protocol_and_the_code_say_the_same() -> None:
    text = (HERE / "PROTOCOL.md").read_text()
    table = text.split("| source | its rows |")[1].split("**Students.**")[0]
    assert re.findall(r"`([a-z_0-9.]+)`(?:,| \|)", table) == list(SOURCES)
    (rates,) = re.findall(r"of (1e-5, [^.]*), by the mean", text)
    assert tuple(map(float, rates.split(", "))) == protocol.LEARNING_RATES
    sizes = protocol.Sizes()
    for said in (
        f"There are **{DRAWS} draws**",
        f"exactly **{sizes.rows} rows**",
        f"**{sizes.held_out:,} problems of each of three sets**",
        f"**{protocol.EPOCHS[0]} and {protocol.EPOCHS[1]} epochs**",
        f"{protocol.ROWS_PER_STEP} rows a\nstep",
        f"numbered {protocol.PILOTS[0]} to {protocol.PILOTS[-1]}",
        f"on {sizes.validation} validation problems",
        f"at temperature {protocol.COLD}, unfiltered",
        f"above {protocol.FAR:g} points",
        "For X in {" + ", ".join(f"`{name}`" for name in RIVALS) + "}",
    ):
        assert said in text, said
    controls = re.findall(r"`([a-z_0-9]+)`", text.split("better than *each* of")[1].split(", with")[0])
    assert tuple(controls) == CONTROLS
