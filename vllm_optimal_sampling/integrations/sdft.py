"""TRL's `SDFTTrainer` (experimental) with completions from q* instead of from the student.

    from vllm_optimal_sampling.integrations.sdft import OptimalSamplingSDFTTrainer

    trainer = OptimalSamplingSDFTTrainer(student, sampler=sampler, args=SDFTConfig(...), train_dataset=...)

SDFT ("Self-Distillation Enables Continual Learning", arXiv:2601.19897) draws from the student, and moves it towards a teacher
that reads the row's `privileged_context`. Here both models draw each token. Written against TRL 1.16.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedModel
from trl.experimental.sdft import SDFTTrainer
from trl.trainer.utils import pad

from vllm_optimal_sampling.argument_checks import ArgumentError
from vllm_optimal_sampling.integrations.theta_ids import theta_token_ids
from vllm_optimal_sampling.integrations.trl import Student, draw, logprobs_drawn_from, token_ids
from vllm_optimal_sampling.offline.sampler import OptimalSampler


class OptimalSamplingSDFTTrainer(SDFTTrainer):
    """`SDFTTrainer` whose completions are drawn from q*.

    The sampler's teacher reads what the trainer's own teacher reads (`teacher_prompt_template`), and theta is the trainer's
    model of this step. The loss is TRL's. Its importance weights (`distillation_is_clip`) compare the student with what was
    drawn from: `old_per_token_logps` are log q*.

    Args:
        *args, **kwargs: as `SDFTTrainer` takes them, with `use_vllm` and `generate_from_teacher` False.
        sampler: its theta is the trainer's model, and its teacher's weights stay what they are.
        teacher: the model that the loss moves the student to: the sampler's teacher, as transformers loads it. It has
            the student's vocabulary. None: TRL's own, which is made of the student (`teacher_model_kind`).

    Raises:
        ArgumentError: (a ValueError) an argument asks for other completions, or the trainer runs in several processes.

    """

    def __init__(
        self, *args: Any, sampler: OptimalSampler, teacher: PreTrainedModel | None = None, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        for name in ("use_vllm", "generate_from_teacher"):
            if getattr(self.args, name):
                raise ArgumentError(name, f"{name}=True asks for other completions than those of q*; set it to False")
        if teacher is not None:
            self._take_teacher(teacher)
        self.sampler = sampler
        self.student = Student(sampler, self)
        self._teacher_prompts: list[list[int]] = []
        self._logprobs: list[torch.Tensor] = []

    def _take_teacher(self, teacher: PreTrainedModel) -> None:
        if self.args.teacher_model_kind != "base" or hasattr(self.model, "peft_config"):
            raise ArgumentError(
                "teacher",
                'a teacher of its own stands in the place of the student as it was at first, teacher_model_kind="base", and '
                "not beside an adapter, whose teacher is the model without it; leave teacher out",
            )
        theirs, ours = teacher.config.vocab_size, self.model.config.vocab_size
        if theirs != ours:
            raise ArgumentError(
                "teacher",
                f"the teacher's rows have {theirs} logits and the student's {ours}, and TRL's loss compares them one by one; "
                "give a teacher with the student's vocabulary",
            )
        self.teacher_model = self.accelerator.prepare_model(teacher.requires_grad_(False), evaluation_mode=True)
        self.teacher_model.eval()

    def sample_rollouts(self, inputs: list[dict[str, Any]]) -> dict[str, torch.Tensor | Any]:
        """TRL's own, with the teacher's prompts of the batch at hand."""
        self._teacher_prompts = self.teacher_prompts(inputs)
        return super().sample_rollouts(inputs)

    def teacher_prompts(self, inputs: list[dict[str, Any]]) -> list[list[int]]:
        """What the sampler's teacher reads of some rows, as token ids."""
        teachers = self.teacher_context_builder.select_generation_prompts(
            [row["prompt"] for row in inputs], [row.get("privileged_context") for row in inputs]
        )
        return token_ids(self.sampler.llm.get_tokenizer(), teachers, **self.chat_template_kwargs)

    def _generate(self, prompt_ids: list[list[int]]) -> tuple[list[list[int]], list[list[int]]]:
        self.student.bring_to_engine()
        completions = draw(self.sampler, self, self._teacher_prompts, prompt_ids)
        self._logprobs = [torch.tensor(logprobs_drawn_from(self.args, completion)) for completion in completions]
        return prompt_ids, [theta_token_ids(self.sampler.llm, completion.token_ids) for completion in completions]

    def _compute_rollout_logps(
        self,
        prompt_ids: torch.Tensor,
        prompt_mask: torch.Tensor,
        completion_ids: torch.Tensor,
        completion_mask: torch.Tensor,
    ) -> torch.Tensor:
        """What TRL divides the student's probabilities by: those that the tokens were drawn with, [batch, tokens]."""
        return pad(self._logprobs, padding_value=0, padding_side="right").to(completion_ids.device)
