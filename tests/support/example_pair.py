"""The example pair's problem as requests, and the tokens that q* has for it by brute force."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from support.servers import Server

PAIR = Path(__file__).resolve().parents[2] / "examples" / "pair"
TEACHER, THETA = str(PAIR / "teacher"), str(PAIR / "theta")

SETTINGS = {"theta_system_prompt": "Think.", "alpha_max": 0.98, "other_extra_args": ["another_plugin"]}
"""The engine's own defaults."""

PROBLEM = "Mia has 47 apples. She buys 25 more and then sells 13. How many apples does Mia have now?"
TEACHER_MESSAGES = [{"role": "user", "content": f"{PROBLEM}\nAnswer: 59."}]
THETA_MESSAGES = [{"role": "user", "content": PROBLEM}]
END = 1


@cache
def tokenizer(path: str) -> Any:
    return AutoTokenizer.from_pretrained(path)


def with_hint(model: str, folder: Path) -> str:
    """A model of the pair in a new folder, whose chat template also reads a variable: `hint`, a system message."""
    folder.mkdir()
    for file in Path(model).iterdir():
        (folder / file.name).symlink_to(file)
    template = folder / "chat_template.jinja"
    text = template.read_text()
    template.unlink()
    template.write_text("{%- if hint is defined -%}{{- '<|system|>' + hint + '<|end|>' -}}{%- endif -%}\n" + text)
    return str(folder)


def chat_tokens(path: str, messages: list[dict[str, str]], **variables: Any) -> list[int]:
    return tokenizer(path).apply_chat_template(
        messages, tokenize=True, add_generation_prompt=True, return_dict=False, **variables
    )


def up_to_end(tokens: list[int]) -> list[int]:
    """A text's tokens with the one that ends it, as vLLM returns them."""
    return tokens[: tokens.index(END) + 1] if END in tokens else tokens


def chat_body(**options: Any) -> dict[str, Any]:
    """A greedy chat in which only the teacher sees the answer; `vllm_xargs` are added to theta's messages."""
    arguments = {"theta_messages": json.dumps(THETA_MESSAGES), **options.pop("vllm_xargs", {})}
    return {
        "model": "teacher",
        "messages": TEACHER_MESSAGES,
        "temperature": 0,
        "max_tokens": 48,
        "return_token_ids": True,
        "vllm_xargs": arguments,
        **options,
    }


def ask(server: Server, body: dict[str, Any], path: str = "/v1/chat/completions") -> dict[str, Any]:
    status, answer = server.send(path, body)
    assert status == 200, answer
    return answer
