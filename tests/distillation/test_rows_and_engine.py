"""Rows drawn in lockstep by transformers and rows of the engine are one thing: the same q, and the same texts by chance."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence

import pytest
import task  # found by the package `distillation`
import torch
from distillation import problems
from distillation.matched_budget import logprobs_along
from distillation.mixtures import mixed
from distillation.rows import Models, Sums, Text, draw_texts
from measure import render
from vllm import LLM, SamplingParams

from support.cases import KL_SYMMETRY, Case
from support.engines import start_engine, stop_engine
from support.example_pair import TEACHER, THETA
from support.row_audit import RowAudit
from support.tolerances import CPU_FLOAT32

EPSILON = 0.05
RULES = {
    "kl_symmetry": KL_SYMMETRY,
    "entropy": {"alpha_method": "entropy"},
    "fixed": {"alpha_method": "fixed", "alpha": 0.5},
    "kl_budget": {"alpha_method": "kl_budget", "kl_budget": EPSILON},
}
HARD_PROBLEM = 30  # "Tom has 10 apples. He sells 9": q* says 1, 3, 11, 2, 5 and others, the teacher mostly 1 and 2
FIRST_TOKENS = 22  # with the first total
SAMPLES = 120  # of the engine
FALSE_ALARM = 1e-4
EXPECTED_IN_A_CELL = 8


@pytest.fixture(scope="module")
def models() -> Models:
    return Models.load()


@pytest.fixture(scope="module")
def engine() -> Iterator[LLM]:
    llm = start_engine(TEACHER, THETA, max_num_seqs=24)
    yield llm
    stop_engine(llm)


def ask(
    llm: LLM, models: Models, asked: Sequence[dict], rule: str, max_tokens: int, count: int
) -> list[list[list[int]]]:
    """The engine's tokens for each problem, `count` texts each."""

    def prompt(messages: task.Messages) -> list[int]:
        return render(models.tokenizer, messages)

    cases = [
        Case(
            prompt(task.teacher_messages(row["problem"], row["answer"])),
            prompt(task.theta_messages(row["problem"])),
            RULES[rule],
        )
        for row in asked
    ]
    params = [SamplingParams(n=count, max_tokens=max_tokens, seed=5, extra_args=case.extra_args()) for case in cases]
    outputs = llm.generate([{"prompt_token_ids": case.prompt} for case in cases], params, use_tqdm=False)
    return [[list(one.token_ids) for one in output.outputs] for output in outputs]


def last_total(tokenizer, tokens: Sequence[int]) -> str:
    """The last number that the beginning of a text states with a full stop or a comma behind it."""
    numbers = re.findall(r"([0-9]+)[.,]", tokenizer.decode(tokens[:FIRST_TOKENS], skip_special_tokens=True))
    return numbers[-1] if numbers else ""


def two_sample_p(ours: Counter, theirs: Counter) -> float:
    """Pearson's two-sample chi-square over cells; rare ones are taken together."""
    n, m = ours.total(), theirs.total()
    cells: dict[str, list[int]] = {}
    for cell in ours | theirs:
        expected = (ours[cell] + theirs[cell]) * min(n, m) / (n + m)
        pooled = cells.setdefault(cell if expected >= EXPECTED_IN_A_CELL else "rare", [0, 0])
        pooled[0] += ours[cell]
        pooled[1] += theirs[cell]
    assert len(cells) >= 3, cells
    statistic = sum((a * (m / n) ** 0.5 - b * (n / m) ** 0.5) ** 2 / (a + b) for a, b in cells.values())
    half = torch.tensor([(len(cells) - 1) / 2, statistic / 2], dtype=torch.float64)
    return float(torch.special.gammaincc(half[0], half[1]))


@pytest.mark.parametrize("rule", RULES)
def test_the_engine_has_the_same_q(engine: LLM, models: Models, rule: str) -> None:
    """Every row that enters vLLM's sampler, also of drafts rejected later, against `mixed` at the same prefix."""
    asked = problems.training(7, 3)
    with RowAudit(engine) as audit:
        ask(engine, models, asked, rule, 60, 1)
    of_prompt = {
        tuple(render(models.tokenizer, task.teacher_messages(row["problem"], row["answer"]))): number
        for number, row in enumerate(asked)
    }
    compared = 0
    for row in audit.rows:
        number = of_prompt[tuple(row.tokens[: row.prompt_len])]
        # One token more, so that the last row of the scores is the one behind the prefix.
        prefix = Text(number, [*row.tokens[row.prompt_len :], 0], False, Sums(0, 0, 0, 0, 0))
        theta, teacher = (rows[-1:] for rows in logprobs_along(models, [prefix], asked))
        q = mixed(rule, theta, teacher, 0.5, EPSILON).log_q[0].exp()
        variation = float((row.after.double().softmax(-1) - q).abs().sum() / 2)
        assert variation < CPU_FLOAT32.total_variation, (rule, row.position, variation)
        compared += 1
    assert compared > 100


@pytest.mark.full  # minutes; that q is the same at every row is the shorter test above
def test_the_engine_has_the_same_texts_by_chance(engine: LLM, models: Models) -> None:
    """The first totals of one problem's texts, where theta errs: a two-sample chi-square with false alarms of 1 in 10,000.

    The same test tells q*'s texts from the teacher's, which draws the same wordings and other totals.
    """
    asked = [problems.training(7, 40)[HARD_PROBLEM]]
    drawn = ask(engine, models, asked, "kl_symmetry", FIRST_TOKENS, SAMPLES)[0]
    of_engine = Counter(last_total(models.tokenizer, tokens) for tokens in drawn)
    of_lockstep = {}
    for rule in ("kl_symmetry", "teacher"):
        texts = draw_texts(models, asked, [0] * 2000, rule, torch.Generator().manual_seed(1))
        of_lockstep[rule] = Counter(last_total(models.tokenizer, text.token_ids) for text in texts)
    assert two_sample_p(of_engine, of_lockstep["kl_symmetry"]) > FALSE_ALARM
    assert two_sample_p(of_engine, of_lockstep["teacher"]) < FALSE_ALARM
