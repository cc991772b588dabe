"""Training treats every source alike, and the evaluation is transformers' own generation."""

from __future__ import annotations

import itertools

import measure  # found by the package `distillation`
import pytest
import task
import torch
from distillation import PAIR, student
from distillation.generation import draw_problems, written_row
from distillation.student import Example, Recipe
from transformers import AutoTokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(PAIR / "theta")


@pytest.fixture(scope="module")
def rows(tokenizer) -> list[dict]:
    return [written_row(problem, tokenizer) for problem in draw_problems("train", 5, 40)]


def test_batches_have_as_many_tokens_and_leave_nothing_out() -> None:
    examples = [Example([1], [i] * (10 + i % 7)) for i in range(50)]
    stream = student.batches(examples, 64, seed=3)
    total = sum(len(example.completion) for example in examples)
    seen: list[Example] = []
    while len(seen) < 2 * len(examples):
        batch = next(stream)
        size = sum(len(example.completion) for example in batch)
        assert 64 - 16 < size <= 64
        seen += batch
    for run in (seen[:50], seen[50:100]):
        assert sorted(example.completion[0] for example in run) == list(range(50))
    assert [e.completion[0] for e in seen[:50]] != [e.completion[0] for e in seen[50:100]]
    assert total == sum(len(example.completion) for example in seen[:50])
    again = list(itertools.islice(student.batches(examples, 64, seed=3), 4))
    assert again == list(itertools.islice(student.batches(examples, 64, seed=3), 4))


def test_only_completions_are_learnt() -> None:
    tokens, labels = student.tensors([Example([5, 6, 7], [8, 9]), Example([5], [8])], pad=0)
    assert tokens.tolist() == [[5, 6, 7, 8, 9], [5, 8, 0, 0, 0]]
    assert labels.tolist() == [[-100, -100, -100, 8, 9], [-100, 8, -100, -100, -100]]


def test_learning_rate_rises_and_falls_to_zero() -> None:
    recipe = Recipe(steps=30, warmup_steps=10, evaluate_steps=(0, 30))
    factors = [student.rate_at(recipe, step) for step in range(31)]
    assert factors[0] == pytest.approx(0.1)
    assert max(factors) == 1
    assert factors[30] == 0
    assert all(earlier > later for earlier, later in itertools.pairwise(factors[10:]))


def test_training_learns_the_rows(tokenizer, rows: list[dict]) -> None:
    """Log-likelihood of the rows themselves, which only falls where the tokens and labels belong together."""
    model = measure.load(PAIR / "theta")
    recipe = Recipe(steps=12, tokens_per_step=800, warmup_steps=2, evaluate_steps=(0, 4, 12))
    stops = list(student.train(model, rows, recipe, 1e-3, 0, tokenizer.pad_token_id))
    assert [step for step, _, _ in stops] == [0, 4, 12]
    assert stops[0][1] is None
    assert stops[2][1] < 0.97 * stops[1][1]
    assert 0.9 * 12 * 800 < stops[2][2] <= 12 * 800


def test_greedy_evaluation_is_transformers_generation(tokenizer) -> None:
    model = measure.load(PAIR / "theta")
    problems = task.read_rows(PAIR / "problems.jsonl")[:12]
    texts = student.complete(model, tokenizer, problems, None)
    for text, problem in zip(texts, problems, strict=True):
        ids = torch.tensor([measure.render(tokenizer, task.theta_messages(problem["problem"]))])
        drawn = model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=measure.MAX_TOKENS
        )
        assert text == tokenizer.decode(drawn[0, ids.shape[1] :], skip_special_tokens=True)


def test_sampled_evaluation_is_the_pairs_own(tokenizer) -> None:
    """Same seed, same draws as examples/pair/measure.py, whose figures are checked there."""
    model = measure.load(PAIR / "theta")
    problems = task.read_rows(PAIR / "problems.jsonl")[:12]
    prompts = [task.theta_messages(problem["problem"]) for problem in problems]
    expected = [sample.text for sample in measure.generate(tokenizer, 4, model, prompts)]
    assert student.complete(model, tokenizer, problems, 4) == expected


def test_marks_are_one_for_each_problem() -> None:
    problems = [{"answer": "9", "steps": [5, 9]}, {"answer": "9", "steps": [5, 9]}, {"answer": "9", "steps": [5, 9]}]
    texts = ["2 and 3 make 5, and 4 make 9. The answer is 9.", "It is 6. The answer is 9.", "The answer is 8."]
    assert student.judge(texts, problems) == {"right": "110", "sound": "100"}
