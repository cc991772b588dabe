"""vLLM's own sampling arguments on q*: each row that a token is drawn from, and greedy texts, against brute force."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
from vllm import LLM, SamplingParams
from vllm.sampling_params import StructuredOutputsParams

from support.cases import KL_SYMMETRY, OPTED_OUT, THETA_ALONE, Case
from support.processed_rows import MAX_TOTAL_VARIATION, ProcessedRows, expected_logits, total_variation
from support.random_models import EOS
from support.reference_models import Reference
from vllm_optimal_sampling import OptimalSamplingParams

MAX_TOKENS = 10
CHOICES = ["the quick fox", "the lazy dog jumps", "over two numbers"]
PROMPT = [300 + i for i in range(40)]
THETA_PROMPT = [290 + i for i in range(17)]

BIAS = {5: 4.0, 77: -3.0, 301: 2.5}
PENALTIES = {"repetition_penalty": 1.3, "presence_penalty": 0.4, "frequency_penalty": 0.7}
STAGES: dict[str, dict[str, Any]] = {
    "temperature": {"temperature": 0.6},
    "top_p": {"top_p": 0.8},
    "top_k": {"top_k": 7},
    "min_p": {"min_p": 0.05},
    "repetition_penalty": {"repetition_penalty": 1.5},
    "presence_penalty": {"presence_penalty": 1.5},
    "frequency_penalty": {"frequency_penalty": 1.5},
    "logit_bias": {"logit_bias": BIAS},
    "bad_words": {"bad_words": ["fox", "the", "dog"]},
    "min_tokens": {"min_tokens": 5, "stop_token_ids": [300, 301, 302], "ignore_eos": False},
    "allowed_token_ids": {"allowed_token_ids": list(range(0, 512, 3))},
    # Few tokens are left, and top-p needs the least of them too: vLLM alone drops it (`worker/relaxed_top_p_kernel.py`).
    "top_p after min_p": {"min_p": 0.4, "top_p": 0.95},
    "top_p of three": {"allowed_token_ids": [5, 77, 301], "top_p": 0.995, "top_k": 200},
    "all of them": {
        "temperature": 0.9,
        "top_p": 0.95,
        "top_k": 40,
        "min_p": 0.01,
        "logit_bias": BIAS,
        "bad_words": ["fox"],
        **PENALTIES,
    },
}


@pytest.fixture(scope="module")
def llm(engines: Callable[..., LLM]) -> LLM:
    return engines(num_speculative_tokens=3, max_num_seqs=16, logprobs_mode="processed_logprobs")


def run(
    llm: LLM, requests: Sequence[tuple[Case, dict[str, Any]]]
) -> tuple[list[Any], list[SamplingParams], ProcessedRows]:
    """One batch. The parameters come back as the engine has them: bad words and stop tokens as ids."""
    params = [
        SamplingParams(
            **{"max_tokens": MAX_TOKENS, "temperature": 1.0, "ignore_eos": True, "seed": number, **options},
            extra_args=case.extra_args(),
        )
        for number, (case, options) in enumerate(requests)
    ]
    with ProcessedRows(llm) as rows:
        outputs = llm.generate([{"prompt_token_ids": case.prompt} for case, _ in requests], params, use_tqdm=False)
    for one in params:
        one.update_from_generation_config({}, EOS)
        one.update_from_tokenizer(llm.get_tokenizer())
    return outputs, params, rows


def check(
    reference: Reference,
    requests: Sequence[tuple[Case, dict[str, Any]]],
    outputs: list[Any],
    params: list[SamplingParams],
    rows: ProcessedRows,
    allowed_by_grammar: Callable[[Sequence[int]], set[int]] | None = None,
) -> int:
    """Compare every row. Returns how many of them stand behind drafts."""
    drafted = 0
    for row in rows.rows:
        (number,) = (i for i, output in enumerate(outputs) if row.request.startswith(f"{output.request_id}-"))
        case, _ = requests[number]
        generated = row.tokens[row.prompt_len :]
        # A draft that the grammar forbids ends its round: nothing is drawn from the rows behind it.
        if allowed_by_grammar is not None and any(
            token not in allowed_by_grammar(generated[:i]) for i, token in enumerate(generated)
        ):
            continue
        expected = expected_logits(reference, case, params[number], generated, allowed_by_grammar)
        distance = total_variation(row.logits, expected, params[number])
        assert distance <= MAX_TOTAL_VARIATION, (number, requests[number], row.draft_position, distance)
        drafted += row.draft_position > 0
    return drafted


def test_each_stage_applies_to_q(llm: LLM, reference: Reference) -> None:
    """All stages in one batch, each alone and all together, beside opted-out neighbours with the same arguments."""
    requests = [(Case(PROMPT, THETA_PROMPT, KL_SYMMETRY), options) for options in STAGES.values()]
    requests += [
        (Case(PROMPT, None, OPTED_OUT), STAGES[name])
        for name in ("min_p", "logit_bias", "top_p of three", "all of them")
    ]
    outputs, params, rows = run(llm, requests)
    assert check(reference, requests, outputs, params, rows) > 100
    # The stages were at work: nothing that they forbid was drawn.
    names = list(STAGES)
    texts = {name: output.outputs[0] for name, output in zip(names, outputs[: len(names)], strict=True)}
    assert not re.search("fox|the|dog", texts["bad_words"].text)
    assert all(token % 3 == 0 for token in texts["allowed_token_ids"].token_ids)
    assert len(texts["min_tokens"].token_ids) >= 5


@pytest.mark.parametrize("stage", ["bad_words", "min_p"])
def test_a_stage_left_out_is_seen(llm: LLM, reference: Reference, stage: str) -> None:
    """The comparison can fail: the same rows, judged without the stage."""
    requests = [(Case(PROMPT, THETA_PROMPT, KL_SYMMETRY), STAGES[stage])]
    outputs, params, rows = run(llm, requests)
    for name in STAGES[stage]:
        setattr(params[0], {"bad_words": "_bad_words_token_ids"}.get(name, name), None if name == "bad_words" else 0.0)
    with pytest.raises(AssertionError, match=r"\(0, "):
        check(reference, requests, outputs, params, rows)


def test_greedy_texts_with_bias_penalties_and_bad_words(llm: LLM, reference: Reference) -> None:
    options = {"temperature": 0.0, "logit_bias": BIAS, "bad_words": ["fox", " the"], **PENALTIES, "max_tokens": 24}
    requests = [(Case(PROMPT, THETA_PROMPT, arguments), options) for arguments in (KL_SYMMETRY, THETA_ALONE)]
    requests.append((Case(PROMPT, None, OPTED_OUT), options))
    outputs, params, _ = run(llm, requests)
    for (case, _), one, output in zip(requests, params, outputs, strict=True):
        tokens: list[int] = []
        while len(tokens) < 24:
            tokens.append(int(expected_logits(reference, case, one, tokens).argmax()))
        assert list(output.outputs[0].token_ids) == tokens


@dataclass(frozen=True)
class Grammar:
    """What may be said, for the engine and in plain words."""

    structured_outputs: dict[str, Any]
    may_begin: Callable[[str], bool]
    may_end: Callable[[str], bool]

    def allowed(self, llm: LLM) -> Callable[[Sequence[int]], set[int]]:
        """The tokens that may follow, by the texts themselves: no grammar library."""
        tokenizer = llm.get_tokenizer()
        texts = {token: tokenizer.decode([token]) for token in range(1, len(tokenizer))}

        def allowed(output: Sequence[int]) -> set[int]:
            if output and output[-1] == EOS:
                return {EOS}
            text = "".join(texts[token] for token in output)
            tokens = {token for token, piece in texts.items() if piece and self.may_begin(text + piece)}
            return tokens | ({EOS} if self.may_end(text) else set())

        return allowed


GRAMMARS = {
    # Of the random theta's drafts hardly one is allowed: nearly every row is the first of its round.
    "choice": Grammar(
        {"choice": CHOICES},
        lambda text: any(choice.startswith(text) for choice in CHOICES),
        lambda text: text in CHOICES,
    ),
    # About half of them are.
    "regex": Grammar(
        {"regex": "[ -~]{40}"},
        lambda text: re.fullmatch("[ -~]{,40}", text) is not None,
        lambda text: len(text) == 40,
    ),
}


@pytest.mark.parametrize(("name", "temperature"), [("choice", 0.0), ("choice", 1.0), ("regex", 1.0)])
def test_a_grammar_restricts_both_models(llm: LLM, reference: Reference, name: str, temperature: float) -> None:
    """q* is mixed over the allowed tokens only; theta's mass elsewhere has no say in alpha."""
    grammar = GRAMMARS[name]
    options = {
        "temperature": temperature,
        "max_tokens": 24,
        "ignore_eos": False,
        "structured_outputs": StructuredOutputsParams(**grammar.structured_outputs),
    }
    arguments = [KL_SYMMETRY, KL_SYMMETRY, THETA_ALONE, {"alpha_method": "fixed", "alpha": 0.3}, OPTED_OUT]
    requests = [
        (Case(PROMPT, None if one is OPTED_OUT else THETA_PROMPT[i:], one), options) for i, one in enumerate(arguments)
    ]
    allowed = grammar.allowed(llm)
    outputs, params, rows = run(llm, requests)
    for (case, _), one, output in zip(requests, params, outputs, strict=True):
        (sample,) = output.outputs
        assert grammar.may_end(sample.text) if sample.finish_reason == "stop" else grammar.may_begin(sample.text)
        if temperature == 0:
            tokens: list[int] = []
            while EOS not in tokens:
                tokens.append(int(expected_logits(reference, case, one, tokens, allowed).argmax()))
            assert list(sample.token_ids) == tokens
    if temperature:
        assert check(reference, requests, outputs, params, rows, allowed) >= (20 if name == "regex" else 0)


def test_processed_logprobs_are_those_of_q(llm: LLM, reference: Reference) -> None:
    """With temperature 1 and nothing else, `logprobs_mode="processed_logprobs"` is log q*."""
    requests = [
        (Case(PROMPT, THETA_PROMPT, KL_SYMMETRY), {"logprobs": 3}),
        (Case(PROMPT, None, OPTED_OUT), {"logprobs": 3}),
    ]
    outputs, params, _ = run(llm, requests)
    for (case, _), one, output in zip(requests, params, outputs, strict=True):
        (sample,) = output.outputs
        for i, (token, entries) in enumerate(zip(sample.token_ids, sample.logprobs, strict=True)):
            row = expected_logits(reference, case, one, sample.token_ids[:i]).log_softmax(-1)
            assert entries[token].logprob == pytest.approx(row[token].item(), abs=1e-3)
            likeliest = {token for token, entry in entries.items() if entry.rank <= 3}
            assert set(row.topk(3).indices.tolist()) == likeliest


def test_n_samples_with_a_seed(llm: LLM) -> None:
    requests = [(Case(PROMPT, THETA_PROMPT, KL_SYMMETRY), {"n": 4, "seed": 3})]
    first, second = ([list(sample.token_ids) for sample in run(llm, requests)[0][0].outputs] for _ in range(2))
    assert first == second
    assert len({tuple(tokens) for tokens in first}) == 4


def test_chat(llm: LLM, reference: Reference) -> None:
    """`LLM.chat`: the teacher's messages by its template, theta's by its own."""
    messages, theta_messages = [{"role": "user", "content": "two and two"}], [{"role": "user", "content": "two"}]
    extra_args = OptimalSamplingParams(theta_messages=theta_messages).to_extra_args()
    params = SamplingParams(max_tokens=8, temperature=0, ignore_eos=True, extra_args=extra_args)
    (output,) = llm.chat([messages], params, use_tqdm=False)
    tokenizer = llm.get_tokenizer()
    prompt, theta_prompt = (
        tokenizer.encode(f"user: {chat[0]['content']}\nassistant: ") for chat in (messages, theta_messages)
    )
    assert output.prompt_token_ids == prompt
    case, tokens = Case(prompt, theta_prompt, KL_SYMMETRY), []
    while len(tokens) < 8:
        tokens.append(int(expected_logits(reference, case, params, tokens).argmax()))
    assert list(output.outputs[0].token_ids) == tokens
