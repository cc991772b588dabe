"""Texts drawn in lockstep: finished ones leave the batch, scores are those of one text alone, sources keep what they say."""

from __future__ import annotations

import math

import pytest
import task  # found by the package `distillation`
import torch
from distillation import data_measures, problems
from distillation.matched_budget import logprobs_along
from distillation.mixtures import mixed
from distillation.protocol import SOURCES
from distillation.rows import Models, Sums, Text, best, draw_texts, is_right, right_texts, sources_of_draw, words

from vllm_optimal_sampling.selection import Scores, Selection

COUNT = 40


@pytest.fixture(scope="module")
def models() -> Models:
    return Models.load()


@pytest.fixture(scope="module")
def asked() -> list[dict]:
    return problems.training(11, 200)


@pytest.mark.parametrize("rule", ["kl_symmetry", "teacher", "theta_cold"])
def test_scores_are_those_of_one_text_alone(models: Models, asked: list[dict], rule: str) -> None:
    """Batched, padded and with the finished texts gone, or in one forward each."""
    texts = draw_texts(models, asked, range(COUNT), rule, torch.Generator().manual_seed(2))
    assert len({len(text.token_ids) for text in texts}) > 5, "they have to end at different steps"
    for text in texts:
        theta, teacher = logprobs_along(models, [text], asked)
        if rule == "theta_cold":
            log_q = (theta / 0.7).log_softmax(-1)
        else:
            found = mixed(rule, theta, teacher)
            log_q = found.log_q
            assert text.sums.log_z == pytest.approx(float(found.log_z.sum()), abs=2e-3)
        picked = torch.tensor(text.token_ids)
        assert text.sums.theta_logprob == pytest.approx(float(theta[range(len(picked)), picked].sum()), abs=2e-3)
        assert text.sums.kl == pytest.approx(float((log_q.exp() * (log_q - theta)).sum()), abs=2e-3)
        assert text.sums.entropy == pytest.approx(float(-(log_q.exp() * log_q).sum()), abs=2e-3)


def test_tokens_follow_q(models: Models, asked: list[dict]) -> None:
    """E_q[log q] is minus the entropy, which each token's record has exactly: 5 standard errors of the mean."""
    texts = draw_texts(models, asked, range(200), "theta", torch.Generator().manual_seed(3))
    gaps = [text.sums.theta_logprob + text.sums.entropy for text in texts]
    mean = sum(gaps) / len(gaps)
    deviation = math.sqrt(sum((gap - mean) ** 2 for gap in gaps) / (len(gaps) - 1))
    assert abs(mean) < 5 * deviation / math.sqrt(len(gaps))
    assert all(text.sums.kl == 0 and text.sums.alpha == 0 for text in texts)


def text_of(log_z: float, theta: float, is_finished: bool = True) -> Text:
    return Text(0, [5, 1], is_finished, Sums(theta, 0.0, 0.0, 0.0, log_z))


def test_the_best_is_the_packages_own_choice() -> None:
    groups = [
        [text_of(-1.0, -9.0), text_of(-0.5, -12.0), text_of(-2.0, -8.0)],
        [text_of(-1.0, -9.0), text_of(-0.1, -3.0, is_finished=False)],
        [text_of(-1.0, -9.0, is_finished=False), text_of(-0.1, -30.0, is_finished=False)],
        [text_of(-1.0, -9.0), text_of(-1.0, -9.0)],
    ]
    for group in groups:
        scores = [Scores(text.sums.log_z, 0.0, 2, "stop" if text.is_finished else "length") for text in group]
        assert best(group, "log_z") is group[Selection("log_z").choose(scores)]
    assert best(groups[0], "theta_logprob") is groups[0][2]


def test_right_texts_are_the_first_right_ones(models: Models, asked: list[dict]) -> None:
    one = right_texts(models, asked, 1, draw=4, wanted=30)
    four = right_texts(models, asked, 4, draw=4, wanted=30)
    for texts in (one, four):
        numbers = [text.problem for text in texts]
        assert len(texts) == 30 and numbers == sorted(set(numbers))
        assert all(is_right(models, text, asked) for text in texts)
    assert four[-1].problem < one[-1].problem, "four candidates leave fewer problems out"
    first = {text.problem: text for text in one}
    assert all(text == first[text.problem] for text in four if text.problem in first)
    with pytest.raises(ValueError, match=r"20 problems have [0-9]+ right texts, 30 are needed"):
        right_texts(models, asked[:20], 1, draw=4, wanted=30)


def test_every_source_has_its_rows(models: Models, asked: list[dict]) -> None:
    """All sources of a small draw, twice the same; singles are the first candidates of the best ones' groups."""
    bounds = {"kl_budget": 0.05, "kl_budget_matched": 1.0}

    def drawn() -> dict[str, list[Text]]:
        return dict(sources_of_draw(models, asked, 5, bounds, tuple(SOURCES), rows=12))

    found = drawn()
    assert found == drawn()
    assert set(found) == set(SOURCES)
    for name, texts in found.items():
        assert len(texts) == 12, name
        if SOURCES[name].kept != "right":
            assert [text.problem for text in texts] == list(range(12)), name
    for single, chosen, score in (
        ("teacher", "teacher_best_theta", "theta_logprob"),
        ("teacher", "teacher_best_log_z", "log_z"),
        ("kl_symmetry", "kl_symmetry_best_log_z", "log_z"),
    ):
        pairs = list(zip(found[single], found[chosen], strict=True))
        assert all(getattr(better.sums, score) >= getattr(first.sums, score) for first, better in pairs)
        assert any(first != better for first, better in pairs) and any(first == better for first, better in pairs)


def test_measures_count_what_is_there(models: Models, asked: list[dict]) -> None:
    sorted_problem = problems.training(11, 200)[:2]
    worked = next(task.problems("story", "train", 1))
    good = models.tokenizer.encode(worked.solution, add_special_tokens=False)
    texts = [
        Text(0, [*good, models.tokenizer.eos_token_id], True, Sums(-8.0, 4.0, 2.0, 1.0, 0.0)),
        Text(1, good[:-1], False, Sums(-2.0, 0.0, 2.0, 0.0, -4.0)),
    ]
    rows = [worked.row(), sorted_problem[1]]
    found = data_measures.measures(models, "kl_symmetry", texts, rows)
    tokens = 2 * len(good)
    assert words(models, texts[0]) == worked.solution
    assert (found["rows"], found["right"], found["sound"], found["cut_off"]) == (2, 1, 1, 1)
    assert found["tokens"] == tokens
    assert found["kl"] == pytest.approx(4 / tokens)
    assert found["theta_logprob"] == pytest.approx(-10 / tokens)
    assert found["log_z_a_text"] == -2.0
