"""Samples from a running `vllm serve` with the plugin, through the `openai` client."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import urllib.request
from collections.abc import Callable
from typing import Any

import openai

from vllm_optimal_sampling.argument_checks import LARGEST_COUNT
from vllm_optimal_sampling.data.generate.errors import RowError, RunError, SettingsError
from vllm_optimal_sampling.data.generate.jobs import Sample
from vllm_optimal_sampling.data.generate.progress import Figures
from vllm_optimal_sampling.data.generate.samplers import Prepared
from vllm_optimal_sampling.data.generate.settings import Settings
from vllm_optimal_sampling.data.generate.templates import Prompts

MAX_IN_FLIGHT = 256
RETRIES = 5
"""With the client's growing pauses, some 30 s: a server that restarts behind a balancer is waited for."""
CONNECT_SECONDS = 10.0


WITHOUT_EFFECT = {"support_top_k": LARGEST_COUNT, "support_top_p": 1.0, "max_js_divergence": 1.0}
"""What switches these off whatever the server's defaults are: over HTTP there is no null for it."""


def _root(settings: Settings) -> str:
    assert settings.endpoint is not None
    return settings.endpoint.rstrip("/").removesuffix("/v1")


def _options(settings: Settings) -> dict[str, Any]:
    return {
        "base_url": f"{_root(settings)}/v1",
        "api_key": os.environ.get("OPENAI_API_KEY") or "none",
        "timeout": openai.Timeout(None, connect=CONNECT_SECONDS),  # a long sample takes as long as it takes
    }


def _body(settings: Settings) -> dict[str, Any]:
    return {
        "model": settings.teacher,
        "max_tokens": settings.max_tokens,
        "temperature": settings.temperature,
        "top_p": settings.top_p,
        "stop": list(settings.stop) or None,
        "n": settings.best_of or 1,
    }


def _extra_body(settings: Settings) -> dict[str, Any]:
    # Written out though they are vLLM's defaults: a server takes others from the model's generation_config.json.
    defaults = {"repetition_penalty": 1.0, "return_token_ids": True}
    variables = settings.teacher_chat_template_kwargs
    teacher = {"chat_template_kwargs": dict(variables)} if variables else {}
    return {"top_k": settings.top_k, "min_p": settings.min_p, **defaults, **teacher, **settings.sampling}


def with_served_model(settings: Settings) -> Settings:
    """The settings with the served model's name as `teacher` where it was left out.

    Raises:
        SettingsError: there is no such server, or it samples without theta.

    """
    client = openai.OpenAI(**_options(settings), max_retries=0)
    try:
        served = [model.id for model in client.models.list()]
        name = settings.teacher or served[0]
        # A server without the plugin takes and ignores the arguments: this one is refused where they are read.
        probe: Any = client.completions.create
        body = _body(settings) | {"model": name, "max_tokens": 1}
        probe(**body, prompt="x", extra_body={**_extra_body(settings), "vllm_xargs": {"alpha": 2}})
    except openai.BadRequestError as error:
        if error.param == "alpha":
            return dataclasses.replace(settings, teacher=name)
        raise SettingsError(f"endpoint={settings.endpoint!r} refuses the sampling options: {_reason(error)}") from None
    except openai.NotFoundError:
        raise SettingsError(
            f"teacher={settings.teacher!r} is not served by {settings.endpoint}; it has {', '.join(served)}"
        ) from None
    except openai.OpenAIError as error:
        raise SettingsError(f"endpoint={settings.endpoint!r} does not answer: {_reason(error)}") from None
    raise SettingsError(
        f"endpoint={settings.endpoint!r} samples without theta; start it with --logits-processor optimal_sampling"
    )


def _reason(error: openai.OpenAIError) -> str:
    body = getattr(error, "body", None)
    text = body.get("message") if isinstance(body, dict) else None
    return " ".join(str(text or error).split())


class Endpoint:
    """A server, for one run.

    Args:
        settings: the run's, with the served model as `teacher`. With `theta` its tokenizer is loaded here, and rows
            have theta's prompt as tokens; without it, the server makes them and does not tell.

    """

    def __init__(self, settings: Settings) -> None:
        self.max_in_flight = MAX_IN_FLIGHT
        self._settings = settings
        self._client = openai.AsyncOpenAI(**_options(settings), max_retries=RETRIES)
        self._tokenizer: Any = None
        if settings.theta is not None:
            from transformers import AutoTokenizer

            try:
                self._tokenizer = AutoTokenizer.from_pretrained(settings.theta)
            except (OSError, ValueError) as error:
                raise SettingsError(f"theta={settings.theta!r} has no tokenizer that can be loaded: {error}") from None
        self._arguments = WITHOUT_EFFECT | settings.optimal_sampling.to_extra_args(with_defaults=True)
        if settings.selection is not None:
            self._arguments["return_alpha"] = True  # what candidates are compared by
        self._body, self._extra_body = _body(settings), _extra_body(settings)

    async def prepare(self, prompts: Prompts) -> Prepared:
        theta_ids = None if self._tokenizer is None else self._theta_ids(prompts)
        if theta_ids is not None:
            arguments: dict[str, Any] = {"theta_prompt_token_ids": theta_ids}
        elif isinstance(prompts.theta, str):
            arguments = {"theta_prompt": prompts.theta}
        else:
            arguments = {"theta_messages": json.dumps(prompts.theta, ensure_ascii=False)}
            if self._settings.theta_chat_template_kwargs:
                variables = json.dumps(self._settings.theta_chat_template_kwargs, ensure_ascii=False)
                arguments["theta_chat_template_kwargs"] = variables
        return Prepared((prompts.teacher, arguments), theta_ids)

    def _theta_ids(self, prompts: Prompts) -> list[int]:
        try:
            if isinstance(prompts.theta, str):
                return list(self._tokenizer.encode(prompts.theta))
            return list(
                self._tokenizer.apply_chat_template(
                    prompts.theta,
                    tokenize=True,
                    add_generation_prompt=True,
                    return_dict=False,
                    **self._settings.theta_chat_template_kwargs,
                )
            )
        except Exception as error:  # templates raise whatever they like about a conversation
            raise RowError(f"theta's tokenizer refused its prompt: {error}") from None

    async def sample(self, prepared: Prepared, request_id: str, seed: int | None) -> list[Sample]:
        teacher, arguments = prepared.request
        extra_body = {**self._extra_body, "vllm_xargs": {**self._arguments, **arguments}}
        body: dict[str, Any] = {**self._body, "seed": seed, "extra_body": extra_body}
        if isinstance(teacher, str):
            answer = await self._asked(self._client.completions.create, prompt=teacher, **body)
        else:
            answer = await self._asked(self._client.chat.completions.create, messages=teacher, **body)
        return [
            Sample(
                text=choice.text if isinstance(teacher, str) else _text_of(choice.message),
                token_ids=list(choice.token_ids),
                finish_reason=choice.finish_reason,
                record=getattr(choice, "optimal_sampling", None),
            )
            for choice in sorted(answer.choices, key=lambda one: one.index)
        ]

    async def _asked(self, create: Callable[..., Any], **body: Any) -> Any:
        try:
            return await create(**body)
        except openai.APIConnectionError as error:
            raise RunError(
                f"{self._settings.endpoint} does not answer any more ({_reason(error)}). Nothing that was written is "
                "lost: run the same command again when it does"
            ) from None
        except (openai.AuthenticationError, openai.PermissionDeniedError, openai.NotFoundError) as error:
            raise RunError(f"{self._settings.endpoint} refuses to answer: {_reason(error)}") from None
        except openai.APIStatusError as error:
            raise RowError(_reason(error)) from None

    async def figures(self) -> Figures:
        from prometheus_client.parser import text_string_to_metric_families

        def ask() -> str:
            with urllib.request.urlopen(f"{_root(self._settings)}/metrics", timeout=CONNECT_SECONDS) as answer:
                return str(answer.read().decode())

        figures = Figures()
        try:
            text = await asyncio.to_thread(ask)
        except OSError:  # a server may have them switched off
            return figures
        for family in text_string_to_metric_families(text):
            for name, _, value, *_ in family.samples:
                if name == "vllm:optimal_sampling_alpha_sum":
                    figures.alpha_sum += value
                elif name == "vllm:optimal_sampling_alpha_count":
                    figures.alpha_count += value
                elif name == "vllm:spec_decode_num_draft_tokens_total":
                    figures.drafted += value
                elif name == "vllm:spec_decode_num_accepted_tokens_total":
                    figures.accepted += value
                elif name == "vllm:generation_tokens_total":
                    figures.tokens += value
        return figures

    async def close(self) -> None:
        await self._client.close()


def _text_of(message: Any) -> str:
    """The whole text of a chat's message."""
    if message.tool_calls or getattr(message, "reasoning", None):
        raise RunError(
            "the server takes the reasoning or tool calls out of its answers, and rows need the whole text; start "
            "it without --reasoning-parser and --tool-call-parser, and run the same command again"
        )
    return message.content or ""
