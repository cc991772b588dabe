"""Both models in transformers, one token at a time: batched, with key-value caches, q* by batched bisection."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from bisection import batched
from prompts import Prompt
from transformers import AutoConfig, AutoModelForCausalLM

from methods.base import Counters, Method, Settings


class Reader:
    """One model that reads left-padded prompts and then one token after another."""

    def __init__(self, model: Any, prompts: Sequence[list[int]]) -> None:
        width = max(map(len, prompts))
        self.model = model
        self.cache = None
        device = model.device
        self.mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in prompts], device=device)
        self.tokens = torch.tensor([[0] * (width - len(row)) + row for row in prompts], device=device)
        self.positions = (self.mask.cumsum(1) - 1).clamp(min=0)

    def logits(self) -> torch.Tensor:
        """Of the next token, [rows, vocab]."""
        output = self.model(
            input_ids=self.tokens,
            attention_mask=self.mask,
            position_ids=self.positions,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        )
        self.cache = output.past_key_values
        return output.logits[:, -1].float()

    def read(self, tokens: torch.Tensor) -> None:
        """Take the next token of each row, [rows, 1]."""
        self.tokens = tokens
        self.positions = self.positions[:, -1:] + 1
        self.mask = torch.cat([self.mask, torch.ones_like(tokens)], 1)


class Lockstep(Method):
    name = "lockstep"
    what = "both models in transformers, a token at a time, q* by batched bisection"

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        device = "cuda" if torch.cuda.is_available() else "cpu"
        dtype = getattr(torch, settings.dtype)

        def load(path: str) -> Any:
            if settings.load_format == "dummy":
                with torch.device(device):
                    config = AutoConfig.from_pretrained(path)
                    return AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
            return AutoModelForCausalLM.from_pretrained(path, dtype=dtype).to(device).eval()

        self.teacher, self.theta = load(settings.teacher), load(settings.theta)
        self.vocab = min(self.teacher.config.vocab_size, self.theta.config.vocab_size)
        self.steps = 0

    @torch.inference_mode()
    def generate(self, prompts: Sequence[Prompt], max_tokens: int, seed: int) -> list[list[int]]:
        teacher = Reader(self.teacher, [prompt.teacher for prompt in prompts])
        theta = Reader(self.theta, [prompt.theta for prompt in prompts])
        generator = torch.Generator(device=self.teacher.device).manual_seed(seed)
        drawn = []
        for _ in range(max_tokens):
            log_q = batched(teacher.logits()[:, : self.vocab], theta.logits()[:, : self.vocab])
            tokens = torch.multinomial((log_q / self.settings.temperature).softmax(-1), 1, generator=generator)
            drawn.append(tokens)
            teacher.read(tokens)
            theta.read(tokens)
            self.steps += 1
        return torch.cat(drawn, 1).tolist()

    def counters(self) -> Counters:
        return Counters(steps=self.steps)

    def memory(self) -> dict[str, float]:
        models = (self.teacher, self.theta)
        weights = sum(tensor.nbytes for model in models for tensor in model.parameters())
        return super().memory() | {"weights": weights / 2**30}
