"""Batches of chats, and tokens in, tokens out: what vLLM's endpoints answer is what a chat of its own is answered."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from support.example_pair import (
    SETTINGS,
    TEACHER,
    TEACHER_MESSAGES,
    THETA,
    THETA_MESSAGES,
    ask,
    chat_body,
    chat_tokens,
)
from support.servers import Server

BATCH = "/v1/chat/completions/batch"
TOKENS = "/inference/v1/generate"
ROUNDING = 1e-4  # of float32 logits in another batch, in nats
PROMPT = chat_tokens(TEACHER, TEACHER_MESSAGES)
THETA_PROMPT = chat_tokens(THETA, [{"role": "system", "content": SETTINGS["theta_system_prompt"]}, *THETA_MESSAGES])


def tokens_body(arguments: dict[str, Any], **options: Any) -> dict[str, Any]:
    sampling = {"temperature": 0, "max_tokens": 24, "extra_args": arguments}
    return {"model": "teacher", "token_ids": PROMPT, "sampling_params": sampling, **options}


def assert_same(choice: dict[str, Any], alone: dict[str, Any]) -> None:
    """A choice's tokens and records are those of the chat."""
    assert choice["token_ids"] == alone["token_ids"]
    records, expected = choice["optimal_sampling"], alone["optimal_sampling"]
    assert records.keys() == expected.keys()
    for name in records:
        assert records[name] == pytest.approx(expected[name], abs=ROUNDING), name


@pytest.fixture(scope="module")
def alone(server: Server) -> dict[str, Any]:
    """A greedy chat's choice, with its record."""
    return ask(server, chat_body(max_tokens=24, vllm_xargs={"return_alpha": True}))["choices"][0]


def test_a_batch_of_chats_has_the_record_of_each(server: Server, alone: dict[str, Any]) -> None:
    other = [
        {"role": "user", "content": "Ben owns 33 books. He buys 8 more. How many books are there now?\nAnswer: 41."}
    ]
    body = chat_body(max_tokens=24, vllm_xargs={"return_alpha": True})
    expected = [alone, ask(server, body | {"messages": other})["choices"][0]]
    choices = ask(server, body | {"messages": [TEACHER_MESSAGES, other]}, BATCH)["choices"]
    assert choices[0]["token_ids"] != choices[1]["token_ids"]
    for choice, chat in zip(choices, expected, strict=True):
        assert_same(choice, chat)
    choices = ask(server, chat_body(max_tokens=2) | {"messages": [TEACHER_MESSAGES, other]}, BATCH)["choices"]
    assert not any("optimal_sampling" in choice for choice in choices)


@pytest.mark.parametrize("mode", ["tokens", "text"])
@pytest.mark.parametrize("reads", [{"theta_prompt_token_ids": THETA_PROMPT}, {"theta_messages": THETA_MESSAGES}])
def test_tokens_in_tokens_out(server: Server, alone: dict[str, Any], reads: dict[str, Any], mode: str) -> None:
    answer = ask(server, tokens_body(reads | {"return_alpha": True}, output_mode=mode), TOKENS)
    (choice,) = answer["choices"]
    assert_same(choice, alone)
    assert answer["usage"]["completion_tokens"] == len(alone["token_ids"])
    assert choice.get("text") == (alone["message"]["content"] if mode == "text" else None)
    (choice,) = ask(server, tokens_body(reads, output_mode=mode), TOKENS)["choices"]
    assert "optimal_sampling" not in choice


def test_a_stream_of_tokens(server: Server, alone: dict[str, Any]) -> None:
    body = tokens_body({"theta_prompt_token_ids": THETA_PROMPT, "return_alpha": True}, stream=True)
    status, text = server.send(TOKENS, body)
    assert status == 200, text
    tokens: list[int] = []
    records: dict[str, list[Any]] = {}
    for line in re.findall(r"^data: (\{.*)$", text, re.M):
        for choice in json.loads(line)["choices"]:
            tokens += choice["token_ids"]
            for name, values in choice["optimal_sampling"].items():
                records.setdefault(name, []).extend(values)
    assert_same({"token_ids": tokens, "optimal_sampling": records}, alone)


def test_what_render_makes_of_a_chat_is_generated_with_its_arguments(server: Server, alone: dict[str, Any]) -> None:
    body = chat_body(max_tokens=24, vllm_xargs={"return_alpha": True})
    request = ask(server, body, "/v1/chat/completions/render")
    (choice,) = ask(server, request, TOKENS)["choices"]
    assert_same(choice, alone)


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"vllm_xargs": {"theta_prompt": "x"}}, "vllm_xargs is not a field.*go into sampling_params.extra_args"),
        ({"extra_args": {"theta_prompt": "x"}}, "extra_args is not a field.*go into sampling_params.extra_args"),
        (
            {"theta_prompt": "x"},
            r'put it into sampling_params.extra_args: {"sampling_params": {"extra_args": {"theta_p',
        ),
        ({"sampling_params": {"theta_prompt": "x"}}, "theta_prompt is ignored as a field of the request"),
        ({"sampling_params": {"vllm_xargs": {"theta_prompt": "x"}}}, "vllm_xargs is not a field"),
        ({"sampling_params": {"extra_args": {"theta_promt": "x"}}}, "did you mean theta_prompt"),
        ({"sampling_params": {"extra_args": {"alpha": "0.5"}}}, "alpha='0.5' is text, not a number"),
    ],
)
def test_arguments_in_the_wrong_place_are_refused(server: Server, wrong: dict[str, Any], reason: str) -> None:
    """vLLM answers 200 to most of them, and theta has read the teacher's prompt with the answer in it."""
    status, answer = server.send(TOKENS, tokens_body({}) | wrong)
    assert status == 400, answer
    assert re.search(reason, answer["error"]["message"], re.DOTALL), answer
