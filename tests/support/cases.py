"""Batches in which requests can spoil one another: the same prompts with other thetas, opt-outs, every length."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

from vllm import LLM, RequestOutput, SamplingParams
from vllm.lora.request import LoRARequest

from vllm_optimal_sampling import OptimalSamplingParams
from vllm_optimal_sampling.alpha_methods import ALPHA_METHODS


@dataclass(frozen=True)
class Case:
    prompt: list[int]
    theta_prompt: list[int] | None  # None: the teacher's
    arguments: dict[str, Any] = field(default_factory=dict)
    image: Any = None
    """Of PIL's, in the teacher's prompt."""
    video: Any = None
    """Frames and metadata as vLLM takes them, in the teacher's prompt."""

    def extra_args(self) -> dict[str, Any]:
        theta_prompt = {} if self.theta_prompt is None else {"theta_prompt_token_ids": self.theta_prompt}
        return OptimalSamplingParams(**theta_prompt, **self.arguments).to_extra_args()


KL_SYMMETRY: dict[str, Any] = {}
THETA_ALONE = {"alpha_method": "fixed", "alpha": 0.0}
TEACHER_ALONE = {"alpha_method": "fixed", "alpha": 1.0}
EVERY_METHOD: list[dict[str, Any]] = [
    {"alpha_method": name, **({"kl_budget": 0.02} if name == "kl_budget" else {})} for name in ALPHA_METHODS
]
"""The arguments of each way to find alpha."""
OPTED_OUT = {"optimal_sampling": False}


def token_ids(rng: random.Random, length: int) -> list[int]:
    return [rng.randrange(1, 400) for _ in range(length)]


def mixed_batch(seed: int, long: int = 150) -> list[Case]:
    """Twelve requests: theta's prompt shorter, equal, longer, twice as long; neighbours on the same prompts; opt-outs.

    Lengths lie around the block size (32) and its multiples.
    """
    rng = random.Random(seed)
    shared, short = token_ids(rng, long), token_ids(rng, 20)
    other = shared[:64] + token_ids(rng, 30)
    return [
        Case(shared, short, KL_SYMMETRY),
        Case(shared, short, THETA_ALONE),
        Case(shared, short, TEACHER_ALONE),
        Case(shared, other, KL_SYMMETRY),
        Case(shared, None, KL_SYMMETRY),
        Case(shared, None, OPTED_OUT),
        Case(token_ids(rng, 25), token_ids(rng, 9), THETA_ALONE),
        Case(short, shared, KL_SYMMETRY),
        Case(token_ids(rng, 33), token_ids(rng, 66), THETA_ALONE),
        Case(token_ids(rng, 64), token_ids(rng, 32), KL_SYMMETRY),
        Case(token_ids(rng, 1), token_ids(rng, 40), KL_SYMMETRY),
        Case(token_ids(rng, 31), token_ids(rng, 1), THETA_ALONE),
    ]


def generate(
    llm: LLM,
    cases: list[Case],
    *,
    max_tokens: int,
    temperature: float = 1.0,
    seed: int = 0,
    samples: list[int] | None = None,
    lora_request: LoRARequest | None = None,
    **options: Any,
) -> list[RequestOutput]:
    """Run the cases as one batch, with so many `samples` of each. Other options go to `SamplingParams`."""
    params = [
        SamplingParams(
            max_tokens=max_tokens,
            temperature=temperature,
            seed=seed * 1000 + i,
            extra_args=case.extra_args(),
            **{"ignore_eos": True, "n": samples[i] if samples is not None else 1, **options},
        )
        for i, case in enumerate(cases)
    ]
    prompts = [
        {"prompt_token_ids": case.prompt}
        | ({"multi_modal_data": {"image": case.image}} if case.image is not None else {})
        | ({"multi_modal_data": {"video": case.video}} if case.video is not None else {})
        for case in cases
    ]
    return llm.generate(prompts, params, use_tqdm=False, lora_request=lora_request)


def theta_prompts(cases: list[Case], outputs: list[RequestOutput]) -> dict[str, list[int] | None]:
    """Theta's prompt as given, by the request id that vLLM made (it appends a suffix of its own)."""
    return {f"{output.request_id}-": case.theta_prompt for case, output in zip(cases, outputs, strict=True)}
