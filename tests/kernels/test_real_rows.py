"""Rows of a real model with and without the answer in its prompt, and of one three times as sure."""

import pytest
import torch
from disagreement import SOLVING, Rows, judge
from vllm_optimal_sampling.kernels import Method

from support import smollm2

NUM_TOKENS = 16


@pytest.fixture(scope="module")
def rows() -> Rows:
    """Logits of teacher and theta after each of some tokens that the teacher draws, over four problems."""
    model, tokenizer = smollm2.load()
    torch.manual_seed(0)
    teacher, theta = [], []
    with torch.inference_mode():
        for problem, answer in smollm2.PROBLEMS:
            told, asked = smollm2.prompts(tokenizer, problem, answer)
            drawn = model.generate(
                torch.tensor([told]), max_new_tokens=NUM_TOKENS, min_new_tokens=NUM_TOKENS, do_sample=True
            )[0, len(told) :].tolist()
            for prompt, found in ((told, teacher), (asked, theta)):
                logits = model(torch.tensor([prompt + drawn])).logits[0]
                found.append(logits[len(prompt) - 1 : -1])
    return torch.cat(teacher), torch.cat(theta)


@pytest.mark.parametrize("sharper", [1, 3, 10])
def test_rows_of_a_real_model(rows: Rows, sharper: float) -> None:
    teacher, theta = rows
    worst = judge(sharper * teacher, sharper * theta).worst()
    assert worst.max() <= 1, (sharper, worst.argmax(), worst.max())


@pytest.mark.parametrize("method", SOLVING)
def test_every_method_with_theta_in_bf16(rows: Rows, method: Method) -> None:
    teacher, theta = (3 * row[::4].contiguous() for row in rows)
    worst = judge(teacher, theta, method, theta_dtype=torch.bfloat16, kl_budget=0.1).worst()
    assert worst.max() <= 1, (method, worst.argmax(), worst.max())
