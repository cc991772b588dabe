"""Measure the example pair: how often theta, the teacher and q* are right on held-out problems, at temperature 1.

q* is computed here the plain way, with transformers alone: both models run over the tokens generated so far, each
after its own prompt, and every token is drawn from

    q*(y) = pi_theta(y)^(1 - alpha) * pi_teacher(y)^alpha / Z,    alpha such that KL(q*||pi_theta) = KL(q*||pi_teacher)

in float64. This is the reference that the engine's figures can be held against; it shares no code with the plugin.
Writes ``figures.json`` beside the weights::

    python examples/pair/measure.py
"""

import argparse
import hashlib
import json
import math
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import task
import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

HERE = Path(__file__).parent
MAX_TOKENS = 120  # the longest worked solution of three changes has 60
BISECTIONS = 50  # alpha to 1e-15


@dataclass
class Sample:
    """A generated text with what was recorded at each of its tokens (``drawn`` tokens, the end token included)."""

    text: str
    token_ids: list[int]
    alphas: list[float]
    kept_by_mixture: list[float]  # sum_y min(pi_theta, q*): how often a draft of theta is accepted against q*
    kept_by_teacher: list[float]  # sum_y min(pi_theta, pi_teacher): the same against the teacher


class Reader:
    """One model reading a batch of prompts and then one token after another, with its key-value cache."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[task.Messages]):
        rows = [render(tokenizer, messages) for messages in prompts]
        width = max(map(len, rows))
        self.model = model
        self.cache = None
        self.mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
        self.tokens = torch.tensor([[tokenizer.pad_token_id] * (width - len(row)) + row for row in rows])
        self.positions = (self.mask.cumsum(1) - 1).clamp(min=0)

    def logprobs(self) -> torch.Tensor:
        """Log-probabilities of the next token, [rows, vocabulary], float64."""
        output = self.model(
            input_ids=self.tokens, attention_mask=self.mask, position_ids=self.positions, past_key_values=self.cache,
            use_cache=True, logits_to_keep=1,
        )  # fmt: skip
        self.cache = output.past_key_values
        return output.logits[:, -1].double().log_softmax(-1)

    def read(self, tokens: torch.Tensor) -> None:
        """Take the next token of each row, [rows]."""
        self.tokens = tokens[:, None]
        self.positions = self.positions[:, -1:] + 1
        self.mask = torch.cat([self.mask, torch.ones_like(self.mask[:, :1])], 1)

    def keep(self, rows: torch.Tensor) -> None:
        """Go on with these rows only, by their places in the batch [kept], once the prompts are read."""
        self.cache.batch_select_indices(rows)
        self.tokens, self.positions, self.mask = self.tokens[rows], self.positions[rows], self.mask[rows]


def render(tokenizer: PreTrainedTokenizerBase, messages: task.Messages) -> list[int]:
    """The token ids of a chat, up to where the assistant's turn begins."""
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return tokenizer.encode(text, add_special_tokens=False)


def mix(theta: torch.Tensor, teacher: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """q* and alpha by KL symmetry, from two sets of log-probabilities [rows, vocabulary].

    KL(q||theta) - KL(q||teacher) = E_q[log teacher - log theta] grows with alpha, from -KL(theta||teacher) at 0 to
    KL(teacher||theta) at 1, so bisection finds its only zero. Identical rows leave alpha open: 1/2.

    Returns log q* [rows, vocabulary] and alpha [rows].
    """
    ratio = teacher - theta
    low, high = torch.zeros_like(ratio[:, :1]), torch.ones_like(ratio[:, :1])
    for _ in range(BISECTIONS):
        alpha = (low + high) / 2
        slope = ((theta + alpha * ratio).softmax(-1) * ratio).sum(-1, keepdim=True)
        low, high = torch.where(slope < 0, alpha, low), torch.where(slope > 0, alpha, high)
    alpha = (low + high) / 2
    return (theta + alpha * ratio).log_softmax(-1), alpha[:, 0]


@torch.inference_mode()
def generate(
    tokenizer: PreTrainedTokenizerBase,
    seed: int,
    theta: PreTrainedModel | None = None,
    theta_prompts: Sequence[task.Messages] = (),
    teacher: PreTrainedModel | None = None,
    teacher_prompts: Sequence[task.Messages] = (),
) -> list[Sample]:
    """Sample one completion for each prompt at temperature 1: from q* where both models are given, else from one."""
    count = len(theta_prompts or teacher_prompts)
    generator = torch.Generator().manual_seed(seed)
    samples = [Sample("", [], [], [], []) for _ in range(count)]
    running = [True] * count
    theta_reader = Reader(theta, tokenizer, theta_prompts) if theta is not None else None
    teacher_reader = Reader(teacher, tokenizer, teacher_prompts) if teacher is not None else None
    readers = [reader for reader in (theta_reader, teacher_reader) if reader is not None]

    for _ in range(MAX_TOKENS):
        if theta_reader is not None and teacher_reader is not None:
            u, v = theta_reader.logprobs(), teacher_reader.logprobs()
            q, alpha = mix(u, v)
            by_mixture = torch.minimum(u, q).exp().sum(-1).tolist()
            by_teacher = torch.minimum(u, v).exp().sum(-1).tolist()
            alphas = alpha.tolist()
        else:
            q = readers[0].logprobs()
        drawn = torch.multinomial(q.exp(), 1, generator=generator)[:, 0]
        for reader in readers:
            reader.read(drawn)
        for row, token in enumerate(drawn.tolist()):
            if not running[row]:
                continue
            sample = samples[row]
            sample.token_ids.append(token)
            if len(readers) == 2:
                sample.alphas.append(alphas[row])
                sample.kept_by_mixture.append(by_mixture[row])
                sample.kept_by_teacher.append(by_teacher[row])
            running[row] = token != tokenizer.eos_token_id
        if not any(running):
            break
    for sample in samples:
        sample.text = tokenizer.decode(sample.token_ids, skip_special_tokens=True)
    return samples


def interval(right: int, count: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share."""
    z = 1.959964
    share, spread = right / count, z * z / count
    middle = (share + spread / 2) / (1 + spread)
    half = z / (1 + spread) * math.sqrt(share * (1 - share) / count + spread / (4 * count))
    return round(middle - half, 4), round(middle + half, 4)


def summary(samples: Sequence[Sample], rows: Sequence[dict]) -> dict[str, object]:
    """The figures of one way of sampling."""
    right = sum(task.is_right(sample.text, row["answer"]) for sample, row in zip(samples, rows, strict=True))
    worked = sum(
        task.is_right(sample.text, row["answer"]) and task.follows(sample.text, row["steps"])
        for sample, row in zip(samples, rows, strict=True)
    )
    figures: dict[str, object] = {
        "problems": len(rows),
        "right": right,
        "rate": round(right / len(rows), 4),
        "interval_95": interval(right, len(rows)),
        "right_with_right_steps": worked,
        "tokens_per_completion": round(sum(len(sample.token_ids) for sample in samples) / len(samples), 2),
    }
    if samples[0].alphas:
        names = {
            "mean_alpha": "alphas",
            "acceptance_against_q": "kept_by_mixture",
            "acceptance_against_teacher": "kept_by_teacher",
        }
        for name, field in names.items():
            values = [value for sample in samples for value in getattr(sample, field)]
            figures[name] = round(sum(values) / len(values), 4)
    return figures


def load(folder: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def measure(
    teacher: PreTrainedModel, theta: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: list[dict], seed: int
) -> dict:
    """All four ways of sampling on the same problems: theta alone, the teacher without and with the answer, and q*."""
    alone = [task.theta_messages(row["problem"]) for row in rows]
    privileged = [task.teacher_messages(row["problem"], row["answer"]) for row in rows]
    return {
        "theta": summary(generate(tokenizer, seed, theta, alone), rows),
        "teacher_without_answer": summary(generate(tokenizer, seed, teacher=teacher, teacher_prompts=alone), rows),
        "teacher": summary(generate(tokenizer, seed, teacher=teacher, teacher_prompts=privileged), rows),
        "q_star": summary(generate(tokenizer, seed, theta, alone, teacher, privileged), rows),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the example pair on held-out problems.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=HERE / "figures.json")
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    teacher, theta = load(HERE / "teacher"), load(HERE / "theta")
    tokenizer = AutoTokenizer.from_pretrained(HERE / "theta")
    figures: dict[str, object] = {
        "settings": {
            "seed": arguments.seed,
            "temperature": 1.0,
            "max_tokens": MAX_TOKENS,
            "alpha_method": "kl_symmetry",
            "dtype": "float32",
        },
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
        "sha256": {
            name: hashlib.sha256((HERE / name / "model.safetensors").read_bytes()).hexdigest()
            for name in ("teacher", "theta")
        },
        "parameters": {"teacher": teacher.num_parameters(), "theta": theta.num_parameters()},
    }
    for name in ("problems", "problems_longer", "problems_sorting"):
        figures[name] = measure(teacher, theta, tokenizer, task.read_rows(HERE / f"{name}.jsonl"), arguments.seed)
        print(name, json.dumps(figures[name], indent=2))
    arguments.output.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
