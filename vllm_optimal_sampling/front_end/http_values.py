"""Values that a request over HTTP gives in `vllm_xargs`, before vLLM's server reads them.

It takes numbers, texts and flat lists of them there. What is none of them it refuses in a line for each type that it tried,
and true and false become the numbers 1 and 0.
"""

from __future__ import annotations

import json
from typing import Any

from vllm_optimal_sampling.argument_checks import kind_of, wrong_type
from vllm_optimal_sampling.params import ArgumentError

NUMBERS = (
    *("alpha", "alpha_min", "alpha_max", "kl_budget", "js_sensitivity", "alpha_steps"),
    *("support_top_k", "support_top_p", "teacher_only_tokens", "max_js_divergence", "return_top_k"),
)
"""The arguments that are numbers."""

JSON_TEXTS = {
    "theta_messages": ("list of messages", "messages"),
    "theta_chat_template_kwargs": ("object", "variables"),
}
"""The arguments that are JSON text over HTTP: what each is, and a name for it in a client's program."""

WITHOUT_RECORDS = ("/v1/responses", "/v1/messages")
"""Paths whose answers have no place for the per-token record."""


def wrong_value(arguments: object) -> ArgumentError | None:
    """Why a request with this `vllm_xargs` is refused; None where vLLM takes every value as what it is."""
    if arguments is None:
        return None
    if not isinstance(arguments, dict):
        place = json.dumps({"vllm_xargs": {"theta_prompt": "..."}})
        return ArgumentError("vllm_xargs", f"vllm_xargs is {kind_of(arguments)}, not an object; send it as in {place}")
    for name, value in arguments.items():
        error = _wrong_kind(name, value) or _bool_as_number(name, value)
        if error is not None:
            return error
    return None


def _wrong_kind(name: str, value: object) -> ArgumentError | None:
    if value is None:
        return ArgumentError(name, f"vllm_xargs.{name} is null, which is no value over HTTP; leave {name} out")
    entries = value if isinstance(value, list) else [value]
    is_flat = set(map(type, entries)) <= {str, int, float, bool}
    if name in JSON_TEXTS and isinstance(value, (list, dict)):
        what, variable = JSON_TEXTS[name]
        return ArgumentError(
            name,
            f"vllm_xargs.{name} is {kind_of(value)}, and vLLM's server takes numbers, texts and flat lists there; send the "
            f"{what} as JSON text: json.dumps({variable}) in Python, JSON.stringify({variable}) in JavaScript",
        )
    if is_flat:
        return None
    inside = next(entry for entry in entries if not isinstance(entry, (str, int, float)))
    what = kind_of(value) if inside is value else f"{kind_of(value)} with {kind_of(inside)} in it"
    return ArgumentError(name, f"vllm_xargs.{name} is {what}; give a number, a text or a flat list of them")


def _bool_as_number(name: str, value: object) -> ArgumentError | None:
    if name in NUMBERS:
        for number in value if isinstance(value, list) else (value,):
            if isinstance(number, bool):
                return wrong_type(name, number, "a number")
    if name == "theta_prompt_token_ids" and isinstance(value, list) and bool in set(map(type, value)):
        position = next(place for place, token in enumerate(value) if isinstance(token, bool))
        return wrong_type(f"{name}[{position}]", value[position], "a whole number", argument=name)
    return None


def without_effect(path: str, arguments: Any) -> ArgumentError | None:
    """Why a request is refused that asks for the record where its answer cannot have it; None where it may.

    Args:
        path: of the request's URL.
        arguments: its `vllm_xargs`, of which `wrong_value` has nothing to say.

    """
    value = (arguments or {}).get("return_alpha")
    if value and path.endswith(WITHOUT_RECORDS):
        return ArgumentError(
            "return_alpha",
            f"return_alpha has no effect here: an answer of {path} has no place for the record; ask /v1/chat/completions or "
            "/v1/completions, or drop it",
        )
    return None
