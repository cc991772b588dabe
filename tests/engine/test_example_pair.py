"""The shipped pair through the engine: real prompts, real ends of text inside accepted drafts, and what a round costs."""

from __future__ import annotations

from typing import Any

import pytest
from task import read_rows, teacher_messages, theta_messages
from vllm import SamplingParams

from support.cases import KL_SYMMETRY, Case
from support.engines import find_runner, start_engine, stop_engine
from support.example_pair import PAIR, TEACHER, THETA
from support.reference_models import Reference, greedy_tokens

NUM_DRAFTS = 4


def test_greedy_and_the_forwards_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Greedy completions end where brute force ends; rounds and forwards are as few as the design says."""
    llm = start_engine(TEACHER, THETA, num_speculative_tokens=NUM_DRAFTS)
    try:
        tokenizer = llm.get_tokenizer()
        eos = tokenizer.eos_token_id

        def prompt(messages: list[dict[str, str]]) -> list[int]:
            text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
            return tokenizer.encode(text, add_special_tokens=False)

        rows = read_rows(PAIR / "problems.jsonl")[:8]
        cases = [
            Case(prompt(teacher_messages(r["problem"], r["answer"])), prompt(theta_messages(r["problem"])), KL_SYMMETRY)
            for r in rows
        ]
        speculator = find_runner(llm).speculator
        rounds, forwards, in_prompt = [0], [0], [False]
        propose, prefill, run_model = speculator.propose, speculator.prefill, speculator._run_model

        def counted_propose(*args: Any, **kwargs: Any) -> Any:
            rounds[0] += 1
            return propose(*args, **kwargs)

        def counted_prefill(*args: Any) -> None:
            in_prompt[0] = True
            prefill(*args)
            in_prompt[0] = False

        def counted_run(*args: Any) -> Any:
            forwards[0] += not in_prompt[0]
            return run_model(*args)

        monkeypatch.setattr(speculator, "propose", counted_propose)
        monkeypatch.setattr(speculator, "prefill", counted_prefill)
        monkeypatch.setattr(speculator, "_run_model", counted_run)
        params = [SamplingParams(max_tokens=90, temperature=0.0, extra_args=case.extra_args()) for case in cases]
        before = counts(llm)
        outputs = llm.generate([{"prompt_token_ids": case.prompt} for case in cases], params, use_tqdm=False)
        drafts, accepted = (after - then for after, then in zip(counts(llm), before, strict=True))
    finally:
        stop_engine(llm)

    reference = Reference(TEACHER, THETA)
    num_tokens = 0
    ended_inside = 0
    for case, output in zip(cases, outputs, strict=True):
        tokens = list(output.outputs[0].token_ids)
        expected = greedy_tokens(reference, case, len(tokens), supposed=tokens)
        assert tokens == expected
        assert tokens[-1] == eos and output.outputs[0].finish_reason == "stop"
        num_tokens += len(tokens)
        # The first token comes from the prompt; full rounds of K + 1 then end at every fifth.
        ended_inside += (len(tokens) - 1) % (NUM_DRAFTS + 1) != 0
    assert ended_inside > 0
    # vLLM counts the drafts of each request as one; each is one row of the teacher's forward.
    assert drafts / num_tokens <= 0.35, (drafts, accepted, num_tokens)
    assert forwards[0] == pytest.approx(rounds[0] * (NUM_DRAFTS + 1), rel=0.02)


def counts(llm: Any) -> tuple[float, float]:
    metrics = {metric.name: metric.value for metric in llm.get_metrics() if hasattr(metric, "value")}
    return metrics["vllm:spec_decode_num_drafts"], metrics["vllm:spec_decode_num_accepted_tokens"]
