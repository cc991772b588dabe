"""The reference implementation's algorithm, written anew from its description: a second engine in a logits processor.

For every token of every request the processor asks a whole engine of theta for one token, with theta's prompt and what
was generated so far, and takes its 20 likeliest log-probabilities. Each row is then solved by itself: probabilities
clamped at 1e-10, twelve steps of bisection that each wait for the device. Theta's engine has prefix caching, so its
prompt is not computed again.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from bisection import clamped_row
from prompts import Prompt
from vllm import LLM, SamplingParams
from vllm.v1.worker.gpu.sample.logits_processor.interface import LogitsContext, LogitsProcessor

from methods.base import Settings
from methods.engines import Engine, engine_options

TOP = 20
THETA_PROMPT = "original_theta_prompt"


class SecondEngineProcessor(LogitsProcessor):
    """Replaces the teacher's rows by log q* over theta's 20 likeliest tokens."""

    theta: ClassVar[LLM]

    def __init__(self, vllm_config: Any, req_states: Any) -> None:
        super().__init__(vllm_config, req_states)
        self.req_states = req_states
        self.theta_prompts: dict[int, list[int]] = {}

    def add_request(self, req_idx: int, sampling_params: SamplingParams) -> bool:
        self.theta_prompts[req_idx] = (sampling_params.extra_args or {})[THETA_PROMPT]
        return True

    def apply(self, logits: torch.Tensor, ctx: LogitsContext) -> torch.Tensor:
        slots = ctx.idx_mapping_np.tolist()
        tokens = self.req_states.all_token_ids.gpu
        lengths = self.req_states.total_len.gpu.tolist()
        inputs: list[Any] = [
            {
                "prompt_token_ids": self.theta_prompts[slot]
                + tokens[slot, int(self.req_states.prompt_len.np[slot]) : lengths[slot]].tolist()
            }
            for slot in slots
        ]
        one_token = SamplingParams(max_tokens=1, temperature=1.0, logprobs=TOP, detokenize=False)
        outputs = self.theta.generate(inputs, one_token, use_tqdm=False)
        for row, output in enumerate(outputs):
            known = output.outputs[0].logprobs[0]
            ids = torch.tensor(list(known), device=logits.device)
            theta = torch.zeros_like(logits[row])
            theta[ids] = torch.tensor([entry.logprob for entry in known.values()], device=logits.device).exp()
            logits[row] = clamped_row(theta, logits[row].softmax(-1))
        return logits


class ReferenceImplementation(Engine):
    name = "original"
    what = (
        "the reference implementation's algorithm: a second engine asked for one token a step, bisection row by row (an "
        "approximation of q*)"
    )

    def __init__(self, settings: Settings) -> None:
        options = {**engine_options(settings), "enable_prefix_caching": True, "max_logprobs": TOP}
        SecondEngineProcessor.theta = LLM(settings.theta, **options)
        super().__init__(settings)

    def options(self, settings: Settings) -> dict[str, Any]:
        return {"logits_processors": [SecondEngineProcessor]}

    def extra_args(self, prompt: Prompt) -> dict[str, Any]:
        return {THETA_PROMPT: prompt.theta}

    def close(self) -> None:
        super().close()
        SecondEngineProcessor.theta.llm_engine.engine_core.shutdown()
