"""Arguments of optimal sampling that a request gives in the wrong place, where vLLM ignores them.

vLLM's request models take unknown fields and drop them. A client that puts `theta_prompt` beside `messages`, or writes
the openai client's `extra_body` into the JSON itself, would get an answer with status 200 in which theta has read the
teacher's prompt.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from vllm_optimal_sampling.config.settings import ENGINE_SETTINGS, is_enabled
from vllm_optimal_sampling.front_end.http_values import without_effect, wrong_value
from vllm_optimal_sampling.params import ARGUMENTS, ArgumentError, closest

if TYPE_CHECKING:
    from fastapi import Request

LIKENESS = 0.88
"""From which similarity on an unknown field is one of ours, misspelt. vLLM's `chat_template_kwargs` is at 0.87, its
`prompt_token_ids` at 0.84."""

WRAPPERS = {
    "extra_body": "it is an argument of the openai client, which sends what is in it as fields of the request; put vllm_xargs "
    "beside the other fields",
    "extra_args": "over HTTP they are called vllm_xargs",
}
"""Fields that would hold our arguments and mean nothing to vLLM's server."""


def misplaced(fields: Iterable[str]) -> ArgumentError | None:
    """Why a request with these fields, beside `vllm_xargs`, is refused; None where nothing is misplaced.

    Args:
        fields: names at the top level of a request. vLLM's own are never refused.

    """
    for field in sorted(fields):
        if field in WRAPPERS:
            return ArgumentError(field, f"{field} is not a field of a request and would be ignored: {WRAPPERS[field]}")
        if field in ENGINE_SETTINGS:
            return ArgumentError(field, f"{field} is a setting of the engine, not of a request; drop it")
        if field in ARGUMENTS:
            place = json.dumps({"vllm_xargs": {field: "..."}})
            return ArgumentError(
                field, f"{field} is ignored as a field of the request; put it into vllm_xargs: {place}"
            )
        near = closest(field, ARGUMENTS | {"vllm_xargs"}, LIKENESS)
        if field != "vllm_xargs" and (near or field.startswith("theta_")):
            return ArgumentError(
                field, f"{field} is not a field of a request and would be ignored{near or '; drop it'}"
            )
    return None


def refuse_misplaced(fields: Iterable[str] | None) -> None:
    """Refuse a request with misplaced arguments.

    Args:
        fields: the fields that vLLM's request model did not know (`model_extra`), or all fields.

    Raises:
        VLLMValidationError: (HTTP 400) one of them is optimal sampling's, or is meant to hold its arguments.

    """
    _refuse(misplaced(fields or ()))


def _refuse(error: ArgumentError | None) -> None:
    if error is not None:
        from vllm.exceptions import VLLMValidationError

        raise VLLMValidationError(error.message, parameter=error.argument) from error


async def refuse_misplaced_in(raw_request: Request) -> None:
    """The same for a request over HTTP to a server whose engine is asked for optimal sampling.

    Some of vLLM's request models (Anthropic's) keep no unknown fields, so that the body itself is looked at; FastAPI has
    read it by then.
    """
    engine: Any = getattr(raw_request.app.state, "engine_client", None)
    if engine is None or not is_enabled(engine.vllm_config):
        return
    body = await raw_request.json()
    if isinstance(body, dict):
        arguments = body.get("vllm_xargs")
        _refuse(misplaced(body) or wrong_value(arguments) or without_effect(raw_request.url.path, arguments))
