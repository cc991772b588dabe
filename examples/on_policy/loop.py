"""One run: TRL trains theta, and the engine draws what it is trained on.

The trainer is TRL's `SDFTTrainer`, which moves a student to a teacher that knows more, on completions of the student: here of
the engine. Runs differ in where the completions come from, and in nothing else.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import measure
import recording
import task
import torch
from datasets import Dataset
from distillation.pieces import piece
from transformers import AutoTokenizer, TrainerCallback
from transformers.trainer_utils import get_last_checkpoint
from trl.experimental.sdft import SDFTConfig

from on_policy import PAIR, held_out
from vllm_optimal_sampling import OptimalSampler
from vllm_optimal_sampling.integrations.sdft import OptimalSamplingSDFTTrainer

ENGINE: dict[str, Any] = {
    "dtype": "float32",
    "enforce_eager": True,
    "max_model_len": 256,
    "max_num_seqs": 32,
    "kv_cache_memory_bytes": 1 << 28,
    "num_speculative_tokens": 6,
}
TEACHER_PROMPT = task.teacher_messages("{prompt}", "{privileged_context}")[0]["content"]


@dataclass(frozen=True)
class Source:
    """Where the completions come from."""

    label: str
    sampling: dict[str, Any]
    """Arguments of the sampler that choose alpha."""
    is_drawn_once: bool = False
    """All completions are drawn before the first step, by theta as it is then."""


SOURCES = {
    "q_star": Source("q*, drawn each round", {}),
    "theta": Source("theta itself, drawn each round", {"alpha_method": "fixed", "fixed_alpha": 0.0}),
    "once": Source("q*, drawn once", {}, is_drawn_once=True),
}


@dataclass(frozen=True)
class Recipe:
    """What is done in every run alike."""

    rounds: int = 12
    """Each draws completions, and theta in the engine is that of its time."""
    problems: int = 32
    """Of a round, one completion of each; none comes twice."""
    updates: int = 2
    """Steps of the optimizer on each round's completions."""
    learning_rate: float = 3e-4
    """Throughout."""
    evaluate_every: int = 4
    """Rounds between two points of the curve."""
    held_out: int | None = None
    """Only so many first held-out problems of each set, for a trial. None: all."""
    problem_seed: int = 300
    """Of the first seed's training problems; each seed has its own."""

    @property
    def evaluated_rounds(self) -> range:
        return range(0, self.rounds + 1, self.evaluate_every)


class Trainer(OptimalSamplingSDFTTrainer):
    """The integration's trainer, which also logs how many of a round's completions are right."""

    def sample_rollouts(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        batch = super().sample_rollouts(inputs)
        texts = self.processing_class.batch_decode(batch["completion_ids"], skip_special_tokens=True)
        right = [task.is_right(text, row["privileged_context"]) for text, row in zip(texts, inputs, strict=True)]
        self._metrics["train"]["drawn/right"].append(sum(right) / len(right))
        self._metrics["train"]["drawn/tokens"].append(int(batch["completion_mask"].sum()))
        return batch


class DrawnOnceTrainer(Trainer):
    """The same with completions that were all drawn by theta as it was at first, a file for each round."""

    rows: dict[tuple[int, ...], dict[str, list[Any]]]

    def draw(self, folder: Path, problems: int) -> None:
        """Have all rounds' completions in the folder."""
        self.rows = {}
        data = list(self.train_dataset)
        for start in range(0, len(data), problems):
            rows = piece(folder / f"{start // problems}.json", partial(self._drawn, data[start : start + problems]))[
                "rows"
            ]
            self.rows |= {tuple(row["prompt"]): row for row in rows}

    def _drawn(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        prompts = self._tokenize_prompts([row["prompt"] for row in inputs])
        self._teacher_prompts = self.teacher_prompts(inputs)
        _, completions = super()._generate(prompts)
        return {
            "rows": [
                {"prompt": prompt, "completion": completion, "logprobs": logprobs.tolist()}
                for prompt, completion, logprobs in zip(prompts, completions, self._logprobs, strict=True)
            ]
        }

    def _generate(self, prompt_ids: list[list[int]]) -> tuple[list[list[int]], list[list[int]]]:
        rows = [self.rows[tuple(ids)] for ids in prompt_ids]
        self._logprobs = [torch.tensor(row["logprobs"]) for row in rows]
        return prompt_ids, [row["completion"] for row in rows]


class Evaluation(TrainerCallback):
    """The held-out problems before the first round and after every `evaluate_every` of them, a file for each time."""

    def __init__(self, recipe: Recipe, folder: Path, seed: int, tokenizer: Any) -> None:
        self.recipe, self.folder, self.seed, self.tokenizer = recipe, folder, seed, tokenizer
        self.problems = held_out.problems(recipe.held_out)

    def forget_after(self, step: int) -> None:
        """Remove what an interrupted run judged after the checkpoint of this step."""
        for number in self.recipe.evaluated_rounds:
            if number * self.recipe.updates > step:
                self.path(number).unlink(missing_ok=True)

    def path(self, number: int) -> Path:
        return self.folder / f"evaluation-{number}.json"

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        if state.global_step == 0:
            self.evaluate(0, model)

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        number, rest = divmod(state.global_step, self.recipe.updates)
        if rest == 0 and number in self.recipe.evaluated_rounds:
            self.evaluate(number, model)

    def evaluate(self, number: int, model: Any) -> None:
        names = list(self.problems) if number in (0, self.recipe.rounds) else ["stories"]

        def compute() -> dict[str, Any]:
            return {name: held_out.judged(model, self.tokenizer, self.problems[name], self.seed) for name in names}

        model.eval()
        piece(self.path(number), compute)
        model.train()


def problems_of(recipe: Recipe, seed: int) -> list[dict[str, Any]]:
    """The training problems of a seed, in the order in which they come; no numbers of held-out ones are among them."""
    drawn = task.distinct("story", "train", recipe.problem_seed + seed, recipe.rounds * recipe.problems)
    return [problem.row() for problem in drawn]


def run(name: str, seed: int, recipe: Recipe, folder: Path) -> dict[str, Any]:
    """Train theta once, from where an interrupted run left off; what was measured.

    Args:
        name: one of `SOURCES`.
        seed: of the problems, the draws and the evaluation.
        recipe: the same for all.
        folder: of this run's checkpoints and evaluations.
    """
    torch.set_num_threads(1)
    source, tokenizer = SOURCES[name], AutoTokenizer.from_pretrained(PAIR / "theta")
    checkpoint = get_last_checkpoint(folder) if folder.exists() else None
    resumed = 0 if checkpoint is None else int(checkpoint.rpartition("-")[2]) // recipe.updates
    evaluation = Evaluation(recipe, folder, seed, tokenizer)
    evaluation.forget_after(resumed * recipe.updates)
    data = Dataset.from_list(
        [
            {"prompt": task.theta_messages(problem["problem"]), "privileged_context": problem["answer"]}
            for problem in problems_of(recipe, seed)
        ]
    )
    sampler = OptimalSampler(
        str(PAIR / "teacher"), model_theta=str(PAIR / "theta"), seed=1000 * seed + resumed, **source.sampling, **ENGINE
    )
    with sampler:
        trainer = (DrawnOnceTrainer if source.is_drawn_once else Trainer)(
            measure.load(PAIR / "theta"),
            sampler=sampler,
            teacher=measure.load(PAIR / "teacher"),
            args=arguments(recipe, folder, seed),
            train_dataset=data,
            processing_class=tokenizer,
            callbacks=[evaluation],
        )
        if isinstance(trainer, DrawnOnceTrainer):
            trainer.draw(folder / "rows", recipe.problems)
        trainer.train(resume_from_checkpoint=checkpoint)
    logs = [log for log in trainer.state.log_history if "drawn/right" in log]
    return {
        "source": name,
        "seed": seed,
        "resumed_at_round": resumed,
        "commit": recording.commit(),
        "theta_version": sampler.theta_version,
        "rounds": [
            {
                "right": log["drawn/right"],
                "tokens": log["drawn/tokens"],
                "loss": log["self_distillation/distillation_loss"],
            }
            for log in logs
        ],
        "evaluations": {
            str(number): json.loads(evaluation.path(number).read_text()) for number in recipe.evaluated_rounds
        },
    }


def arguments(recipe: Recipe, folder: Path, seed: int) -> SDFTConfig:
    """What TRL is given: the divergence over the whole vocabulary, its defaults elsewhere."""
    return SDFTConfig(
        output_dir=str(folder),
        max_steps=recipe.rounds * recipe.updates,
        num_iterations=recipe.updates,
        per_device_train_batch_size=recipe.problems,
        num_generations=1,
        max_completion_length=measure.MAX_TOKENS,
        learning_rate=recipe.learning_rate,
        lr_scheduler_type="constant",
        distillation_mode="full_logits",
        teacher_prompt_template=TEACHER_PROMPT,
        shuffle_dataset=False,
        seed=seed,
        logging_steps=recipe.updates,
        save_steps=recipe.evaluate_every * recipe.updates,
        save_total_limit=1,
        report_to=[],
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        disable_tqdm=True,
    )
