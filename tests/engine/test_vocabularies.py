"""Teachers and thetas whose tokenizers agree but for special tokens: rows in float64, ends of texts, chats, records."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from math import inf

import pytest
import torch
from vllm import SamplingParams

from support.cases import KL_SYMMETRY, OPTED_OUT, TEACHER_ALONE, THETA_ALONE, Case, generate, theta_prompts
from support.engines import RUN_MODES, find_runner, stop_engine
from support.row_audit import AuditError, RowAudit
from support.special_pairs import Pair, Running, prompts, start_pair
from support.special_tokens import CHATTY, OTHER
from vllm_optimal_sampling import OptimalSamplingParams
from vllm_optimal_sampling.integrations.theta_ids import teacher_token_ids, theta_token_ids

PAIRS = [
    Pair(CHATTY, OTHER, (6, 3)),
    Pair(OTHER, CHATTY, (0, 9)),
    Pair(CHATTY, replace(OTHER, first=True), (0, 0), scores=True),
]


@pytest.fixture(scope="module", params=RUN_MODES)
def engines(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[..., Running]]:
    running: dict[str, Running] = {}

    def start(pair: Pair) -> Running:
        if pair.name not in running:
            for other in running.values():
                stop_engine(other.llm)
            running.clear()
            running[pair.name] = start_pair(pair, tmp_path_factory.mktemp("pair"), **RUN_MODES[request.param])
        return running[pair.name]

    yield start
    for one in running.values():
        stop_engine(one.llm)


@pytest.mark.parametrize("pair", [pytest.param(pair, id=pair.name) for pair in PAIRS])
def test_rows_and_ends(pair: Pair, engines: Callable[..., Running]) -> None:
    running = engines(pair)
    llm, rng = running.llm, random.Random(7)
    shared, own = prompts(running, rng, 70), prompts(running, rng, 90, of_theta=True)
    end = running.teacher.eos_token_id
    cases = [
        Case(shared, own[:20], KL_SYMMETRY),
        Case(shared, own, KL_SYMMETRY),
        Case(shared, None, KL_SYMMETRY),  # theta reads the teacher's prompt, in its own ids
        Case(shared, None, OPTED_OUT),
        Case(shared, own[:20], THETA_ALONE),
        Case(shared, own[:33], TEACHER_ALONE),
        Case(prompts(running, rng, 9), own[:40], {"teacher_only_tokens": 3}),
        Case(shared[:33], own[:33], {"alpha_method": "entropy"}),
    ]
    with RowAudit(llm) as audit:
        outputs = generate(llm, cases, max_tokens=12, samples=[1, 2] * 4)
    report = audit.check(running.reference, theta_prompts(cases, outputs), running.vocabularies)
    assert report.mixed < report.rows and report.by_draft_position[1] > 20
    drawn = [token for output in outputs[:2] for sample in output.outputs for token in sample.token_ids]
    assert set(drawn) <= running.vocabularies.partners.keys()
    # A trainer of theta gets theta's ids.
    for output in outputs:
        for sample in output.outputs:
            expected = [running.vocabularies.read[token] for token in sample.token_ids]
            assert theta_token_ids(llm, sample.token_ids) == expected
    assert teacher_token_ids(llm, [running.theta.eos_token_id]) == [running.teacher.eos_token_id]

    # What theta ends an answer with ends the text, by theta's probability of it: there are two tokens to draw from.
    few = {"allowed_token_ids": [end, *running.ids("the")], "ignore_eos": False}
    with RowAudit(llm) as audit:
        ending = generate(llm, cases[:6], max_tokens=40, samples=[4] * 6, **few)
    audit.check(running.reference, theta_prompts(cases[:6], ending), running.vocabularies)
    for output in ending:
        for sample in output.outputs:
            ends = [token == end for token in sample.token_ids]
            assert ends == [False] * (len(ends) - 1) + [sample.finish_reason == "stop"]
    assert {"stop"} <= {sample.finish_reason for sample in ending[4].outputs}


@pytest.mark.parametrize("pair", [pytest.param(pair, id=pair.name) for pair in PAIRS])
def test_chats_of_both_templates(pair: Pair, engines: Callable[..., Running]) -> None:
    running = engines(pair)
    asked = [{"role": "user", "content": "the quick brown fox"}]
    told = [{"role": "user", "content": "the quick brown fox jumps over the lazy dog"}]
    theta = OptimalSamplingParams(theta_messages=asked)
    params = SamplingParams(max_tokens=10, seed=3, ignore_eos=True, extra_args=theta.to_extra_args())
    with RowAudit(running.llm) as audit:
        (output,) = running.llm.chat(told, params, use_tqdm=False)
    chat = {"tokenize": True, "add_generation_prompt": True, "return_dict": False}
    assert output.prompt_token_ids == running.teacher.apply_chat_template(told, **chat)
    audit.check(
        running.reference,
        {f"{output.request_id}-": running.theta.apply_chat_template(asked, **chat)},
        running.vocabularies,
    )


@pytest.mark.parametrize("pair", [pytest.param(PAIRS[0], id=PAIRS[0].name), pytest.param(PAIRS[2], id=PAIRS[2].name)])
def test_a_token_without_a_partner(pair: Pair, engines: Callable[..., Running]) -> None:
    """The teacher alone may draw it, theta then reads the beginning of its text; elsewhere the row falls back."""
    running = engines(pair)
    (tool,) = running.ids("<tool>")
    rng = random.Random(9)
    prompt, own = prompts(running, rng, 20), prompts(running, rng, 12, of_theta=True)
    case = Case(prompt, own, {"teacher_only_tokens": 2, "return_alpha": True})
    params = {"max_tokens": 4, "logit_bias": {tool: 100.0}}
    with RowAudit(running.llm) as audit:
        (output,) = generate(running.llm, [case], **params)
    audit.check(running.reference, theta_prompts([case], [output]), running.vocabularies)
    tokens, record = list(output.outputs[0].token_ids), output.outputs[0].optimal_sampling
    assert tokens[:2] == [tool, tool] and tool not in tokens[2:]
    assert record.theta_logprob[:2] == [-inf, -inf] and record.alpha[:2] == [1.0, 1.0]
    assert all(value > -inf for value in record.theta_logprob[2:])
    assert find_runner(running.llm).theta.vocabulary.ids is not None


@pytest.mark.parametrize("pair", [pytest.param(pair, id=pair.name) for pair in PAIRS])
def test_the_audit_catches_what_is_left_in_the_teachers_ids(
    pair: Pair, engines: Callable[..., Running], monkeypatch: pytest.MonkeyPatch
) -> None:
    running = engines(pair)
    vocabulary, rng = find_runner(running.llm).theta.vocabulary, random.Random(11)
    case = Case(prompts(running, rng, 20), prompts(running, rng, 12, of_theta=True), THETA_ALONE)

    def fails(times: float) -> None:
        end = {"logit_bias": {running.teacher.eos_token_id: 100.0}}  # drawn again and again, and read by theta
        with RowAudit(running.llm) as audit:
            outputs = generate(running.llm, [case], max_tokens=6, **end)
        with pytest.raises(AuditError) as caught:
            audit.check(running.reference, theta_prompts([case], outputs), running.vocabularies)
        assert caught.value.times_tolerance > times

    with monkeypatch.context() as patched:
        last = len(running.theta) - 1
        patched.setattr(vocabulary, "_sources", vocabulary._moved.clamp(max=last))  # columns stay where theta has them
        fails(100)
    ids = vocabulary.ids.clone()
    try:
        vocabulary.ids.copy_(torch.arange(len(ids)).clamp(max=last))  # and so does what it reads
        fails(100)
    finally:
        vocabulary.ids.copy_(ids)
