"""Theta that scores and is the teacher itself: one forward for both, or two; and the teacher alone, clocked alike."""

from __future__ import annotations

import time
from typing import Any

from prompts import Prompt

from methods.base import Settings
from methods.engines import Engine, find_runner


class Clocked(Engine):
    """Adds up the processor time in the model's modules, which without a GPU is little beside Triton's interpreter."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.seconds = 0.0
        model = find_runner(self.llm).model
        for name in ("forward", "compute_logits"):
            setattr(model, name, self._clocked(getattr(model, name)))

    def _clocked(self, function: Any) -> Any:
        def clocked(*args: Any, **kwargs: Any) -> Any:
            begin = time.process_time()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds += time.process_time() - begin

        return clocked

    def model_seconds(self) -> float:
        """Since the start."""
        return self.seconds


class Alone(Clocked):
    name = "self_teacher"
    what = "the teacher alone, in vLLM, its model clocked"


class OneForward(Clocked):
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
