"""Sessions that stream their input (vLLM's resumable requests), in an engine of this process."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

from vllm import LLM, SamplingParams
from vllm.sampling_params import RequestOutputKind

from vllm_optimal_sampling.front_end.records import TokenRecords


@dataclass
class Part:
    """One input of a session, and what was drawn after it."""

    prompt: list[int]
    arguments: dict[str, Any] = field(default_factory=dict)
    tokens: list[int] = field(default_factory=list)
    records: list[TokenRecords | None] = field(default_factory=list)
    """Of each delta."""


def run_session(llm: LLM, name: str, parts: list[Part], *, max_tokens: int) -> None:
    """Give a session its inputs, one after the other, each when what is drawn after the one before it is done.

    Args:
        llm: nothing else may run in it.
        name: of the request.
        parts: their `tokens` and `records` are filled in.
        max_tokens: after each input; all are drawn.
    """
    engine = llm.llm_engine
    for part in parts:
        params = SamplingParams(
            max_tokens=max_tokens,
            seed=3,
            ignore_eos=True,
            output_kind=RequestOutputKind.DELTA,
            extra_args=part.arguments or None,
        )
        request = engine.input_processor.process_inputs(
            name, {"prompt_token_ids": list(part.prompt)}, params, ("generate",), resumable=True
        )
        request.external_req_id = name
        engine.output_processor.add_request(request, None, None, 0)
        # Between processes a message is a copy: both sides go on with the list of the prompt.
        sent = copy.copy(request)
        sent.prompt_token_ids = list(part.prompt)
        engine.engine_core.add_request(sent)
        is_done = False
        while not is_done:
            for output in engine.step():
                (completion,) = output.outputs
                part.tokens += completion.token_ids
                part.records.append(completion.optimal_sampling)  # type: ignore[attr-defined]
                is_done = completion.finish_reason is not None
    engine.abort_request([name], internal=True)
    engine.step()


def context_of(parts: list[Part]) -> list[int]:
    """What the models read before the next part: vLLM leaves out the last token drawn after each."""
    return [token for part in parts for token in [*part.prompt, *part.tokens[:-1]]]
