"""TRL's `SDFTTrainer` and `DistillationTrainer` with completions from q*: each row audited, and what the losses are given."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("trl", reason="the extra `trl` is not installed")

from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DistillationConfig
from trl.experimental.sdft import SDFTConfig

from support.random_models import save_model
from support.reference_models import Reference, expected_log_q
from support.row_audit import MAX_LOG_PROB_ERROR, RowAudit
from vllm_optimal_sampling import ArgumentError, OptimalSampler
from vllm_optimal_sampling.integrations.distillation import OptimalSamplingDistillationTrainer
from vllm_optimal_sampling.integrations.sdft import OptimalSamplingSDFTTrainer

ROWS = [
    {"prompt": "add two numbers", "privileged_context": "the answer is two"},
    {"prompt": "jump over the dog", "privileged_context": "lazy dog and the fox"},
]


@pytest.fixture(scope="module")
def sampler(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OptimalSampler]:
    """Teacher and student are one model here, in two folders, so that the student has weights of its own."""
    folder = tmp_path_factory.mktemp("models")
    teacher = save_model(folder / "teacher", seed=90)
    shutil.copytree(teacher, folder / "student")
    with OptimalSampler(
        teacher,
        str(folder / "student"),
        dtype="float32",
        enforce_eager=True,
        max_model_len=256,
        max_num_seqs=8,
        kv_cache_memory_bytes=1 << 26,
        gpu_memory_utilization=0.5,
    ) as sampler:
        yield sampler


OPTIONS: dict[str, Any] = {
    "per_device_train_batch_size": 2,
    "max_completion_length": 8,
    "learning_rate": 1e-2,
    "lr_scheduler_type": "constant",
    "save_strategy": "no",
    "logging_steps": 1,
    "report_to": [],
    "use_cpu": True,
    "bf16": False,
    "gradient_checkpointing": False,
    "disable_tqdm": True,
}


def trainer_of(
    sampler: OptimalSampler,
    folder: Path,
    kind: type = OptimalSamplingSDFTTrainer,
    teacher: Any = None,
    **options: Any,
) -> Any:
    return kind(
        AutoModelForCausalLM.from_pretrained(sampler.model_theta, dtype=torch.float32),
        sampler=sampler,
        teacher=teacher,
        args=SDFTConfig(output_dir=str(folder / "output"), num_generations=1, **OPTIONS, **{"max_steps": 3, **options}),
        train_dataset=Dataset.from_list(ROWS),
        processing_class=AutoTokenizer.from_pretrained(sampler.model_theta),
    )


def test_three_steps(sampler: OptimalSampler, tmp_path: Path) -> None:
    batches: list[tuple[dict[str, Any], str]] = []

    class Watched(OptimalSamplingSDFTTrainer):
        def sample_rollouts(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
            with RowAudit(sampler.llm) as audit:
                batch = super().sample_rollouts(inputs)
            student = str(tmp_path / str(len(batches)))
            self.model.save_pretrained(student)
            reference = Reference(sampler.model_teacher, student)
            assert audit.check(reference).mixed >= int(batch["completion_mask"].sum())
            batches.append((batch, student))
            return batch

    before = sampler.theta_version
    trainer = trainer_of(sampler, tmp_path, Watched)
    trainer.train()
    assert len(batches) == 3 and sampler.theta_version == before + 3
    assert all("self_distillation/distillation_loss" in log for log in trainer.state.log_history[:3])
    tokens = AutoTokenizer.from_pretrained(sampler.model_teacher)
    answers = {tuple(tokens.encode(row["prompt"])): row for row in ROWS}
    for batch, student in batches:
        reference = Reference(sampler.model_teacher, student)
        for number in range(2):
            prompt = batch["prompt_ids"][number][batch["prompt_mask"][number].bool()].tolist()
            completion = batch["completion_ids"][number][batch["completion_mask"][number].bool()].tolist()
            row = answers[tuple(prompt)]
            teacher = tokens.encode(f"{row['prompt']}\n\n{row['privileged_context']}")
            for at, token in enumerate(completion):
                rows = (
                    reference.logits(reference.teacher, [*teacher, *completion[:at]]),
                    reference.logits(reference.theta, [*prompt, *completion[:at]]),
                )
                expected = expected_log_q(*rows)[token].item()
                assert abs(batch["old_per_token_logps"][number, at].item() - expected) < MAX_LOG_PROB_ERROR


def test_a_teacher_of_its_own_is_in_the_loss(sampler: OptimalSampler, tmp_path: Path) -> None:
    """The Jensen-Shannon divergence that TRL reports is the one from this teacher, in float64."""
    path = save_model(tmp_path / "teacher", hidden_size=128, seed=91)
    batches: list[dict[str, Any]] = []

    class Watched(OptimalSamplingSDFTTrainer):
        def sample_rollouts(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
            batches.append(super().sample_rollouts(inputs))
            return batches[-1]

    teacher = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    options = {"max_steps": 1, "distillation_mode": "full_logits", "distillation_is_clip": None}
    trainer = trainer_of(sampler, tmp_path, Watched, teacher, **options)
    trainer.train()
    reference, tokens = Reference(path, sampler.model_theta), AutoTokenizer.from_pretrained(path)
    answers = {tuple(tokens.encode(row["prompt"])): row for row in ROWS}
    divergences = []
    for number in range(2):
        prompt, completion = (
            batches[0][f"{name}_ids"][number][batches[0][f"{name}_mask"][number].bool()].tolist()
            for name in ("prompt", "completion")
        )
        row = answers[tuple(prompt)]
        told = tokens.encode(f"{row['prompt']}\n\n{row['privileged_context']}")
        for at in range(len(completion)):
            v = reference.logits(reference.teacher, [*told, *completion[:at]]).log_softmax(-1)
            u = reference.logits(reference.theta, [*prompt, *completion[:at]]).log_softmax(-1)
            middle = torch.logaddexp(u, v) - math.log(2)
            divergences.append((u.exp() * (u - middle) + v.exp() * (v - middle)).sum().item() / 2)
    found = trainer.state.log_history[0]["self_distillation/distillation_loss"]
    assert found == pytest.approx(sum(divergences) / len(divergences), abs=MAX_LOG_PROB_ERROR)
    assert found > 0.05
    assert all(not parameter.requires_grad for parameter in trainer.teacher_model.parameters())


def test_a_teacher_that_does_not_fit_is_refused(sampler: OptimalSampler, tmp_path: Path) -> None:
    student = AutoModelForCausalLM.from_pretrained(sampler.model_theta)
    with pytest.raises(
        ArgumentError, match='in the place of the student as it was at first, teacher_model_kind="base"'
    ):
        trainer_of(sampler, tmp_path, teacher=student, teacher_model_kind="live")
    wider = AutoModelForCausalLM.from_pretrained(save_model(tmp_path / "wider", vocab_size=640))
    with pytest.raises(ArgumentError, match="the teacher's rows have 640 logits and the student's 512"):
        trainer_of(sampler, tmp_path, teacher=wider)


def test_other_completions_are_refused(sampler: OptimalSampler, tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="generate_from_teacher=True asks for other completions"):
        trainer_of(sampler, tmp_path, generate_from_teacher=True)
    with pytest.raises(ArgumentError, match='make the sampler with logprobs_mode="processed_logprobs"'):
        trainer_of(sampler, tmp_path, temperature=0.7)


# On-policy distillation


def distillation_trainer(
    sampler: OptimalSampler,
    folder: Path,
    kind: type = OptimalSamplingDistillationTrainer,
    privileged: Any = "privileged_context",
    **options: Any,
) -> Any:
    teacher = save_model(folder / "loss-teacher", hidden_size=128, seed=91)
    return kind(
        AutoModelForCausalLM.from_pretrained(sampler.model_theta, dtype=torch.float32),
        AutoModelForCausalLM.from_pretrained(teacher, dtype=torch.float32),
        sampler=sampler,
        privileged=privileged,
        args=DistillationConfig(output_dir=str(folder / "output"), **OPTIONS | {"max_steps": 2} | options),
        train_dataset=Dataset.from_list(ROWS),
        processing_class=AutoTokenizer.from_pretrained(sampler.model_theta),
    )


def divergence(reference: Reference, prompt: list[int], completion: list[int]) -> list[float]:
    """JS(theta, teacher) at each token, in nats: TRL's generalised one at beta 0.5."""
    found = []
    for at in range(len(completion)):
        v = reference.logits(reference.teacher, [*prompt, *completion[:at]]).log_softmax(-1)
        u = reference.logits(reference.theta, [*prompt, *completion[:at]]).log_softmax(-1)
        middle = torch.logaddexp(u, v) - math.log(2)
        found.append((u.exp() * (u - middle) + v.exp() * (v - middle)).sum().item() / 2)
    return found


def test_on_policy_distillation_from_q_star(sampler: OptimalSampler, tmp_path: Path) -> None:
    """Rows of the student at hand and of the teacher that is told; TRL's loss, in float64, over the tokens drawn."""
    losses: list[float] = []
    told: list[set[tuple[int, ...]]] = []

    class Watched(OptimalSamplingDistillationTrainer):
        def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
            with RowAudit(sampler.llm) as audit:
                batch = super()._generate_and_score_completions(inputs)
            student = str(tmp_path / f"student-{len(losses)}")
            self.model.save_pretrained(student)
            assert audit.check(Reference(sampler.model_teacher, student)).mixed >= int(batch["completion_mask"].sum())
            told.append(set(map(tuple, self._teacher_prompts)))
            reference = Reference(str(tmp_path / "loss-teacher"), student)
            both = [
                [
                    ids[mask.bool()].tolist()
                    for ids, mask in zip(batch[f"{name}_ids"], batch[f"{name}_mask"], strict=True)
                ]
                for name in ("prompt", "completion")
            ]
            found = [value for pair in zip(*both, strict=True) for value in divergence(reference, *pair)]
            losses.append(sum(found) / len(found))
            return batch

    before = sampler.theta_version
    trainer = distillation_trainer(sampler, tmp_path, Watched, beta=0.5)
    trainer.train()
    assert len(losses) == 2 and sampler.theta_version == before + 2
    tokens = AutoTokenizer.from_pretrained(sampler.model_teacher)
    teachers = {tuple(tokens.encode(f"{row['prompt']}\n\n{row['privileged_context']}")) for row in ROWS}
    assert told == [teachers, teachers]
    assert [log["loss"] for log in trainer.state.log_history[:2]] == pytest.approx(losses, abs=MAX_LOG_PROB_ERROR)
    assert min(losses) > 0.05


def test_what_distillation_cannot_draw_from_q_star_is_refused(sampler: OptimalSampler, tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="use_vllm=True asks for other completions"):
        distillation_trainer(sampler, tmp_path, use_vllm=True)
    trainer = distillation_trainer(
        sampler, tmp_path, privileged=None, temperature=0.7
    )  # its loss needs no probabilities
    with pytest.raises(ArgumentError, match="theta reads text only"):
        trainer._generate_single_turn([[5, 6]], [object()], {})
