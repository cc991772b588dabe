"""Rows and answers by transformers, both models in lockstep: for a CPU, where the engine's kernels would be interpreted.

What is drawn from is `distillation.mixtures`, of which a test shows that the engine has the same q at every row.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import measure
import torch
from distillation.lockstep import complete
from distillation.mixtures import mixed
from transformers import AutoModelForCausalLM, PreTrainedModel

from real_model import tasks
from real_model.drawer import Drawer, Rule, Text
from real_model.grouped_attention import on_cpu
from real_model.protocol import Sizes

BATCH = 64


def load(folder: Path) -> PreTrainedModel:
    """A model to be read, in bfloat16 as in the engine."""
    return on_cpu(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval())


class Lockstep(Drawer):
    """Theta and the teacher as plain models."""

    def __init__(self, teacher: Path, theta: Path, sizes: Sizes) -> None:
        super().__init__(theta, sizes)
        self.teacher_model = load(teacher)
        self.own = self.theta_model = load(theta)

    def load(self, weights: PreTrainedModel | None) -> None:
        self.theta_model = self.own if weights is None else on_cpu(copy.deepcopy(weights).to(torch.bfloat16).eval())

    def reader(self, problems: Sequence[tasks.Problem], who: Literal["theta", "teacher"]) -> measure.Reader:
        """One model before each problem as it is put to it."""
        if who == "theta":
            return measure.Reader(self.theta_model, self.tokenizer, [tasks.theta_messages(one) for one in problems])
        return measure.Reader(self.teacher_model, self.tokenizer, [tasks.shown_messages(one) for one in problems])

    def alone(self, problems: Sequence[tasks.Problem], who: Literal["theta", "teacher"], seed: int) -> list[str]:
        generator = torch.Generator().manual_seed(seed)

        def choose(_: torch.Tensor, logprobs: torch.Tensor) -> torch.Tensor:
            return torch.multinomial(logprobs.exp(), 1, generator=generator)[:, 0]

        drawn: list[list[int]] = []
        for first in range(0, len(problems), BATCH):
            readers = [self.reader(problems[first : first + BATCH], who)]
            drawn += complete(readers, choose, self.tokenizer.eos_token_id, self.sizes.max_tokens)
        return [self.tokenizer.decode(ids, skip_special_tokens=True) for ids in drawn]

    def texts(self, problems: Sequence[tasks.Problem], numbers: Sequence[int], seed: int, rule: Rule) -> list[Text]:
        generator = torch.Generator().manual_seed(seed)
        found: list[Text] = []
        for first in range(0, len(numbers), BATCH):
            found += self._batch(problems, numbers[first : first + BATCH], generator, rule)
        return found

    def _batch(
        self, problems: Sequence[tasks.Problem], numbers: Sequence[int], generator: torch.Generator, rule: Rule
    ) -> list[Text]:
        kls: list[list[float]] = [[] for _ in numbers]
        alphas: list[list[float]] = [[] for _ in numbers]
        logprobs = torch.zeros(len(numbers), dtype=torch.float64)

        def choose(places: torch.Tensor, theta: torch.Tensor, teacher: torch.Tensor | None = None) -> torch.Tensor:
            if teacher is None:
                log_q, weight = theta, torch.zeros_like(theta[:, 0])
            else:
                made = mixed(rule.alpha_method, theta, teacher, rule.alpha, rule.epsilon)
                log_q, weight = made.log_q, made.alpha
            divergence = (log_q.exp() * (log_q - theta)).sum(-1)
            if rule.temperature == 0:
                tokens = log_q.argmax(-1, keepdim=True)
            else:
                tokens = torch.multinomial((log_q / rule.temperature).softmax(-1), 1, generator=generator)
            for place, kl, one in zip(places.tolist(), divergence.tolist(), weight.tolist(), strict=True):
                kls[place].append(kl)
                alphas[place].append(one)
            logprobs[places] += theta.gather(1, tokens)[:, 0]
            return tokens[:, 0]

        asked, end = [problems[number] for number in numbers], self.tokenizer.eos_token_id
        readers = [self.reader(asked, "theta")]
        if (rule.alpha_method, rule.alpha) != ("fixed", 0.0):
            readers.append(self.reader(asked, "teacher"))
        drawn = complete(readers, choose, end, self.sizes.max_tokens)
        scored = zip(numbers, drawn, kls, alphas, logprobs.tolist(), strict=True)
        return [Text(number, ids, ids[-1] == end, kl, weights, total) for number, ids, kl, weights, total in scored]
