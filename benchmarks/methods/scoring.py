"""Theta that scores: the teacher itself, in one forward with it or in two, or another model; and the teacher clocked alike."""

from __future__ import annotations

import time
from typing import Any

import torch
from prompts import Prompt

from methods.base import Settings
from methods.engines import Engine, find_runner


class Clocked(Engine):
    """Adds up the processor time in the model's modules and, without a GPU, in Triton's interpreter, which is most there."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.seconds = {"model": 0.0, "interpreter": 0.0}
        model = find_runner(self.llm).model
        for name in ("forward", "compute_logits"):
            setattr(model, name, self._clocked("model", getattr(model, name)))
        if not torch.cuda.is_available():
            from triton.runtime.interpreter import GridExecutor

            GridExecutor.__call__ = self._clocked("interpreter", GridExecutor.__call__)

    def _clocked(self, part: str, function: Any) -> Any:
        def clocked(*args: Any, **kwargs: Any) -> Any:
            begin = time.process_time()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds[part] += time.process_time() - begin

        return clocked

    def seconds_by_part(self) -> dict[str, float]:
        """Of "model" and "interpreter", since the start."""
        return dict(self.seconds)


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


class Scored(Engine):
    name = "scored"
    what = "q*, this package: theta scores, a forward of its own behind the teacher's in every step, and nothing drafts"

    def options(self, settings: Settings) -> dict[str, Any]:
        theta = {"optimal_sampling": {"theta": settings.theta}}
        return {"logits_processors": ["optimal_sampling"], "additional_config": theta}

    def extra_args(self, prompt: Prompt) -> dict[str, Any]:
        return {"theta_prompt_token_ids": prompt.theta}
