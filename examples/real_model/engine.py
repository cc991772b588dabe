"""Rows and answers from one vLLM engine with this package: the teacher is its model, theta scores, requests say the rest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import measure
import torch
from distillation.rows import finished_or_all, seed_of
from safetensors.torch import load_file
from transformers import AutoTokenizer

from real_model import tasks
from real_model.protocol import CANDIDATES, Sizes, Source
from vllm_optimal_sampling import OptimalSampler

ON_GPU: dict[str, Any] = {
    "dtype": "bfloat16",
    "max_model_len": 768,
    "max_num_seqs": 512,
    "kv_cache_memory_bytes": 7 << 30,
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


@dataclass(frozen=True)
class Text:
    """A completion of the problem with this number, with what was recorded at its tokens, in nats but for alpha."""

    problem: int
    token_ids: list[int]
    is_finished: bool
    kl: list[float]
    """D_KL(q||pi_theta) of what each token was drawn from, before temperature."""
    alpha: list[float]
    theta_logprob: float
    """The sum over the tokens."""


class Engine:
    """The engine of one process."""

    def __init__(self, teacher: Path, theta: Path, sizes: Sizes, eager: bool) -> None:
        self.sizes = sizes
        self.tokenizer = AutoTokenizer.from_pretrained(theta)
        self.theta = theta
        self.is_student = False
        """Whether theta has a student's weights at the moment."""
        settings = ON_GPU if torch.cuda.is_available() else ON_CPU
        if eager:
            settings = settings | {"enforce_eager": True, "compilation_config": {"mode": 0}}
        self.sampler = OptimalSampler(model=str(teacher), theta=str(theta), **settings)

    def load(self, weights: torch.nn.Module | None) -> None:
        """Give theta a student's weights; None: its own again."""
        if weights is not None:
            self.sampler.update_theta(weights)
        elif self.is_student:
            self.sampler.update_theta(load_file(self.theta / "model.safetensors"))
        self.is_student = weights is not None

    def texts(
        self,
        problems: Sequence[tasks.Problem],
        numbers: Sequence[int],
        seed: int,
        alpha_method: str = "fixed",
        alpha: float | None = 0.0,
        temperature: float = 1.0,
        epsilon: float | None = None,
    ) -> list[Text]:
        """A text for each of `numbers`, which are places in `problems`; alpha 0 is theta alone, and 1 the teacher.

        Args:
            seed: of the first; each has the next.
            epsilon: the bound of `kl_budget`, in nats.
        """
        asked = [problems[number] for number in numbers]
        if alpha_method == "fixed":
            self.sampler.set_alpha("fixed", fixed_alpha=alpha)
        else:
            self.sampler.set_alpha(alpha_method, kl_budget=epsilon)
        completions = self.sampler.generate_from_tokens(
            [measure.render(self.tokenizer, tasks.told_messages(problem)) for problem in asked],
            [measure.render(self.tokenizer, tasks.theta_messages(problem)) for problem in asked],
            seed=seed,
            max_tokens=self.sizes.max_tokens,
            temperature=temperature,
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

    def words(self, text: Text) -> str:
        """The text as it is judged."""
        return self.tokenizer.decode(text.token_ids, skip_special_tokens=True)

    def is_right(self, text: Text, problems: Sequence[tasks.Problem]) -> bool:
        return tasks.is_right(self.words(text), problems[text.problem])

    def rows(
        self, problems: Sequence[tasks.Problem], source: Source, draw: int, epsilon: float | None = None
    ) -> list[Text]:
        """The rows of a source: at most `sizes.rows`, fewer where too few texts are right."""
        arguments = {
            "alpha_method": source.alpha_method,
            "alpha": source.alpha,
            "temperature": source.temperature,
            "epsilon": epsilon if source.alpha_method == "kl_budget" else None,
        }
        count = min(self.sizes.rows, len(problems))

        def drawn(numbers: Sequence[int], candidates: int) -> list[list[Text]]:
            seed = seed_of(draw, f"{source.label} {numbers[0]}")
            texts = self.texts(problems, [number for number in numbers for _ in range(candidates)], seed, **arguments)
            return [texts[first : first + candidates] for first in range(0, len(texts), candidates)]

        if source.kept == "first":
            return [text for (text,) in drawn(range(count), 1)]
        if source.kept == "theta_logprob":
            groups = drawn(range(count), CANDIDATES)
            return [max(finished_or_all(group), key=lambda text: text.theta_logprob) for group in groups]
        kept: list[Text] = []
        for first in range(0, len(problems), count):
            for group in drawn(range(first, min(first + count, len(problems))), CANDIDATES):
                kept += [text for text in group if self.is_right(text, problems)][:1]
            if len(kept) >= count:
                break
        return kept[:count]

    def answers(self, problems: Sequence[tasks.Problem]) -> dict[str, dict[str, int]]:
        """By task, how many of theta's greedy texts are right and sound, with the weights it has."""
        texts = self.texts(problems, range(len(problems)), seed=0, temperature=0.0)
        found: dict[str, dict[str, int]] = {}
        for text in texts:
            problem, words = problems[text.problem], self.words(text)
            counts = found.setdefault(problem["task"], {"problems": 0, "right": 0, "sound": 0, "tokens": 0})
            counts["problems"] += 1
            counts["right"] += tasks.is_right(words, problem)
            counts["sound"] += tasks.is_sound(words, problem)
            counts["tokens"] += len(text.token_ids)
        return found


def measures(engine: Engine, texts: Sequence[Text], problems: Sequence[tasks.Problem]) -> Mapping[str, Any]:
    """Counts of rows, and means over their tokens in nats."""
    tokens = sum(len(text.token_ids) for text in texts)
    found: dict[str, Any] = {
        "rows": len(texts),
        "tokens": tokens,
        "cut_off": sum(not text.is_finished for text in texts),
        "right": sum(engine.is_right(text, problems) for text in texts),
        "sound": sum(tasks.is_sound(engine.words(text), problems[text.problem]) for text in texts),
    }
    if tokens:
        found["kl"] = sum(sum(text.kl) for text in texts) / tokens
        found["alpha"] = sum(sum(text.alpha) for text in texts) / tokens
        found["theta_logprob"] = sum(text.theta_logprob for text in texts) / tokens
    return found
