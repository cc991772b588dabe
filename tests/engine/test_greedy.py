"""Greedy output, token for token, against brute force: transformers on both models in float64."""

import re
from collections.abc import Callable

import pytest
from vllm import LLM, SamplingParams

from support.cases import KL_SYMMETRY, OPTED_OUT, TEACHER_ALONE, THETA_ALONE, Case, generate, mixed_batch
from support.reference_models import Reference, greedy_tokens

# 12 requests x 84 tokens
MAX_TOKENS = 84


@pytest.fixture(scope="module")
def llm(engines: Callable[..., LLM]) -> LLM:
    return engines(num_speculative_tokens=3, max_num_batched_tokens=128)


def test_a_thousand_tokens(llm: LLM, reference: Reference) -> None:
    cases = mixed_batch(seed=11)
    outputs = generate(llm, cases, max_tokens=MAX_TOKENS, temperature=0.0)
    compared = 0
    for case, output in zip(cases, outputs, strict=True):
        tokens = list(output.outputs[0].token_ids)
        assert tokens == greedy_tokens(reference, case, MAX_TOKENS, supposed=tokens), (len(case.prompt), case.arguments)
        compared += len(tokens)
    assert compared >= 1000


def test_what_is_supposed_changes_no_expectation(pair: tuple[str, str]) -> None:
    """Rows that are computed in one forward of the tokens found by the engine are those of one forward each."""
    case = mixed_batch(seed=14)[0]
    expected = greedy_tokens(Reference(*pair), case, 6)
    for supposed in (expected, [*expected[:3], 7, 8], [9]):
        assert greedy_tokens(Reference(*pair), case, 6, supposed=supposed) == expected


def test_stop_tokens(llm: LLM, reference: Reference) -> None:
    """Nothing behind a stop token is returned, wherever in a round it comes (ends of text: test_example_pair.py)."""
    for case in mixed_batch(seed=12)[4:6]:
        expected = greedy_tokens(reference, case, 24)
        for end in (5, 6, 7, 8):
            stop = expected[end]
            wanted = expected[: expected.index(stop) + 1]
            (output,) = generate(
                llm, [case], max_tokens=24, temperature=0.0, stop_token_ids=[stop], ignore_eos=False
            )  # fmt: skip
            assert list(output.outputs[0].token_ids) == wanted
            assert output.outputs[0].finish_reason == "stop"


def test_stop_strings_and_single_tokens_and_several_samples(llm: LLM, reference: Reference) -> None:
    case = mixed_batch(seed=13)[0]
    expected = greedy_tokens(reference, case, 24)
    tokenizer = llm.get_tokenizer()
    text = tokenizer.decode(expected)
    # Bytes that are no text come out as they please, so the stop string is of plain characters.
    stop = re.findall(r"[ -~]{2}", text)[1]
    (output,) = generate(llm, [case], max_tokens=24, temperature=0.0, stop=[stop])
    assert output.outputs[0].text == text[: text.index(stop)]
    assert output.outputs[0].stop_reason == stop

    (output,) = generate(llm, [case], max_tokens=1, temperature=0.0)
    assert list(output.outputs[0].token_ids) == expected[:1]

    # vLLM takes several samples only from a distribution; with top_k=1 it is one that greedy sampling agrees with.
    (output,) = generate(llm, [case], max_tokens=9, top_k=1, n=3)
    assert [list(sample.token_ids) for sample in output.outputs] == [expected[:9]] * 3


def test_a_request_up_to_the_models_length(llm: LLM, reference: Reference) -> None:
    """Every position that the model has can be used, by theta prompts a little shorter and by longer ones."""
    limit = llm.llm_engine.model_config.max_model_len
    for prompt_len, theta_len in ((limit - 6, limit - 9), (limit - 20, limit - 6), (limit - 6, 3)):
        prompt = [7 + i % 300 for i in range(prompt_len)]
        theta_prompt = [11 + i % 290 for i in range(theta_len)]
        case = Case(prompt, theta_prompt, KL_SYMMETRY)
        room = limit - max(prompt_len, theta_len)
        (output,) = generate(llm, [case], max_tokens=room, temperature=0.0)
        tokens = list(output.outputs[0].token_ids)
        assert tokens == greedy_tokens(reference, case, room, supposed=tokens)
        params = SamplingParams(max_tokens=None, temperature=0.0, ignore_eos=True, extra_args=case.extra_args())
        (output,) = llm.generate([{"prompt_token_ids": prompt}], params, use_tqdm=False)
        assert list(output.outputs[0].token_ids) == greedy_tokens(reference, case, room)


def test_seeds_reproduce(llm: LLM) -> None:
    cases = [Case([5, 6, 7], [8, 9], arguments) for arguments in (KL_SYMMETRY, THETA_ALONE, TEACHER_ALONE, OPTED_OUT)]
    cases = [Case(c.prompt, None if c.arguments == OPTED_OUT else c.theta_prompt, c.arguments) for c in cases]
    first, second = (
        [list(output.outputs[0].token_ids) for output in generate(llm, cases, max_tokens=8, seed=5)] for _ in range(2)
    )
    assert first == second
