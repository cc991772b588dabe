"""Train theta on one source's rows and see what came of it: transformers, full fine-tuning, one thread.

Everything that differs between sources is their rows. The number of steps, the tokens of a step, the schedule, the
optimizer and the way the learning rate is chosen are the same for all.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import measure
import task
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from distillation import PAIR


@dataclass(frozen=True)
class Recipe:
    """What is done to every student alike."""

    steps: int = 150
    tokens_per_step: int = 1536
    """Completion tokens of a step: as many completions as fit, so a step of every source learns from as many tokens."""
    warmup_steps: int = 10
    weight_decay: float = 0.0
    evaluate_steps: tuple[int, ...] = (0, 25, 50, 100, 150)
    """Where the learning curve has points; the last is the end."""


@dataclass(frozen=True)
class Example:
    """A prompt and a completion as tokens; only the completion's are learnt."""

    prompt: list[int]
    completion: list[int]


def examples_of(rows: Sequence[dict]) -> list[Example]:
    """Training examples of the generator's rows: theta's prompt, and the tokens drawn with the one that ended them."""
    return [Example(row["prompt_token_ids"], row["completion_token_ids"]) for row in rows]


def batches(examples: Sequence[Example], tokens_per_step: int, seed: int) -> Iterator[list[Example]]:
    """An endless stream of batches of up to ``tokens_per_step`` completion tokens, pass after pass in a new order.

    A batch ends before the completion that would overfill it, and that one begins the next batch: over a pass no
    completion is left out. A completion longer than a batch is a batch of its own.
    """
    rng = random.Random(seed)
    batch: list[Example] = []
    size = 0
    while True:
        for example in rng.sample(examples, len(examples)):
            if batch and size + len(example.completion) > tokens_per_step:
                yield batch
                batch, size = [], 0
            batch.append(example)
            size += len(example.completion)


def tensors(batch: Sequence[Example], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and labels, [batch, longest]; prompts and padding are -100 in the labels."""
    width = max(len(example.prompt) + len(example.completion) for example in batch)
    tokens = torch.full((len(batch), width), pad)
    labels = torch.full((len(batch), width), -100)
    for row, example in enumerate(batch):
        begin, end = len(example.prompt), len(example.prompt) + len(example.completion)
        tokens[row, :end] = torch.tensor(example.prompt + example.completion)
        labels[row, begin:end] = tokens[row, begin:end]
    return tokens, labels


def rate_at(recipe: Recipe, step: int) -> float:
    """The factor on the learning rate: a linear rise over the warm-up, then a linear fall to zero at the end."""
    rise = (step + 1) / recipe.warmup_steps
    fall = (recipe.steps - step) / (recipe.steps - recipe.warmup_steps)
    return min(1.0, rise, fall)


def train(
    model: PreTrainedModel, rows: Sequence[dict], recipe: Recipe, learning_rate: float, seed: int, pad: int
) -> Iterator[tuple[int, float | None, int]]:
    """Train ``model`` in place, stopping at each of ``recipe.evaluate_steps``.

    Yields the steps done, the mean loss since the last stop (nats per token; None at 0), and the tokens learnt so far.
    """
    stream = batches(examples_of(rows), recipe.tokens_per_step, seed)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=learning_rate, betas=(0.9, 0.98), weight_decay=recipe.weight_decay
    )
    losses: list[float] = []
    learnt = 0
    for step in range(recipe.steps + 1):
        if step in recipe.evaluate_steps:
            model.eval()
            yield step, sum(losses) / len(losses) if losses else None, learnt
            losses = []
        if step == recipe.steps:
            return
        model.train()
        optimizer.param_groups[0]["lr"] = learning_rate * rate_at(recipe, step)
        tokens, labels = tensors(next(stream), pad)
        targets = labels[:, 1:]
        learnable = targets != -100
        hidden = model.model(tokens).last_hidden_state[:, :-1][learnable]
        loss = torch.nn.functional.cross_entropy(model.lm_head(hidden), targets[learnable])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        learnt += int(learnable.sum())


@torch.inference_mode()
def complete(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, problems: Sequence[dict], seed: int | None
) -> list[str]:
    """The model's completion of each problem alone: drawn at temperature 1 with ``seed``, greedy with None."""
    reader = measure.Reader(model, tokenizer, [task.theta_messages(problem["problem"]) for problem in problems])
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    drawn: list[list[int]] = [[] for _ in problems]
    running = torch.ones(len(problems), dtype=torch.bool)
    for _ in range(measure.MAX_TOKENS):
        logprobs = reader.logprobs()
        if generator is None:
            tokens = logprobs.argmax(-1)
        else:
            tokens = torch.multinomial(logprobs.exp(), 1, generator=generator)[:, 0]
        reader.read(tokens)
        for row in running.nonzero()[:, 0].tolist():
            drawn[row].append(int(tokens[row]))
        running &= tokens != tokenizer.eos_token_id
        if not running.any():
            break
    return [tokenizer.decode(row, skip_special_tokens=True) for row in drawn]


def judge(texts: Sequence[str], problems: Sequence[dict]) -> dict[str, str]:
    """One character for each problem, 1 or 0: the answer is right, and it is right with right steps."""
    right = [task.is_right(text, problem["answer"]) for text, problem in zip(texts, problems, strict=True)]
    sound = [
        is_right and task.follows(text, problem["steps"])
        for is_right, text, problem in zip(right, texts, problems, strict=True)
    ]
    return {"right": "".join("01"[one] for one in right), "sound": "".join("01"[one] for one in sound)}


def evaluate(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, problems: Sequence[dict], seed: int
) -> dict[str, dict[str, str]]:
    """What the model gets right of these problems, sampled at temperature 1 and greedily."""
    return {
        "sampled": judge(complete(model, tokenizer, problems, seed), problems),
        "greedy": judge(complete(model, tokenizer, problems, None), problems),
    }


def held_out(limit: int | None = None) -> dict[str, list[dict]]:
    """The three sets of held-out problems: the task itself, the shifted one, and the skill to be forgotten."""
    files = {"stories": "problems", "longer": "problems_longer", "sorting": "problems_sorting"}
    return {name: task.read_rows(PAIR / f"{file}.jsonl")[:limit] for name, file in files.items()}
