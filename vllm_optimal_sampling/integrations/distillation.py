"""TRL's `DistillationTrainer` with completions from q* instead of from the student.

    from vllm_optimal_sampling.integrations.distillation import OptimalSamplingDistillationTrainer

    trainer = OptimalSamplingDistillationTrainer(
        student, teacher, args, train_dataset=..., sampler=sampler, privileged="answer"
    )

On-policy distillation (GKD, arXiv:2306.13649) draws from the student, and moves it towards a teacher's whole distribution at
each token. Here both models draw each token. Written against TRL 1.16.
"""

from __future__ import annotations

from typing import Any

from trl import DistillationConfig, DistillationTrainer

from vllm_optimal_sampling.argument_checks import ArgumentError
from vllm_optimal_sampling.integrations.teacher_prompts import Privileged, TeacherPrompts
from vllm_optimal_sampling.integrations.theta_ids import theta_token_ids
from vllm_optimal_sampling.integrations.trl import Student, draw, token_ids
from vllm_optimal_sampling.offline.sampler import OptimalSampler


class OptimalSamplingDistillationTrainer(DistillationTrainer):
    """`DistillationTrainer` whose completions are drawn from q*.

    Theta is the trainer's model of this step and reads `prompt`; the sampler's teacher reads what `privileged` makes of the
    row. The loss is TRL's: a divergence between the student and `teacher_model`, over the whole vocabulary, both of which
    read `prompt`.

    Args:
        model, teacher_model, args, *others, **options: as `DistillationTrainer` takes them, without tools, and with
            `use_vllm` False.
        sampler: its theta is the trainer's model.
        privileged: a column, a template or a function of the row: see `TeacherPrompts`. None: the teacher reads `prompt` too.

    Raises:
        ArgumentError: (a ValueError) an argument asks for other completions, the trainer runs in several processes, or a
            prompt has an image.

    """

    def __init__(
        self,
        model: Any,
        teacher_model: Any,
        args: DistillationConfig | None = None,
        *others: Any,
        sampler: OptimalSampler,
        privileged: Privileged | None = None,
        **options: Any,
    ) -> None:
        if args is not None and args.use_vllm:  # TRL would start its engine first
            raise ArgumentError(
                "use_vllm", "use_vllm=True asks for other completions than those of q*; set it to False"
            )
        super().__init__(model, teacher_model, args, *others, **options)
        if self.tools:
            raise ArgumentError("tools", "tools take turns that are not drawn from q*; leave them out")
        self.sampler = sampler
        self.student = Student(sampler, self, needs_logprobs=False)
        self._prompts = TeacherPrompts((lambda row: row["prompt"]) if privileged is None else privileged)
        self._teacher_prompts: list[list[int]] = []

    def _remove_unused_columns(self, dataset: Any, description: str | None = None) -> Any:
        """All columns stay: `privileged` may read any."""
        return dataset

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        """TRL's own, with the teacher's prompts of the batch at hand."""
        teachers = [self._prompts.of(row) for row in inputs]
        options: Any = self.chat_template_kwargs
        self._teacher_prompts = token_ids(self.sampler.llm.get_tokenizer(), teachers, **options)
        return super()._generate_and_score_completions(inputs)

    def _generate_single_turn(
        self, prompt_ids: list[list[int]], images: Any, *args: Any, **kwargs: Any
    ) -> list[list[int]]:
        if images is not None:
            raise ArgumentError("images", "theta reads text only; train without images")
        self.student.bring_to_engine()
        completions = draw(self.sampler, self, self._teacher_prompts, prompt_ids)
        return [theta_token_ids(self.sampler.llm, completion.token_ids) for completion in completions]
