"""The cost model's arithmetic, against simulated rounds."""

from __future__ import annotations

import itertools
import math
import random

import cost
import pytest
from vllm.v1.spec_decode.dynamic.utils import build_dynamic_sd_schedule_lookup

SIGMAS = 5  # one false alarm in two million
RUNS = 4000


def draw_round(rng: random.Random, acceptance: float, drafts: int) -> int:
    """Tokens of one round: drafts up to the first rejected one, and one more."""
    kept = itertools.takewhile(lambda _: rng.random() < acceptance, range(drafts))
    return 1 + sum(1 for _ in kept)


def mean_and_error(values: list[float]) -> tuple[float, float]:
    mean = sum(values) / len(values)
    variance = sum((value - mean) ** 2 for value in values) / (len(values) - 1)
    return mean, math.sqrt(variance / len(values))


@pytest.mark.parametrize(("acceptance", "drafts"), [(0.0, 3), (0.3, 1), (0.8, 4), (0.95, 8), (1.0, 2), (0.5, 0)])
def test_tokens_per_round(acceptance: float, drafts: int) -> None:
    rng = random.Random(1)
    mean, error = mean_and_error([float(draw_round(rng, acceptance, drafts)) for _ in range(RUNS)])
    assert cost.tokens_per_round(acceptance, drafts) == pytest.approx(mean, abs=SIGMAS * error + 1e-12)


@pytest.mark.parametrize(
    ("acceptance", "drafts", "batch", "tokens"), [(0.9, 4, 8, 63), (0.6, 2, 3, 20), (0.8, 0, 4, 7)]
)
def test_seconds_of_a_batch(acceptance: float, drafts: int, batch: int, tokens: int) -> None:
    def round_seconds(requests: float) -> float:
        return 0.02 + 0.003 * requests

    rng = random.Random(2)
    totals = []
    for _ in range(RUNS):
        left = [tokens] * batch
        total = 0.0
        while running := [i for i, missing in enumerate(left) if missing > 0]:
            total += round_seconds(len(running))
            for i in running:
                left[i] -= draw_round(rng, acceptance, drafts)
        totals.append(total)
    mean, error = mean_and_error(totals)
    predicted = cost.seconds(round_seconds, batch, acceptance, drafts, tokens)
    assert predicted == pytest.approx(mean, abs=SIGMAS * error + 1e-9)
    assert error < mean / 100  # or nothing was compared


@pytest.mark.parametrize("drafts", [1, 3, 8])
def test_acceptance_from_length(drafts: int) -> None:
    for acceptance in (0.01, 0.4, 0.9, 0.999):
        length = cost.tokens_per_round(acceptance, drafts)
        assert cost.acceptance_for(length, drafts) == pytest.approx(acceptance, abs=1e-9)
    assert cost.acceptance_for(0.7, drafts) == 0
    assert cost.acceptance_for(drafts + 1.01, drafts) is None


def test_break_even_gives_the_teachers_speed() -> None:
    line, teacher_step = cost.Line(fixed=4.0, per_row=1.5), 5.0
    acceptance = cost.break_even(line(4), teacher_step, 4)
    assert acceptance is not None
    assert cost.tokens_per_round(acceptance, 4) / line(4) == pytest.approx(1 / teacher_step)
    assert cost.break_even(5.1 * teacher_step, teacher_step, 4) is None


def test_a_line_through_measurements() -> None:
    line = cost.Line.fit({1: 7.0, 4: 13.0, 6: 17.0})
    assert (line.fixed, line.per_row) == pytest.approx((3.0, 2.0))
    assert line(8) == pytest.approx(21.0)
    with pytest.raises(ValueError, match="two numbers of drafts"):
        cost.Line.fit({4: 1.0})


def test_interpolation() -> None:
    value = cost.between({1: 10.0, 8: 24.0, 32: 48.0})
    assert [value(x) for x in (1, 4.5, 8, 20, 32, 40)] == pytest.approx([10, 17, 24, 36, 48, 56])
    assert cost.between({4: 3.0})(100) == 3.0


def test_best_number_of_drafts() -> None:
    """Cheap rows want many drafts, dear ones none, and what is returned is no worse than any other number."""
    assert cost.best_drafts(cost.Line(1.0, 0.01), 0.99) == cost.MAX_DRAFTS
    assert cost.best_drafts(cost.Line(0.0, 1.0), 0.9) == 0
    line = cost.Line(5.0, 1.0)
    best = cost.best_drafts(line, 0.7)
    assert 0 < best < cost.MAX_DRAFTS
    speeds = [cost.tokens_per_round(0.7, drafts) / line(drafts) for drafts in range(cost.MAX_DRAFTS + 1)]
    assert speeds[best] == max(speeds)


@pytest.mark.parametrize("best", [{1: 5, 8: 4, 32: 2, 128: 0}, {1: 3, 2: 3, 4: 3}, {16: 2}])
def test_vllm_takes_the_schedule(best: dict[int, int]) -> None:
    schedule = cost.schedule(best)
    lookup = build_dynamic_sd_schedule_lookup(schedule, vllm_max_batch_size=256, vllm_num_speculative_tokens=8)
    assert {batch: lookup[batch] for batch in best} == best
    assert lookup[256] == best[max(best)]
    assert all(earlier[2] != later[2] for earlier, later in itertools.pairwise(schedule))
