"""Rollouts from q* for TRL's `GRPOTrainer`: the student is the trainer's model of this step, the teacher knows more.

    from vllm_optimal_sampling import OptimalSampler
    from vllm_optimal_sampling.integrations.trl import rollout_func

    sampler = OptimalSampler(teacher, student, ...)
    trainer = GRPOTrainer(student, ..., rollout_func=rollout_func(sampler, privileged="answer"))

Written against TRL 1.16. `use_vllm` stays False: the engine is the sampler's.
"""

from __future__ import annotations

import contextlib
import re
import tempfile
from collections.abc import Iterator
from typing import Any

import torch
from vllm import CompletionOutput

from vllm_optimal_sampling.argument_checks import ArgumentError
from vllm_optimal_sampling.config.theta import theta_lora
from vllm_optimal_sampling.integrations.teacher_prompts import Privileged, Prompt, RowsByPrompt, TeacherPrompts
from vllm_optimal_sampling.integrations.theta_ids import teacher_token_ids, theta_token_ids
from vllm_optimal_sampling.offline.sampler import OptimalSampler

RECORDED = {
    "theta_logprobs": "theta_logprob",
    "teacher_logprobs": "teacher_logprob",
    "alpha": "alpha",
    "log_z": "log_z",
}
"""Extra fields of a rollout, and the record's field that each is."""


def rollout_func(sampler: OptimalSampler, privileged: Privileged, *, importance_sampling: bool = True) -> Rollout:
    """A `rollout_func` for TRL's `GRPOTrainer` that samples from q*.

    The data set's `prompt` is what theta reads, and what is trained on; the teacher's prompt is made of it and of `privileged`.
    Before the rollout of a new step the trainer's model is brought into the engine. A rollout returns TRL's `prompt_ids`,
    `completion_ids` and `logprobs` (those of the distribution that was drawn from), and for the reward functions
    `theta_logprobs`, `teacher_logprobs`, `alpha` and `log_z` (a list a completion, one number a token, natural logarithms at
    temperature 1) and `theta_version`.

    Args:
        sampler: its theta is the trainer's model: the same checkpoint, or, for a trainer with a LoRA adapter, `"self"` with
            `theta_lora`.
        privileged: a column, a template or a function of the row: see `TeacherPrompts`.
        importance_sampling: let TRL weight tokens by π_θ/q* (`vllm_importance_sampling_correction` and its options), which it
            only does where it believes that vLLM generates: `trainer.use_vllm` becomes True with the first rollout. False, or
            the option turned off: no weights.
    """
    return Rollout(sampler, TeacherPrompts(privileged), importance_sampling)


class Rollout:
    """What `rollout_func` returns. To the trainer it also stands for TRL's own vLLM engine (`trainer.vllm_generation`)."""

    def __init__(self, sampler: OptimalSampler, prompts: TeacherPrompts, importance_sampling: bool) -> None:
        self.sampler = sampler
        self.prompts = prompts
        self.importance_sampling = importance_sampling
        self.student: Student | None = None
        self._rows = RowsByPrompt([])

    def __call__(self, prompts: list[Prompt], trainer: Any) -> dict[str, list[Any]]:
        """One completion for each prompt; TRL repeats a prompt `num_generations` times."""
        if self.student is None or self.student.trainer is not trainer:
            self._join(trainer)
        assert self.student is not None
        self.student.bring_to_engine()
        chat = None if isinstance(prompts[0], str) else getattr(trainer, "chat_template", None)
        options = getattr(trainer, "chat_template_kwargs", None) or {}
        theirs = token_ids(trainer.processing_class, prompts, chat_template=chat, **options)
        teachers = [self._rows.teacher_prompt(prompt, self.prompts) for prompt in prompts]
        completions = draw(
            self.sampler, trainer, token_ids(self.sampler.llm.get_tokenizer(), teachers, **options), theirs
        )
        records = [completion.optimal_sampling for completion in completions]
        return {
            "prompt_ids": theirs,
            "completion_ids": [theta_token_ids(self.sampler.llm, completion.token_ids) for completion in completions],
            "logprobs": [logprobs_drawn_from(trainer.args, completion) for completion in completions],
            **{field: [getattr(record, name) for record in records] for field, name in RECORDED.items()},
            "theta_version": [record.theta_version for record in records],
        }

    def sync_weights(self) -> None:
        """TRL's name for it."""
        assert self.student is not None
        self.student.bring_to_engine()

    def _join(self, trainer: Any) -> None:
        if getattr(trainer, "tools", None) or getattr(trainer, "environment_factories", None):
            raise ArgumentError(
                "tools", "tools and environments take turns that this rollout does not draw; leave them out"
            )
        if trainer.use_vllm and not isinstance(trainer.vllm_generation, Rollout):
            raise ArgumentError(
                "use_vllm", "use_vllm=True starts a second engine; set it to False, the sampler's engine generates"
            )
        self.student = Student(self.sampler, trainer)
        evaluated = trainer.eval_dataset
        evaluated = list(evaluated.values()) if isinstance(evaluated, dict) else [evaluated]
        self._rows = RowsByPrompt([trainer.train_dataset, *evaluated])
        if self.importance_sampling and trainer.vllm_importance_sampling_correction:
            trainer.vllm_generation = self
            trainer._last_loaded_step = trainer.state.global_step
            trainer.use_vllm = True


class Student:
    """A trainer's model, and the engine that has it as theta.

    Args:
        sampler: the engine's.
        trainer: of TRL.
        needs_logprobs: of the distribution that is drawn from; False where the trainer's loss has no use for them.

    Raises:
        ArgumentError: the trainer runs in several processes, or its sampling needs another engine.

    """

    def __init__(self, sampler: OptimalSampler, trainer: Any, *, needs_logprobs: bool = True) -> None:
        self.sampler = sampler
        self.trainer = trainer
        self._step: int | None = None
        self._adapter: tempfile.TemporaryDirectory[str] | None = None
        processes = trainer.accelerator.num_processes
        if processes > 1:
            raise ArgumentError(
                "trainer",
                f"this trainer runs in {processes} processes, and the sampler's engine is in one; train with one process "
                "(docs/training.md says what several take)",
            )
        mode = sampler.llm.llm_engine.vllm_config.model_config.logprobs_mode
        if needs_logprobs and not draws_as_recorded(trainer.args) and mode != "processed_logprobs":
            raise ArgumentError(
                "logprobs_mode",
                "temperature, top_p, top_k, min_p or a penalty change the distribution that is drawn from, and this engine "
                'does not say its log-probabilities; make the sampler with logprobs_mode="processed_logprobs"',
            )

    def bring_to_engine(self) -> None:
        """Give theta the trainer's weights, if it has made a step since."""
        step = self.trainer.state.global_step
        if self._step == step:
            return
        model = self.trainer.accelerator.unwrap_model(self.trainer.model)
        if theta_lora(self.sampler.llm.llm_engine.vllm_config) is not None:
            self._bring_adapter(model)
        else:
            with plain_parameters(model) as parameters:
                self.sampler.update_theta(parameters)
        self._step = step

    def _bring_adapter(self, model: Any) -> None:
        if not hasattr(model, "peft_config"):
            raise ArgumentError(
                "theta_lora",
                "the sampler's theta is an adapter, and the trainer's model has none; give it a peft_config",
            )
        folder = tempfile.TemporaryDirectory(prefix="theta-")
        (active,) = model.active_adapters
        model.save_pretrained(folder.name, selected_adapters=[active])
        path = folder.name if active == "default" else f"{folder.name}/{active}"
        self.sampler.update_theta(adapter_path=path)
        self._adapter = folder  # vLLM may read it again, until the next one


@contextlib.contextmanager
def plain_parameters(model: Any) -> Iterator[dict[str, torch.Tensor]]:
    """A model's parameters under the names of its checkpoint; with an adapter, merged for as long as the context lasts."""
    if not hasattr(model, "peft_config"):
        yield dict(model.named_parameters())
        return
    model.merge_adapter()
    try:
        named = {}
        for name, parameter in model.named_parameters():
            if model.prefix in name or ".original_module." in name:
                continue
            name = re.sub(r"\.modules_to_save\.[^.]+\.", ".", name.replace(".base_layer.", "."))
            named[name.removeprefix("base_model.model.")] = parameter
        yield named
    finally:
        model.unmerge_adapter()


def token_ids(tokenizer: Any, prompts: list[Prompt], **options: Any) -> list[list[int]]:
    """Prompts as a trainer of TRL tokenises them."""
    if isinstance(prompts[0], str):
        return [list(ids) for ids in tokenizer(text=prompts)["input_ids"]]
    made = tokenizer.apply_chat_template(
        conversation=prompts, add_generation_prompt=True, tokenize=True, return_dict=True, **options
    )
    return [list(ids) for ids in made["input_ids"]]


def draw(
    sampler: OptimalSampler, trainer: Any, prompts: list[list[int]], theta_prompts: list[list[int]]
) -> list[CompletionOutput]:
    """Completions as the trainer's arguments ask for them; `generation_kwargs` come before the others, as in TRL."""
    arguments = trainer.args
    sampling = {
        "max_tokens": trainer.max_completion_length,
        "temperature": arguments.temperature,
        "top_p": arguments.top_p,
        "top_k": arguments.top_k or -1,
        "min_p": arguments.min_p or 0.0,
        "repetition_penalty": arguments.repetition_penalty,
        "stop_token_ids": teacher_token_ids(sampler.llm, trainer.eos_token_ids),
        "detokenize": False,
        "logprobs": None if draws_as_recorded(arguments) else 0,
    }
    return sampler.generate_from_tokens(prompts, theta_prompts, **sampling | (arguments.generation_kwargs or {}))


def draws_as_recorded(arguments: Any) -> bool:
    """Whether a trainer's arguments draw from q* itself, whose log-probabilities the record has."""
    return (
        arguments.temperature == 1
        and arguments.top_p == 1
        and (arguments.top_k or 0) <= 0
        and not arguments.min_p
        and arguments.repetition_penalty == 1
        and not arguments.generation_kwargs
    )


def logprobs_drawn_from(arguments: Any, completion: CompletionOutput) -> list[float]:
    """The log-probabilities of a completion's tokens under the distribution that they were drawn from."""
    if draws_as_recorded(arguments):
        return completion.optimal_sampling.logprob
    assert completion.logprobs is not None
    return [entry[token].logprob for token, entry in zip(completion.token_ids, completion.logprobs, strict=True)]
