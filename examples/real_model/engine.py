"""Rows and answers from one vLLM engine with this package: the teacher is its model, theta scores, requests say the rest."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import measure
import torch
from safetensors.torch import load_file
from transformers import PreTrainedModel

from real_model import tasks
from real_model.drawer import Drawer, Rule, Text
from real_model.protocol import Sizes
from vllm_optimal_sampling import OptimalSampler

ON_GPU: dict[str, Any] = {
    "dtype": "bfloat16",
    "max_model_len": 768,
    "max_num_seqs": 512,
    "kv_cache_memory_bytes": 11 << 30,
    "gpu_memory_utilization": 0.05,  # only checked where the cache is given in bytes, and several engines share the card
    "compilation_config": {"mode": 0, "cudagraph_mode": "FULL_DECODE_ONLY"},  # starts in seconds
}
ON_CPU: dict[str, Any] = {
    "dtype": "float32",
    "enforce_eager": True,
    "max_model_len": 1024,
    "max_num_seqs": 8,
    "kv_cache_memory_bytes": 1 << 29,
}


class Engine(Drawer):
    """The engine of one process."""

    def __init__(self, teacher: Path, theta: Path, sizes: Sizes, eager: bool) -> None:
        super().__init__(theta, sizes)
        self.is_student = False
        """Whether theta has a student's weights at the moment."""
        settings = ON_GPU if torch.cuda.is_available() else ON_CPU
        if eager:
            settings = settings | {"enforce_eager": True, "compilation_config": {"mode": 0}}
        self.sampler = OptimalSampler(model=str(teacher), theta=str(theta), **settings)

    def load(self, weights: PreTrainedModel | None) -> None:
        if weights is not None:
            self.sampler.update_theta(weights)
        elif self.is_student:
            self.sampler.update_theta(load_file(self.theta / "model.safetensors"))
        self.is_student = weights is not None

    def texts(self, problems: Sequence[tasks.Problem], numbers: Sequence[int], seed: int, rule: Rule) -> list[Text]:
        asked = [problems[number] for number in numbers]
        if rule.alpha_method == "fixed":
            self.sampler.set_alpha("fixed", fixed_alpha=rule.alpha)
        else:
            self.sampler.set_alpha(rule.alpha_method, kl_budget=rule.epsilon)
        completions = self.sampler.generate_from_tokens(
            [measure.render(self.tokenizer, tasks.shown_messages(problem)) for problem in asked],
            [measure.render(self.tokenizer, tasks.theta_messages(problem)) for problem in asked],
            seed=seed,
            max_tokens=self.sizes.max_tokens,
            temperature=rule.temperature,
        )
        return [
            Text(
                number,
                list(one.token_ids),
                one.finish_reason == "stop",
                list(one.optimal_sampling.kl),
                list(one.optimal_sampling.alpha),
                sum(one.optimal_sampling.theta_logprob),
            )
            for number, one in zip(numbers, completions, strict=True)
        ]
