"""The choice of one text of several: as a distribution over all texts of a small pair, and its rules one by one."""

from __future__ import annotations

import math
import random

import pytest
import torch
from vllm_optimal_sampling.kernels import Method

from support.small_pair import Texts, all_texts, chi_square
from vllm_optimal_sampling.argument_checks import ArgumentError
from vllm_optimal_sampling.selection import AGGREGATES, SELECTIONS, Scores, Selection, effective_sample_size

DRAWS = 20_000
FALSE_ALARMS = 1e-3
"""How often a chi-square test below would fail though the distribution is right, were its seed not fixed."""
METHODS = (Method.KL_SYMMETRY, Method.FIXED, Method.ENTROPY)


def selected(texts: Texts, selection: Selection, num_candidates: int, seed: int = 0) -> torch.Tensor:
    """How often each text was kept, `[texts]`, of `DRAWS` groups of candidates drawn token by token from q*."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.multinomial(texts.drawn, DRAWS * num_candidates, replacement=True, generator=generator)
    noise = random.Random(seed)
    counts = torch.zeros(len(texts.scores), dtype=torch.int64)
    for group in drawn.view(DRAWS, num_candidates).tolist():
        counts[group[selection.choose([texts.scores[text] for text in group], noise)]] += 1
    return counts


@pytest.fixture(scope="module", params=METHODS, ids=lambda method: method.name.lower())
def texts(request: pytest.FixtureRequest) -> Texts:
    return all_texts(request.param)


def test_the_texts_are_what_is_said_of_them(texts: Texts) -> None:
    assert float(texts.drawn.sum()) == pytest.approx(1, abs=1e-12)
    log_weights = torch.tensor([scores.log_z for scores in texts.scores], dtype=torch.float64)
    reweighted = (texts.drawn.log() + log_weights).softmax(0)
    assert torch.allclose(reweighted, texts.target, atol=1e-12)
    assert float(log_weights.max()) <= 0
    assert [scores.teacher_logprob for scores in texts.scores] == pytest.approx(texts.teacher.tolist(), abs=1e-12)


def test_with_a_fixed_alpha_the_target_is_the_product_of_the_two_models() -> None:
    """From the models' probabilities of whole texts alone: no q*, no log Z, no record."""
    texts = all_texts(Method.FIXED)
    assert torch.allclose((0.5 * texts.theta + 0.5 * texts.teacher).softmax(0), texts.target, atol=1e-12)


def test_resampling_turns_draws_of_tokens_into_draws_of_texts(texts: Texts) -> None:
    """N = 1 is a draw token by token, and no draw from the product; at 64 candidates nothing tells them apart."""
    statistic, p_value = {}, {}
    for num_candidates in (1, 8, 64):
        counts = selected(texts, Selection("resample"), num_candidates)
        statistic[num_candidates], p_value[num_candidates] = chi_square(counts, texts.target)
    assert chi_square(selected(texts, Selection("resample"), 1), texts.drawn)[1] > FALSE_ALARMS
    assert p_value[1] < 1e-12
    assert statistic[1] > 2 * statistic[8]
    assert statistic[8] > statistic[64]
    assert p_value[64] > FALSE_ALARMS, statistic


def test_the_largest_log_z_is_kept_as_its_rank_among_the_candidates_says(texts: Texts) -> None:
    """The exact distribution of the best of N: the text's share of the N-th power of the distribution function."""
    log_weights = torch.tensor([scores.log_z for scores in texts.scores], dtype=torch.float64)
    below = torch.stack([texts.drawn[log_weights < weight].sum() for weight in log_weights])
    upto = torch.stack([texts.drawn[log_weights <= weight + 1e-15].sum() for weight in log_weights])
    expected = (upto**4 - below**4) * texts.drawn / (upto - below)
    assert float(expected.sum()) == pytest.approx(1, abs=1e-9)
    assert chi_square(selected(texts, Selection("log_z"), 4), expected)[1] > FALSE_ALARMS
    assert chi_square(selected(texts, Selection("none"), 4), expected)[1] < 1e-12
    assert chi_square(selected(texts, Selection("none"), 4), texts.drawn)[1] > FALSE_ALARMS


def test_a_candidate_without_noise_of_its_own_is_not_kept_more_often() -> None:
    """Ranks of `resample` are drawn for each candidate; equal weights are equally often the largest."""
    same = [Scores(-1.0, None, 4, "stop")] * 5
    noise = random.Random(0)
    counts = torch.bincount(torch.tensor([Selection("resample").choose(same, noise) for _ in range(DRAWS)]))
    assert chi_square(counts, torch.full((5,), 0.2, dtype=torch.float64))[1] > FALSE_ALARMS


def test_sums_and_means() -> None:
    short, long = Scores(-1.0, -9.0, 10, "stop"), Scores(-1.5, -12.0, 30, "stop")
    assert Selection("log_z").choose([long, short]) == 1
    assert Selection("log_z", "sum").choose([long, short]) == 1
    assert Selection("log_z", "mean").choose([long, short]) == 0
    assert Selection("teacher_logprob").choose([long, short]) == 1
    assert Selection("teacher_logprob", "mean").choose([long, short]) == 0


@pytest.mark.parametrize("select", ["log_z", "teacher_logprob"])
@pytest.mark.parametrize("by", AGGREGATES)
def test_a_text_that_was_cut_off_is_kept_only_if_all_were(select: str, by: str) -> None:
    cut, whole = Scores(-0.1, -1.0, 99, "length"), Scores(-5.0, -50.0, 20, "stop")
    assert Selection(select, by).choose([cut, whole]) == 1
    assert Selection(select, by).choose([Scores(-0.2, -2.0, 99, "length"), cut]) == 1


def test_resampling_weighs_a_text_that_was_cut_off_like_any_other() -> None:
    cut, whole = Scores(0.0, -1.0, 99, "length"), Scores(-50.0, -50.0, 20, "stop")
    noise = random.Random(0)
    assert [Selection("resample").choose([whole, cut], noise) for _ in range(50)] == [1] * 50


def test_what_has_no_score_comes_last() -> None:
    without, with_ = Scores(None, None, 3, "stop"), Scores(-80.0, -90.0, 3, "stop")
    for select in ("log_z", "resample", "teacher_logprob"):
        assert Selection(select).choose([without, with_, without], random.Random(0)) == 1
        assert not Selection(select).has_score(without)
        assert Selection(select).choose([without, without], random.Random(0)) == 0
    assert Selection("none").choose([without, with_]) == 0


def test_tokens_of_the_teacher_alone_count_nothing_and_arithmetic_has_no_log_z() -> None:
    nan = math.nan
    record = {"alpha": [1.0, 0.4, 0.6], "log_z": [nan, -0.25, -0.5], "teacher_logprob": [-1.0, -2.0, -3.0]}
    assert Scores.of(record, "stop") == Scores(-0.75, -6.0, 3, "stop")
    as_json = {name: [None if value != value else value for value in values] for name, values in record.items()}
    assert Scores.of(as_json, "stop") == Scores(-0.75, -6.0, 3, "stop")
    arithmetic = {"alpha": [0.5, 0.5], "log_z": [nan, nan], "teacher_logprob": [-1.0, None]}
    assert Scores.of(arithmetic, "stop") == Scores(None, None, 2, "stop")
    earlier = {"alpha": [0.5], "teacher_logprob": [-1.0]}  # a record without log Z
    assert Scores.of(earlier, None) == Scores(None, -1.0, 1, None)


def test_the_same_seed_keeps_the_same() -> None:
    candidates = [Scores(-0.5 * number, -1.0, 4, "stop") for number in range(6)]
    kept = [Selection("resample").choose(candidates, random.Random("select 7")) for _ in range(20)]
    assert len(set(kept)) == 1
    assert len({Selection("resample").choose(candidates, random.Random(f"select {seed}")) for seed in range(40)}) > 2


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("logz",), "select='logz' is not one of log_z, resample, teacher_logprob, none: did you mean log_z?"),
        (("log_z", "total"), "select_by='total' is not one of sum, mean"),
        (
            ("resample", "mean"),
            r"select_by='mean' has no effect with select='resample': its weights are exp\(Σ log Z\)",
        ),
        (("none", "sum"), "select_by='sum' has no effect with select='none'"),
    ],
)
def test_what_is_refused(arguments: tuple[str, ...], reason: str) -> None:
    with pytest.raises(ArgumentError, match=reason):
        Selection(*arguments)


def test_log_z_is_not_asked_of_arithmetic() -> None:
    for select in SELECTIONS:
        Selection(select).check_method("entropy")
        if select in ("teacher_logprob", "none"):
            Selection(select).check_method("arithmetic")
        else:
            with pytest.raises(ArgumentError, match=f"select='{select}' needs log Z, and alpha_method='arithmetic'"):
                Selection(select).check_method("arithmetic")


def test_effective_sample_size() -> None:
    assert effective_sample_size([-3.0]) == 1
    assert effective_sample_size([-900.0] * 7) == pytest.approx(7)
    assert effective_sample_size([0.0, -800.0]) == 1
    assert effective_sample_size([0.0, math.log(0.5)]) == pytest.approx(1.5**2 / 1.25)
