"""The per-token record over HTTP: `optimal_sampling` in each choice of an answer.

    {"choices": [{"index": 0, "text": "...", "optimal_sampling": {"alpha": [0.41, 0.38], "kl": [...], ...}}]}

Only requests that set `return_alpha` have it. The lists are those of `TokenRecords`; what JSON has no number for (an
infinite divergence, the log-probability of a token that a model cannot draw) is null. A chunk of a stream has the
records of the tokens since the last chunk with any, so all of them in order are those of the whole output, also where
vLLM holds tokens back for a tool call or a stop string.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from functools import cache
from typing import Any

from pydantic import BaseModel, create_model

from vllm_optimal_sampling.front_end.records import JSON_FIELD, TokenRecords


def recorded(response: Any, completions: list[Any]) -> Any:
    """An answer with the record of each completion.

    Args:
        response: of vLLM's server.
        completions: what its choices are made of, in the same order.

    Returns:
        `response`; for models that take no further fields (of `/inference/v1/generate`) one of a class derived from its own.

    """
    records = [getattr(completion, "optimal_sampling", None) for completion in completions]
    if all(record is None for record in records):
        return response
    choices = list(zip(response.choices, records, strict=True))
    if type(response.choices[0]).model_config.get("extra") == "allow":
        for choice, record in choices:
            if record is not None:
                setattr(choice, JSON_FIELD, record.to_json())
        return response
    choice_class, response_class = _recording_classes(type(response.choices[0]), type(response))  # type: ignore[arg-type]
    made = [
        choice_class.model_construct(**dict(choice), **{JSON_FIELD: None if record is None else record.to_json()})
        for choice, record in choices
    ]
    return response_class.model_construct(**{**dict(response), "choices": made})


@cache
def _recording_classes(choice: type[BaseModel], response: type[BaseModel]) -> tuple[type[BaseModel], type[BaseModel]]:
    field: Any = (dict[str, list[Any]] | None, None)
    recording = create_model(choice.__name__, __base__=choice, **{JSON_FIELD: field})
    return recording, create_model(response.__name__, __base__=response, choices=(list[recording], ...))  # type: ignore[valid-type]


class LastOutput:
    """Passes on the outputs of a request, and remembers the last one."""

    def __init__(self, outputs: AsyncIterator[Any]):
        self.outputs = outputs
        self.output: Any = None

    async def __aiter__(self) -> AsyncIterator[Any]:
        async for output in self.outputs:
            self.output = output
            yield output


class StreamRecordBuffer:
    """Passes on the outputs of a stream, and keeps their records until a chunk can carry them.

    Args:
        outputs: what vLLM makes the chunks of: outputs, or (number of the prompt, output) for several prompts.
        num_choices: choices of each prompt.
    """

    def __init__(self, outputs: AsyncIterator[Any], num_choices: int):
        self.outputs = outputs
        self.num_choices = num_choices
        self.records: dict[int, TokenRecords] = {}

    async def __aiter__(self) -> AsyncIterator[Any]:
        async for item in self.outputs:
            prompt, output = item if isinstance(item, tuple) else (0, item)
            for completion in output.outputs:
                records = getattr(completion, "optimal_sampling", None)
                if records is not None and len(records):
                    choice = completion.index + prompt * self.num_choices
                    self.records.setdefault(choice, TokenRecords()).extend(records)
            yield item

    async def add_to(self, chunks: AsyncIterator[str]) -> AsyncIterator[str]:
        """The chunks, `data: {...}` each, with the records that have come since."""
        async for chunk in chunks:
            yield self._added(chunk) if self.records else chunk

    def _added(self, chunk: str) -> str:
        prefix, _, text = chunk.partition("data: ")
        if prefix or not text.startswith("{"):
            return chunk
        message = json.loads(text)
        for choice in message.get("choices") or ():
            # The first chunk of a chat tells the role, and comes before the tokens that it waited for.
            tells_role = "role" in (choice.get("delta") or {}) and choice.get("finish_reason") is None
            records = None if tells_role else self.records.pop(choice["index"], None)
            if records is not None:
                choice[JSON_FIELD] = records.to_json()
        return f"data: {json.dumps(message, ensure_ascii=False, separators=(',', ':'))}\n\n"
