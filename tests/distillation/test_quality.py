"""The figures of the data, on rows drawn from q* by the pair's own plain reference."""

from __future__ import annotations

import math

import measure  # found by the package `distillation`
import pytest
import task
import torch
from distillation import PAIR, quality
from distillation.generation import draw_problems
from distillation.sources import SOURCES
from transformers import AutoTokenizer

COUNT = 60


@pytest.fixture(scope="module")
def models():
    tokenizer = AutoTokenizer.from_pretrained(PAIR / "theta")
    return measure.load(PAIR / "theta").double(), measure.load(PAIR / "teacher").double(), tokenizer


@pytest.fixture(scope="module")
def rows(models) -> list[dict]:
    """Rows of q*, as the generator writes them but for the log-probabilities, which are the scores' own to find."""
    theta, teacher, tokenizer = models
    problems = draw_problems("train", 9, COUNT)
    alone = [task.theta_messages(problem["problem"]) for problem in problems]
    privileged = [task.teacher_messages(problem["problem"], problem["answer"]) for problem in problems]
    samples = measure.generate(tokenizer, 2, theta, alone, teacher, privileged)
    return [
        problem
        | {
            "completion": [{"role": "assistant", "content": sample.text}],
            "finish_reason": "stop",
            "prompt_token_ids": measure.render(tokenizer, messages),
            "completion_token_ids": sample.token_ids,
            "optimal_sampling": {"alpha": sample.alphas},
        }
        for problem, messages, sample in zip(problems, alone, samples, strict=True)
    ]


def test_scores_are_those_of_one_completion_alone(models, rows: list[dict]) -> None:
    """Batched and padded or not, and q is equally far from both models, as only the right rows and alphas make it."""
    theta, teacher, tokenizer = models
    scores = quality.score(rows, SOURCES["kl_symmetry"], theta, teacher, tokenizer)
    row, one = rows[3], scores[3]
    with torch.inference_mode():
        logits = theta(torch.tensor([row["prompt_token_ids"] + row["completion_token_ids"]])).logits[0]
    logprobs = logits.log_softmax(-1)[len(row["prompt_token_ids"]) - 1 : -1]
    picked = torch.tensor(row["completion_token_ids"])
    assert torch.allclose(one.theta, logprobs[range(len(picked)), picked], atol=1e-9)
    assert one.before_temperature is not None
    assert torch.equal(one.drawn_from, one.before_temperature)
    messages = measure.render(tokenizer, task.teacher_messages(row["problem"], row["answer"]))
    (v,) = quality.rows_of(teacher, [messages], [row["completion_token_ids"]], tokenizer.pad_token_id)
    q, alpha = measure.mix(logprobs, v)
    assert torch.allclose(alpha, torch.tensor(row["optimal_sampling"]["alpha"], dtype=torch.float64), atol=1e-6)
    assert torch.allclose(one.drawn_from, q[range(len(picked)), picked], atol=1e-6)


def test_weights_say_how_far_q_is_from_theta(models, rows: list[dict]) -> None:
    """E_q[log(pi_theta / q)] is -KL(q||theta), which is known exactly at each token: 5 standard errors of the mean."""
    theta, teacher, tokenizer = models
    scores = quality.score(rows, SOURCES["kl_symmetry"], theta, teacher, tokenizer)
    weights = torch.cat([one.theta - one.drawn_from for one in scores])
    kl = torch.cat([one.from_theta for one in scores])
    assert abs((weights + kl).mean()) < 5 * weights.std() / math.sqrt(len(weights))
    entropy = torch.cat([one.entropy for one in scores])
    surprise = torch.cat([-one.drawn_from for one in scores])
    assert abs((surprise - entropy).mean()) < 5 * surprise.std() / math.sqrt(len(weights))
    found = quality.importance(scores)
    assert 0 < found["effective_share_of_completions"] < found["effective_share_of_tokens"] < 1


def test_mixtures() -> None:
    theta, teacher = torch.randn(2, 6, 11, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).log_softmax(
        -1
    )
    alpha = torch.tensor([0.0, 0.2, 0.5, 0.7, 0.9, 1.0], dtype=torch.float64)
    plain = alpha[:, None] * teacher.exp() + (1 - alpha[:, None]) * theta.exp()
    assert torch.allclose(quality.mixture(theta, teacher, alpha, True).exp(), plain)
    powers = teacher.exp() ** alpha[:, None] * theta.exp() ** (1 - alpha[:, None])
    expected = powers / powers.sum(-1, keepdim=True)
    assert torch.allclose(quality.mixture(theta, teacher, alpha, False).exp(), expected)


def test_distinct_ngrams() -> None:
    assert quality.distinct_ngrams([[1, 2, 3, 4, 5]]) == 1
    assert quality.distinct_ngrams([[1, 2, 3, 4], [1, 2, 3, 4], [9, 2, 3, 4]]) == pytest.approx(2 / 3)
