"""Theta that scores and is the teacher itself: one forward for both, or two."""

from __future__ import annotations

from typing import Any

from prompts import Prompt

from methods.base import Settings
from methods.engines import Engine, find_runner


class OneForward(Engine):
    name = "self"
    what = "q* with theta the teacher itself, this package: decode steps are one forward for both"

    def options(self, settings: Settings) -> dict[str, Any]:
        return {"logits_processors": ["optimal_sampling"], "additional_config": {"optimal_sampling": {"theta": "self"}}}

    def extra_args(self, prompt: Prompt) -> dict[str, Any]:
        return {"theta_prompt_token_ids": prompt.theta}

    def scorer_steps(self) -> dict[str, int]:
        """How theta's part of the steps was taken, since the start."""
        return dict(vars(find_runner(self.llm).theta.steps))


class TwoForwards(OneForward):
    name = "self_apart"
    what = "the same with a forward of theta's own in every step"

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        theta = find_runner(self.llm).theta
        theta._fused_rows = lambda batch: None
