"""`vllm serve` with optimal sampling, asked over HTTP by clients that know nothing of it."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import subprocess
import threading
from types import SimpleNamespace
from typing import Any

import pytest
from openai import BadRequestError, OpenAI

from support.example_pair import (
    PROBLEM,
    SETTINGS,
    TEACHER,
    TEACHER_MESSAGES,
    THETA,
    THETA_MESSAGES,
    ask,
    chat_body,
    chat_tokens,
    tokenizer,
    up_to_end,
)
from support.servers import Server

SYSTEM = [{"role": "system", "content": SETTINGS["theta_system_prompt"]}]


@pytest.fixture(scope="session")
def client(server: Server) -> OpenAI:
    return OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=120)


@pytest.fixture(scope="session")
def expected(reference: Any) -> list[int]:
    """The greedy tokens of `chat_body()`: theta's chat has the engine's system prompt, and alpha is at most 0.98."""
    from support.cases import Case
    from support.reference_models import greedy_tokens

    prompts = chat_tokens(TEACHER, TEACHER_MESSAGES), chat_tokens(THETA, SYSTEM + THETA_MESSAGES)
    return up_to_end(greedy_tokens(reference, Case(*prompts, {"alpha_max": SETTINGS["alpha_max"]}), 48))


# Clients


def test_the_openai_client_chats_with_the_answer_in_the_teachers_messages_only(
    client: OpenAI, expected: list[int]
) -> None:
    answer = client.chat.completions.create(
        model="teacher",
        messages=TEACHER_MESSAGES,
        temperature=0,
        max_tokens=48,
        extra_body={
            "return_token_ids": True,
            "vllm_xargs": {"theta_messages": json.dumps(THETA_MESSAGES), "return_alpha": True},
        },
    )
    (choice,) = answer.choices
    assert choice.token_ids == expected
    assert choice.message.content == tokenizer(TEACHER).decode(expected, skip_special_tokens=True)
    alphas = choice.optimal_sampling["alpha"]
    assert len(alphas) == len(expected)
    assert all(0 <= alpha <= SETTINGS["alpha_max"] + 1e-6 for alpha in alphas)
    assert len(set(alphas)) > 1


def test_a_stream_of_the_openai_client_is_the_same_text(client: OpenAI, expected: list[int]) -> None:
    body = chat_body(stream=True)
    extra = {name: body.pop(name) for name in ("vllm_xargs", "return_token_ids")}
    chunks = list(client.chat.completions.create(**body, extra_body=extra))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text == tokenizer(TEACHER).decode(expected, skip_special_tokens=True)
    assert len(chunks) > 2


def test_theta_prompts_as_text_and_as_tokens(server: Server, reference: Any) -> None:
    from support.cases import Case
    from support.reference_models import greedy_tokens

    prompt, theta_prompt = (
        f"<|user|>{PROBLEM}\nAnswer: 59.<|end|><|assistant|>",
        f"<|user|>{PROBLEM}<|end|><|assistant|>",
    )
    tokens, theta_tokens = tokenizer(TEACHER).encode(prompt), tokenizer(THETA).encode(theta_prompt)
    body = {"model": "teacher", "temperature": 0, "max_tokens": 24, "return_token_ids": True}
    arguments = {"alpha_method": "fixed", "alpha": 0}
    as_text = ask(
        server, {**body, "prompt": prompt, "vllm_xargs": {"theta_prompt": theta_prompt, **arguments}}, "/v1/completions"
    )
    as_tokens = ask(
        server,
        {**body, "prompt": tokens, "vllm_xargs": {"theta_prompt_token_ids": theta_tokens, **arguments}},
        "/v1/completions",
    )
    alone = up_to_end(greedy_tokens(reference, Case(tokens, theta_tokens, {"alpha_method": "fixed", "alpha": 0.0}), 24))
    assert as_text["choices"][0]["token_ids"] == alone
    assert as_tokens["choices"][0]["token_ids"] == alone


def test_thetas_template_reads_the_requests_variables(server: Server, reference: Any, theta: str) -> None:
    """Theta alone draws, so that its answer says what it was shown; the teacher's variables are none of theta's."""
    from support.cases import Case
    from support.reference_models import greedy_tokens

    alone = {"alpha_method": "fixed", "alpha": 0}
    hint = "Mia has 8 apples."
    for variables, shown in (({"hint": hint}, {"hint": hint}), ({}, {})):
        body = chat_body(vllm_xargs={**alone, "theta_chat_template_kwargs": json.dumps(variables)}, max_tokens=24)
        answer = ask(server, body | {"chat_template_kwargs": {"hint": "Mia has 3 apples."}})
        asked = chat_tokens(theta, SYSTEM + THETA_MESSAGES, **shown)
        case = Case(chat_tokens(TEACHER, TEACHER_MESSAGES), asked, {"alpha_method": "fixed", "alpha": 0.0})
        assert answer["choices"][0]["token_ids"] == up_to_end(greedy_tokens(reference, case, 24))
    assert chat_tokens(theta, THETA_MESSAGES, hint=hint) != chat_tokens(theta, THETA_MESSAGES)


def test_a_request_that_opts_out_is_the_teacher(server: Server, reference: Any) -> None:
    from support.cases import Case
    from support.reference_models import greedy_tokens

    answer = ask(server, chat_body() | {"vllm_xargs": {"optimal_sampling": False}})
    prompt = chat_tokens(TEACHER, TEACHER_MESSAGES)
    tokens = up_to_end(greedy_tokens(reference, Case(prompt, None, {"optimal_sampling": False}), 48))
    assert answer["choices"][0]["token_ids"] == tokens


@pytest.mark.parametrize("program", ["curl", "node"])
def test_clients_of_other_languages(server: Server, expected: list[int], program: str) -> None:
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed")
    url, body = f"{server.url}/v1/chat/completions", json.dumps(chat_body())
    commands = {
        "curl": ["curl", "-sS", "-H", "Content-Type: application/json", "-d", "@-", url],
        "node": [
            "node",
            "-e",
            "let text = ''; process.stdin.on('data', part => text += part).on('end', async () => {"
            "const body = JSON.parse(text);"
            "body.vllm_xargs.theta_messages = JSON.stringify(JSON.parse(body.vllm_xargs.theta_messages));"
            "const answer = await fetch(process.argv[1], {method: 'POST', body: JSON.stringify(body),"
            "headers: {'Content-Type': 'application/json'}});"
            "console.log(JSON.stringify(await answer.json()))})",
            url,
        ],
    }
    done = subprocess.run(commands[program], input=body, capture_output=True, text=True, timeout=120, check=True)
    assert json.loads(done.stdout)["choices"][0]["token_ids"] == expected


# What vLLM's own arguments do


def test_several_samples_with_a_seed(server: Server) -> None:
    body = chat_body(n=3, seed=7, temperature=1.5, max_tokens=12)
    first, second = (ask(server, body)["choices"] for _ in range(2))
    samples = [choice["token_ids"] for choice in first]
    assert samples == [choice["token_ids"] for choice in second]
    assert len({tuple(tokens) for tokens in samples}) > 1


def test_logprobs_are_the_teachers(server: Server, reference: Any) -> None:
    """vLLM's default mode is `raw_logprobs`: of the model as it is, before any processor."""
    answer = ask(server, chat_body(logprobs=True, top_logprobs=2, max_tokens=6))
    (choice,) = answer["choices"]
    tokens = chat_tokens(TEACHER, TEACHER_MESSAGES)
    for token, entry in zip(choice["token_ids"], choice["logprobs"]["content"], strict=True):
        row = reference.logits(reference.teacher, tokens).log_softmax(-1)
        assert entry["logprob"] == pytest.approx(row[token].item(), abs=1e-3)
        assert len(entry["top_logprobs"]) == 2
        tokens = [*tokens, token]


def test_a_stop_string_ends_the_text(server: Server, expected: list[int]) -> None:
    text = tokenizer(TEACHER).decode(expected, skip_special_tokens=True)
    stop = text.split()[2]
    (choice,) = ask(server, chat_body(stop=[stop]))["choices"]
    assert choice["message"]["content"] == text[: text.index(stop)]
    assert choice["finish_reason"] == "stop"


@pytest.mark.parametrize("temperature", [0, 1])
def test_structured_outputs_restrict_what_is_drawn(server: Server, temperature: float) -> None:
    pattern = r"(yes|no), [0-9]{2} apples\."
    (choice,) = ask(server, chat_body(structured_outputs={"regex": pattern}, temperature=temperature))["choices"]
    assert re.fullmatch(pattern, choice["message"]["content"]), choice


def test_a_response_format(server: Server) -> None:
    schema = {
        "type": "object",
        "properties": {"answer": {"enum": [59, 72]}},
        "required": ["answer"],
        "additionalProperties": False,
    }
    form = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
    (choice,) = ask(server, chat_body(response_format=form, temperature=1))["choices"]
    assert json.loads(choice["message"]["content"])["answer"] in (59, 72)


@pytest.mark.parametrize("tool_choice", ["none", "auto"])
def test_tools_off_and_on(server: Server, expected: list[int], tool_choice: str) -> None:
    """The pair's template does not show tools to the models: the text is the same, and no call comes back."""
    parameters = {"type": "object", "properties": {"apples": {"type": "integer"}}, "required": ["apples"]}
    tools = [{"type": "function", "function": {"name": "answer", "parameters": parameters}}]
    (choice,) = ask(server, chat_body(tools=tools, tool_choice=tool_choice, max_tokens=48))["choices"]
    assert choice["message"]["content"] == tokenizer(TEACHER).decode(expected, skip_special_tokens=True)
    assert not choice["message"].get("tool_calls")


def test_min_p_and_logit_bias_are_taken(server: Server) -> None:
    """vLLM refuses both beside a draft model; here both hold for q* (tests/surface/test_composition.py)."""
    word = tokenizer(TEACHER).encode("apples")[0]
    (choice,) = ask(server, chat_body(min_p=0.1, temperature=1, logit_bias={str(word): 100}, max_tokens=5))["choices"]
    assert choice["token_ids"] == [word] * 5


def test_the_engines_defaults_hold(server: Server) -> None:
    status, answer = server.send("/v1/chat/completions", chat_body(vllm_xargs={"alpha_min": 0.99}))
    assert status == 400
    assert "alpha_min=0.99 is above alpha_max=0.98" in answer["error"]["message"]
    ask(server, chat_body(vllm_xargs={"another_plugin": 1}, max_tokens=1))


# What is refused

BAD_ARGUMENTS: list[tuple[str, dict[str, Any], str]] = [
    ("misspelt key", {"theta_promt": "x"}, "theta_promt is not an argument.*did you mean theta_prompt"),
    ("number as text", {"alpha": "0.5"}, "alpha='0.5' is text, not a number; send it without quotes"),
    ("bool as text", {"optimal_sampling": "true"}, "optimal_sampling='true' is text, not true or false"),
    ("bool as two", {"return_alpha": 2}, "return_alpha=2 is an integer"),
    ("count as float", {"support_top_k": 2.5}, "support_top_k=2.5"),
    ("alpha above 1", {"alpha": 1.5}, r"alpha=1.5 is outside \[0, 1\]"),
    ("alpha below 0", {"alpha": -0.1}, r"alpha=-0.1 is outside \[0, 1\]"),
    ("bounds swapped", {"alpha_min": 0.9, "alpha_max": 0.5}, "alpha_min=0.9 is above alpha_max=0.5"),
    ("unknown method", {"alpha_method": "kl_symetry"}, "alpha_method='kl_symetry' is not one of.*kl_symmetry"),
    ("two prompts", {"theta_prompt": "x"}, "theta_prompt and theta_messages are both theta's prompt"),
    ("not JSON", {"theta_messages": "[{"}, "theta_messages=.* is not JSON"),
    ("not a list", {"theta_messages": "{}"}, "theta_messages is an object, not a list"),
    ("no messages", {"theta_messages": "[]"}, "theta_messages is empty"),
    ("no role", {"theta_messages": '[{"content": "x"}]'}, r"theta_messages\[0\] has role"),
    ("an image", {"theta_messages": '[{"role": "user", "content": [{"type": "image_url"}]}]'}, "theta reads text only"),
    ("template fails", {"theta_messages": '[{"role": "robot", "content": "x"}]'}, "chat template refused.*robot"),
    ("nested", {"theta_messages": "[" * 5000 + "]" * 5000}, "nested|not JSON"),
    ("messages as objects", {"theta_messages": [{"role": "user", "content": "x"}]}, "vllm_xargs.theta_messages"),
    (
        "variables that are text",
        {"theta_chat_template_kwargs": "hint"},
        "theta_chat_template_kwargs='hint' is not JSON",
    ),
    ("variables as a list", {"theta_chat_template_kwargs": "[]"}, r"theta_chat_template_kwargs=\[\] is not an object"),
    (
        "variables as an object",
        {"theta_chat_template_kwargs": {"hint": "x"}},
        "send the object as JSON text: json.dumps",
    ),
    ("a template", {"theta_chat_template_kwargs": '{"chat_template": "x"}'}, "has chat_template, which is no variable"),
    (
        "a setting of the engine",
        {"theta_chat_template": "x"},
        "theta_chat_template is not an argument of a request but a",
    ),
    ("null", {"alpha": None}, "vllm_xargs.alpha"),
]
BAD_PROMPTS: list[tuple[str, dict[str, Any], str]] = [
    ("empty prompt", {"theta_prompt": ""}, "theta_prompt is empty"),
    ("no tokens", {"theta_prompt_token_ids": []}, "theta_prompt_token_ids is empty"),
    ("beyond the vocabulary", {"theta_prompt_token_ids": [5, 552]}, "token id 552 at position 1, which is not in"),
    ("negative token", {"theta_prompt_token_ids": [-1]}, r"theta_prompt_token_ids\[0\]=-1 is not a token id"),
    ("token as text", {"theta_prompt_token_ids": [5, "6"]}, "'6' is text, not a whole number"),
    (
        "too long",
        {"theta_prompt_token_ids": [5] * 300},
        "theta_prompt_token_ids has 300 tokens, and theta",
    ),
    ("too long text", {"theta_prompt": "x" * 100_000}, "theta_prompt has 100000 characters"),
    ("no room", {"theta_prompt_token_ids": [5] * 250}, "plus max_tokens=48 goes beyond the 256 tokens"),
    (
        "variables for a text",
        {"theta_prompt": "x", "theta_chat_template_kwargs": '{"hint": "x"}'},
        "theta_chat_template_kwargs=.* has no effect: theta_prompt goes through no chat template",
    ),
]


def bad_bodies() -> list[tuple[Any, str]]:
    bodies: list[tuple[Any, str]] = [(chat_body(vllm_xargs=given), reason) for _, given, reason in BAD_ARGUMENTS]
    bodies += [(chat_body() | {"vllm_xargs": given}, reason) for _, given, reason in BAD_PROMPTS]
    raw = json.dumps(chat_body(vllm_xargs={"alpha": 0.125})).encode()
    bodies += [(raw.replace(b"0.125", number), "alpha=.* is not a finite number") for number in (b"NaN", b"1e999")]
    bodies.append((chat_body(use_beam_search=True, n=2), "beam search draws nothing from q"))
    return bodies


def test_bad_input_is_one_clear_error_and_hurts_nobody(server: Server, expected: list[int]) -> None:
    neighbours: list[list[int]] = []
    done = threading.Event()

    def keep_asking() -> None:
        while not done.is_set():
            neighbours.append(ask(server, chat_body())["choices"][0]["token_ids"])

    neighbour = threading.Thread(target=keep_asking)
    neighbour.start()
    try:
        for body, reason in bad_bodies():
            status, answer = server.send("/v1/chat/completions", body)
            assert status == 400, (status, body)
            assert re.search(reason, answer["error"]["message"], re.DOTALL), answer["error"]["message"]
    finally:
        done.set()
        neighbour.join(240)
    assert neighbours
    assert all(tokens == expected for tokens in neighbours)
    assert server.is_alive()


def test_the_openai_client_gets_the_reason(client: OpenAI) -> None:
    with pytest.raises(BadRequestError, match="did you mean alpha_max") as caught:
        client.completions.create(model="teacher", prompt="x", extra_body={"vllm_xargs": {"alpha_mx": 1}})
    assert caught.value.param == "alpha_mx"


def test_completions_refuse_alike(server: Server) -> None:
    body = {"model": "teacher", "prompt": "x", "vllm_xargs": {"theta_prompt": "\ud800"}}
    status, answer = server.send("/v1/completions", body)
    assert status == 400, answer


MISPLACED: list[tuple[dict[str, Any], str]] = [
    (
        {"theta_messages": json.dumps(THETA_MESSAGES)},
        "theta_messages is ignored as a field of the request; put it into",
    ),
    ({"theta_messages": THETA_MESSAGES}, "theta_messages is ignored as a field of the request"),
    ({"theta_prompt": "x"}, "theta_prompt is ignored as a field"),
    ({"optimal_sampling": False}, "optimal_sampling is ignored as a field"),
    ({"alpha_max": 0.5, "top_k": 3}, "alpha_max is ignored as a field"),
    ({"theta_promt": "x"}, "theta_promt is not a field.*did you mean theta_prompt"),
    ({"theta_chat": "x"}, "theta_chat is not a field of a request"),
    ({"vllm_xarg": {"theta_prompt": "x"}}, "vllm_xarg is not a field.*did you mean vllm_xargs"),
    ({"extra_body": {"vllm_xargs": {"theta_prompt": "x"}}}, "extra_body is not a field.*openai client"),
    ({"extra_args": {"theta_prompt": "x"}}, "extra_args is not a field.*called vllm_xargs"),
    ({"require_theta_prompt": False}, "require_theta_prompt is a setting of the engine"),
    ({"theta_chat_template_kwargs": {"hint": "x"}}, "theta_chat_template_kwargs is ignored as a field of the request"),
    ({"vllm_xargs": {"alpha_max": True}}, "alpha_max=True is a bool, not a number"),
]
ENDPOINTS: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": TEACHER_MESSAGES, "max_tokens": 4},
    "/v1/completions": {"prompt": "x", "max_tokens": 4},
    "/v1/responses": {"input": "x", "max_output_tokens": 16},
    "/v1/messages": {"messages": TEACHER_MESSAGES, "max_tokens": 4},
}


@pytest.mark.parametrize("path", ENDPOINTS)
def test_an_argument_in_the_wrong_place_is_refused(server: Server, path: str) -> None:
    """vLLM answers 200, and theta has read the teacher's prompt with the answer in it."""
    body = {"model": "teacher", **ENDPOINTS[path]}
    for wrong, reason in MISPLACED:
        status, answer = server.send(path, body | wrong)
        assert status == 400, (wrong, answer)
        assert re.search(reason, answer["error"]["message"], re.DOTALL), answer
        assert answer["error"]["param"] in {*wrong, *wrong.get("vllm_xargs", ())}
    status, answer = server.send(path, body | {"an_unknown_field": 1})
    assert status == 200, answer


@pytest.mark.parametrize("path", ["/v1/responses", "/v1/messages"])
def test_a_record_is_refused_where_the_answer_has_no_place_for_it(server: Server, path: str) -> None:
    body = {"model": "teacher", **ENDPOINTS[path]}
    status, answer = server.send(path, body | {"vllm_xargs": {"return_alpha": True}})
    assert status == 400
    assert f"return_alpha has no effect here: an answer of {path} has no place" in answer["error"]["message"]
    assert answer["error"]["param"] == "return_alpha"
    status, answer = server.send(path, body | {"vllm_xargs": {"return_alpha": False, "theta_prompt": "y"}})
    assert status == 200, answer


def test_a_value_that_vllm_would_refuse_in_many_lines_gets_one_sentence(server: Server) -> None:
    for arguments, sentence in (
        ({"theta_messages": THETA_MESSAGES}, "send the list of messages as JSON text: json.dumps"),
        ({"theta_prompt_token_ids": [[5]]}, "vllm_xargs.theta_prompt_token_ids is a list with a list in it; give"),
        ({"alpha": None}, "vllm_xargs.alpha is null, which is no value over HTTP; leave alpha out"),
        ("x", "vllm_xargs is text, not an object; send it as in"),
    ):
        status, answer = server.send("/v1/chat/completions", chat_body() | {"vllm_xargs": arguments})
        assert status == 400
        assert sentence in answer["error"]["message"]
        assert "validation error" not in answer["error"]["message"]


def test_a_batch_from_a_file_is_refused_alike() -> None:
    """`vllm run-batch` asks the same classes without a server."""
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
    from vllm.entrypoints.serve.engine.serving import BaseServing
    from vllm.exceptions import VLLMValidationError
    from vllm.plugins import load_general_plugins

    load_general_plugins()
    request = ChatCompletionRequest(model="m", messages=TEACHER_MESSAGES, theta_messages=THETA_MESSAGES)
    serving = SimpleNamespace(
        engine_client=SimpleNamespace(vllm_config=SimpleNamespace(additional_config={"optimal_sampling": {}})),
        request_logger=None,
        _is_model_supported=lambda name: True,
    )
    with pytest.raises(VLLMValidationError, match="theta_messages is ignored"):
        asyncio.run(BaseServing._check_model(serving, request))  # type: ignore[arg-type]
    serving.engine_client.vllm_config.additional_config = {}
    assert asyncio.run(BaseServing._check_model(serving, request)) is None  # type: ignore[arg-type]


def test_no_field_of_vllms_own_is_refused() -> None:
    from vllm.entrypoints.anthropic.protocol import AnthropicMessagesRequest
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
    from vllm.entrypoints.openai.completion.protocol import CompletionRequest
    from vllm.entrypoints.openai.responses.protocol import ResponsesRequest

    from vllm_optimal_sampling.front_end.misplaced import misplaced

    for model in (ChatCompletionRequest, CompletionRequest, ResponsesRequest, AnthropicMessagesRequest):
        assert misplaced(model.model_fields) is None
