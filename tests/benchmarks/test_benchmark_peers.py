"""The peers compute what they are said to: bisection row by row, the batched one, and transformers in lockstep."""

from __future__ import annotations

import pytest
import torch
from bisection import CLAMP, batched, clamped_row, row_by_row
from methods import Settings
from methods.lockstep import Lockstep
from prompts import make_prompts
from transformers import AutoModelForCausalLM, AutoTokenizer
from vllm_optimal_sampling.kernels import reference

from support.example_pair import PAIR, TEACHER, THETA

# Twelve halvings leave alpha within 2^-13; its effect on q is at most that times half the range of the log-ratio.
ROW_BY_ROW_TV = 2e-3
BATCHED_TV = 1e-5


def rows(vocab: int, scale: float) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    shared = scale * torch.randn(6, vocab, generator=generator)
    return (shared + torch.randn(6, vocab, generator=generator) for _ in range(2))  # type: ignore[return-value]


def variation(log_q: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((log_q.double().exp() - wanted.exp()).abs().sum()) / 2


def test_bisections_against_the_reference() -> None:
    teacher, theta = rows(vocab=64, scale=1.0)
    assert min(float(one.softmax(-1).min()) for one in (teacher, theta)) > CLAMP  # nothing is clamped
    for ours, allowed in ((row_by_row, ROW_BY_ROW_TV), (batched, BATCHED_TV)):
        log_q = ours(teacher, theta)
        for row in range(len(teacher)):
            wanted = reference.mix(teacher[row], theta[row]).log_q
            assert variation(log_q[row], wanted) < allowed, (ours.__name__, row)


def test_twenty_tokens_are_an_approximation() -> None:
    """Seeing only theta's 20 likeliest tokens costs the reference implementation far more than its bisection does."""
    teacher, theta = rows(vocab=2000, scale=1.0)
    p = theta[0].softmax(-1)
    seen = torch.zeros_like(p).scatter(0, p.topk(20).indices, p.topk(20).values)
    wanted = reference.mix(teacher[0], theta[0]).log_q
    assert variation(clamped_row(p, teacher[0].softmax(-1)), wanted) < ROW_BY_ROW_TV
    assert variation(clamped_row(seen, teacher[0].softmax(-1)), wanted) > 0.1


@torch.inference_mode()
def test_lockstep_draws_from_q() -> None:
    """At a temperature near zero its tokens are the likeliest of q*, computed in float64 without any cache."""
    tokenizer = AutoTokenizer.from_pretrained(PAIR / "teacher")
    prompts = make_prompts(tokenizer, 5, seed=4)  # of different lengths
    assert len({len(prompt.theta) for prompt in prompts}) > 1
    settings = Settings(
        TEACHER,
        THETA,
        max_num_seqs=5,
        max_model_len=256,
        kv_cache_bytes=0,
        temperature=1e-4,
    )
    drawn = Lockstep(settings).generate(prompts, max_tokens=24, seed=0)
    models = [
        AutoModelForCausalLM.from_pretrained(PAIR / role, dtype=torch.float64).eval() for role in ("teacher", "theta")
    ]
    for prompt, tokens in zip(prompts, drawn, strict=True):
        for i, token in enumerate(tokens):
            texts = (prompt.teacher + tokens[:i], prompt.theta + tokens[:i])
            teacher, theta = (
                model(torch.tensor([text])).logits[0, -1] for model, text in zip(models, texts, strict=True)
            )
            log_q = reference.mix(teacher, theta).log_q
            assert float(log_q[token]) == pytest.approx(float(log_q.max()), abs=1e-3)
