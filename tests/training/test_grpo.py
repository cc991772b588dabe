"""TRL's `GRPOTrainer` with rollouts from q*: the trainer itself, an engine, and both models in float64 beside them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("trl", reason="the extra `trl` is not installed")

from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from support.random_models import save_model
from support.reference_models import Reference, expected_log_q
from support.row_audit import RowAudit
from vllm_optimal_sampling import ArgumentError, OptimalSampler
from vllm_optimal_sampling.integrations.trl import Rollout, rollout_func

ROWS = [
    {"problem": "add two numbers", "answer": "the answer is two"},
    {"problem": "jump over the dog", "answer": "lazy dog and the fox"},
]
PLAIN = [{**row, "prompt": f"problem: {row['problem']} so"} for row in ROWS]
CHAT = [
    {**row, "prompt": [{"role": "system", "content": "fox"}, {"role": "user", "content": row["problem"]}]}
    for row in ROWS
]
# As the row audit's, of one token. A completion of eight may add up to so many times as much.
MAX_LOG_PROB_ERROR = 5e-4
TOKENS = 8
# In float32 on both sides: exp of a sum of eight errors of some 1e-5.
MAX_RATIO_ERROR = 1e-3
ENGINE: dict[str, Any] = {
    "dtype": "float32",
    "enforce_eager": True,
    "max_model_len": 256,
    "max_num_seqs": 8,
    "kv_cache_memory_bytes": 1 << 26,
    "gpu_memory_utilization": 0.5,
    "logprobs_mode": "processed_logprobs",
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    folder = tmp_path_factory.mktemp("models")
    return save_model(folder / "teacher", hidden_size=128, seed=80), save_model(folder / "student", seed=81)


@pytest.fixture(scope="module")
def sampler(models: tuple[str, str]) -> Iterator[OptimalSampler]:
    with OptimalSampler(*models, **ENGINE) as sampler:
        yield sampler


@pytest.fixture
def theta_alone(sampler: OptimalSampler) -> Iterator[OptimalSampler]:
    """Alpha fixed at 0: what is sampled is the student's own."""
    sampler.set_alpha("fixed", 0.0)
    yield sampler
    sampler.set_alpha()


class Watched:
    """A rollout function whose every call is audited against the trainer's model of that step."""

    def __init__(self, rollout: Rollout, teacher: str, folder: Path, *, mixed: bool = True):
        self.rollout, self.teacher, self.folder, self.mixed = rollout, teacher, folder, mixed
        self.calls: list[tuple[list[Any], dict[str, list[Any]], Reference]] = []
        self.weights: list[torch.Tensor] = []

    def __call__(self, prompts: list[Any], trainer: Any) -> dict[str, list[Any]]:
        llm = self.rollout.sampler.llm
        with RowAudit(llm) as audit:
            output = self.rollout(prompts, trainer)
        model = trainer.accelerator.unwrap_model(trainer.model)
        self.weights.append(model.model.embed_tokens.weight.detach().clone())
        student = str(self.folder / str(len(self.calls)))
        model.save_pretrained(student)
        reference = Reference(self.teacher, student)
        if trainer.args.temperature == 1:
            assert audit.check(reference).mixed >= sum(map(len, output["completion_ids"]))
        self.calls.append((copy.deepcopy(prompts), output, reference))
        return output

    def check(self, teacher_ids: Callable[[Any], list[int]], temperature: float = 1.0) -> None:
        """Every number that was returned, against both models in float64."""
        for prompts, output, reference in self.calls:
            for number, prompt in enumerate(prompts):
                tokens = output["completion_ids"][number]
                rows = {}
                for model, ids in (("teacher", teacher_ids(prompt)), ("theta", output["prompt_ids"][number])):
                    logits = (
                        getattr(reference, model)(torch.tensor([[*ids, *tokens]])).logits[0, len(ids) - 1 : -1].detach()
                    )
                    rows[model] = logits
                    self._compare(output[f"{model}_logprobs"][number], logits.log_softmax(-1), tokens)
                pairs = list(zip(rows["teacher"], rows["theta"], strict=True))
                if not self.mixed:
                    drawn_from = rows["theta"].log_softmax(-1)
                    assert output["alpha"][number] == [0.0] * len(tokens)
                else:
                    drawn_from = torch.stack([expected_log_q(*pair) for pair in pairs])
                    assert any(0.05 < alpha < 0.95 for alpha in output["alpha"][number])
                for token, alpha in enumerate(output["alpha"][number]):
                    mixed = torch.lerp(*(rows[name][token].log_softmax(-1) for name in ("theta", "teacher")), alpha)
                    assert abs(output["log_z"][number][token] - mixed.logsumexp(-1).item()) < MAX_LOG_PROB_ERROR
                self._compare(output["logprobs"][number], (drawn_from / temperature).log_softmax(-1), tokens)

    @staticmethod
    def _compare(found: list[float], expected: torch.Tensor, tokens: list[int]) -> None:
        assert len(found) == len(tokens)
        expected = expected.gather(1, torch.tensor(tokens)[:, None])[:, 0]
        assert (torch.tensor(found, dtype=torch.float64) - expected).abs().max() < MAX_LOG_PROB_ERROR


def reward(completions: list[Any], **columns: Any) -> list[float]:
    """Another number for each completion, so that there is a gradient; and what a reward function is given."""
    for name in ("theta_logprobs", "teacher_logprobs", "alpha", "log_z"):
        assert [len(values) for values in columns[name]] == [len(ids) for ids in columns["completion_ids"]]
    return [float(sum(ids) % 7) for ids in columns["completion_ids"]]


def trainer_of(
    models: tuple[str, str],
    rows: list[dict[str, Any]],
    rollout: Any,
    folder: Path,
    peft_config: Any = None,
    **options: Any,
) -> GRPOTrainer:
    arguments: dict[str, Any] = {
        "per_device_train_batch_size": 4,
        "num_generations": 2,
        "max_completion_length": TOKENS,
        "learning_rate": 1e-2,
        "lr_scheduler_type": "constant",
        "max_steps": 3,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "disable_tqdm": True,
        "shuffle_dataset": False,
        **options,
    }
    return GRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(models[1], dtype=torch.float32),
        reward_funcs=reward,
        args=GRPOConfig(output_dir=str(folder / "output"), **arguments),
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(models[1]),
        rollout_func=rollout,
        peft_config=peft_config,
    )


def encode(models: tuple[str, str]) -> Callable[[str], list[int]]:
    return AutoTokenizer.from_pretrained(models[0]).encode


def by_problem(prompt: Any) -> dict[str, str]:
    text = prompt if isinstance(prompt, str) else prompt[-1]["content"]
    (row,) = (row for row in ROWS if row["problem"] in text)
    return row


def test_three_steps(sampler: OptimalSampler, models: tuple[str, str], tmp_path: Path) -> None:
    watched = Watched(rollout_func(sampler, privileged="answer"), models[0], tmp_path)
    trainer = trainer_of(models, PLAIN, watched, tmp_path)
    before = sampler.theta_version
    trainer.train()
    assert len(watched.calls) == 3 and sampler.theta_version == before + 3
    # The model did change from step to step: an engine that kept the first one's weights would fail the audit.
    for first, second in zip(watched.weights, watched.weights[1:], strict=False):
        assert (first - second).abs().max() > 1e-3
    tokens = encode(models)
    watched.check(lambda prompt: tokens(f"{prompt}\n\n{by_problem(prompt)['answer']}"))
    for step, (prompts, output, _) in enumerate(watched.calls):
        assert prompts == [row["prompt"] for row in PLAIN for _ in range(2)]  # num_generations
        assert output["prompt_ids"] == [tokens(prompt) for prompt in prompts]
        assert output["theta_version"] == [before + step + 1] * 4
    ratios = [log["sampling/importance_sampling_ratio/max"] for log in trainer.state.log_history if "reward" in log]
    assert len(ratios) == 3 and max(abs(ratio - 1) for ratio in ratios) > 0.1  # q* is not the student


def test_a_chat_and_a_template(sampler: OptimalSampler, models: tuple[str, str], tmp_path: Path) -> None:
    watched = Watched(rollout_func(sampler, "{{ prompt }} ({{ answer }})"), models[0], tmp_path)
    trainer_of(models, CHAT, watched, tmp_path, max_steps=2, shuffle_dataset=True).train()
    tokens = encode(models)

    def written(user: str) -> list[int]:
        return tokens(f"system: fox\nuser: {user}\nassistant: ")

    watched.check(lambda prompt: written(f"{prompt[-1]['content']} ({by_problem(prompt)['answer']})"))
    for prompts, output, _ in watched.calls:
        assert output["prompt_ids"] == [written(prompt[-1]["content"]) for prompt in prompts]


def test_the_ratio_is_one_where_the_student_draws(
    theta_alone: OptimalSampler, models: tuple[str, str], tmp_path: Path
) -> None:
    """GRPO's own importance ratio, of whole sequences, with the trainer's forward on one side and the engine's on the other."""
    watched = Watched(rollout_func(theta_alone, lambda row: row["answer"]), models[0], tmp_path, mixed=False)
    trainer = trainer_of(models, PLAIN, watched, tmp_path, max_steps=2)
    trainer.train()
    tokens = encode(models)
    watched.check(lambda prompt: tokens(by_problem(prompt)["answer"]))
    for log in trainer.state.log_history[:2]:
        for bound in ("min", "mean", "max"):
            assert abs(log[f"sampling/importance_sampling_ratio/{bound}"] - 1) < MAX_RATIO_ERROR
        assert log["sampling/sampling_logp_difference/max"] < MAX_LOG_PROB_ERROR


@pytest.mark.parametrize("options", [{"temperature": 0.6}, {"generation_kwargs": {"temperature": 0.6}}], ids=str)
def test_a_temperature(
    sampler: OptimalSampler, models: tuple[str, str], tmp_path: Path, options: dict[str, Any]
) -> None:
    """The log-probabilities are those after the temperature, as TRL computes the student's."""
    watched = Watched(rollout_func(sampler, "answer"), models[0], tmp_path)
    trainer_of(models, PLAIN, watched, tmp_path, max_steps=1, **options).train()
    tokens = encode(models)
    watched.check(lambda prompt: tokens(f"{prompt}\n\n{by_problem(prompt)['answer']}"), temperature=0.6)


def test_without_importance_sampling(theta_alone: OptimalSampler, models: tuple[str, str], tmp_path: Path) -> None:
    """Also an alpha of its own for each step, as docs/training.md has it."""
    seen: list[float] = []

    class Schedule(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            theta_alone.set_alpha("fixed", 1 - state.global_step / state.max_steps)

    def watched(prompts: list[Any], trainer: Any) -> dict[str, list[Any]]:
        output = rollout(prompts, trainer)
        seen.extend({alpha for alphas in output["alpha"] for alpha in alphas})
        return output

    rollout = rollout_func(theta_alone, "answer", importance_sampling=False)
    trainer = trainer_of(models, PLAIN, watched, tmp_path, max_steps=2)
    trainer.add_callback(Schedule())
    trainer.train()
    assert seen == [1.0, 0.5]
    assert not trainer.use_vllm
    assert not any("importance_sampling" in name for log in trainer.state.log_history for name in log)


def test_what_is_wrong_is_said(sampler: OptimalSampler, models: tuple[str, str], tmp_path: Path) -> None:
    def error(rows: list[dict[str, Any]], privileged: Any, **options: Any) -> str:
        with pytest.raises(ArgumentError) as caught:
            trainer_of(models, rows, rollout_func(sampler, privileged), tmp_path, max_steps=1, **options).train()
        return str(caught.value)

    assert "'solution' is no column of the data set; it has problem, answer, prompt" in error(PLAIN, "solution")
    assert "'solution' is undefined" in error(PLAIN, "{{ solution }}")
    assert "is not a Jinja template" in error(PLAIN, "{{ answer")
    assert "is no column's name, Jinja template or function" in error(PLAIN, 3)
    assert "a column of it is null" in error(
        [{**row, "answer": None if row is PLAIN[0] else "x"} for row in PLAIN], "answer"
    )
    same = [{**row, "prompt": "the same"} for row in PLAIN]
    assert "2 rows of the data set have the prompt 'the same'" in error(same, "answer")
    assert "a chat does not end with a text of the user's" in error(
        [{**row, "prompt": [*row["prompt"], {"role": "assistant", "content": "so"}]} for row in CHAT], "answer"
    )


def test_an_engine_that_cannot_say_its_logprobs(
    sampler: OptimalSampler, models: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampler.llm.llm_engine.vllm_config.model_config, "logprobs_mode", "raw_logprobs")
    trainer = trainer_of(models, PLAIN, rollout_func(sampler, "answer"), tmp_path, max_steps=1, top_p=0.9)
    with pytest.raises(ArgumentError, match='make the sampler with logprobs_mode="processed_logprobs"'):
        trainer.train()


def test_another_model_than_thetas(sampler: OptimalSampler, models: tuple[str, str], tmp_path: Path) -> None:
    trainer = trainer_of((models[0], models[0]), PLAIN, rollout_func(sampler, "answer"), tmp_path, max_steps=1)
    with pytest.raises(ArgumentError, match=r"model.embed_tokens.weight has shape \[512, 128\], and theta's"):
        trainer.train()


# The last: the end of its engine takes vLLM's process groups with it, the other engine's too.
@pytest.mark.parametrize("theta", ["adapter", pytest.param("own weights", marks=pytest.mark.full)])
def test_a_student_with_an_adapter(theta: str, tmp_path: Path) -> None:
    """The trainer trains a LoRA adapter: theta is the teacher with it, or a model of its own that it is merged into."""
    peft = pytest.importorskip("peft", reason="PEFT is not installed")
    teacher, student = (
        save_model(tmp_path / "teacher", hidden_size=128, seed=80),
        save_model(tmp_path / "student", seed=81),
    )
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj", "down_proj"], task_type="CAUSAL_LM")
    arguments: dict[str, Any] = {**ENGINE}
    if theta == "adapter":
        student = teacher
        first = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(teacher), config)
        first.save_pretrained(tmp_path / "first")
        arguments |= {"theta_lora": str(tmp_path / "first"), "max_lora_rank": 8}

    class Merging(Watched):
        """The reference is the model with its adapter merged."""

        def __call__(self, prompts: list[Any], trainer: Any) -> dict[str, list[Any]]:
            model = trainer.accelerator.unwrap_model(trainer.model)
            before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
            with RowAudit(sampler.llm) as audit:
                output = self.rollout(prompts, trainer)
            for name, parameter in model.named_parameters():  # merging and unmerging rounds
                assert (parameter - before[name]).abs().max() < 1e-6
            merged = copy.deepcopy(model).merge_and_unload()
            path = str(self.folder / f"merged-{len(self.calls)}")
            merged.save_pretrained(path)
            reference = Reference(self.teacher, path)
            audit.check(reference)
            self.weights.append(torch.cat([p.flatten() for n, p in model.named_parameters() if "lora_" in n]).detach())
            self.calls.append((prompts, output, reference))
            return output

    with OptimalSampler(teacher, "self" if theta == "adapter" else student, **arguments) as sampler:
        watched = Merging(rollout_func(sampler, "answer"), teacher, tmp_path)
        trainer = trainer_of((teacher, student), PLAIN, watched, tmp_path, peft_config=config)
        trainer.train()
        tokens = encode((teacher, student))
        watched.check(lambda prompt: tokens(f"{prompt}\n\n{by_problem(prompt)['answer']}"))
        assert sampler.theta_version == 3
        assert (watched.weights[0] - watched.weights[2]).abs().max() > 1e-3
        if theta == "adapter":
            with pytest.raises(ArgumentError, match="theta is an adapter, and the trainer's model has none"):
                trainer_of((teacher, student), PLAIN, rollout_func(sampler, "answer"), tmp_path).train()
