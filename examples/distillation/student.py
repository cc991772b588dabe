"""Train theta on one source's rows and see what came of it: transformers, full fine-tuning, one thread."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import measure
import soundness
import task
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from distillation.lockstep import complete
from distillation.protocol import ROWS_PER_STEP, TEMPERATURES, WARM_UP

BATCH = 250


@dataclass(frozen=True)
class Example:
    """A prompt and a completion as tokens; only the completion's are learnt."""

    prompt: list[int]
    completion: list[int]


def batches(examples: Sequence[Example], epochs: int, seed: int, rows: int = ROWS_PER_STEP) -> Iterator[list[Example]]:
    """Every example once in an epoch, in an order that depends on the seed and the number of examples alone."""
    order = random.Random(seed)
    for _ in range(epochs):
        shuffled = order.sample(examples, len(examples))
        for first in range(0, len(shuffled), rows):
            yield shuffled[first : first + rows]


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


def rate_at(step: int, steps: int) -> float:
    """The factor on the learning rate: a linear rise over the first part of the steps, then a linear fall to zero."""
    rising = max(1, round(WARM_UP * steps))
    return min(1.0, (step + 1) / rising, (steps - step) / max(1, steps - rising))


def completion_logits(model: PreTrainedModel, tokens: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Logits [learnable, vocabulary] before each token that has a label, and those labels [learnable]."""
    targets = labels[:, 1:]
    learnable = targets != -100
    return model.lm_head(model.model(tokens).last_hidden_state[:, :-1][learnable]), targets[learnable]


def _on(model: PreTrainedModel, given: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    return tuple(tensor.to(model.device) for tensor in given)


def backwards(model: PreTrainedModel, batch: Sequence[Example], pad: int, at_a_time: int) -> Iterator[float]:
    """Add the gradient of the batch's mean loss, so many examples a forward; yields each forward's share of the loss."""
    tokens = sum(len(example.completion) for example in batch)
    for first in range(0, len(batch), at_a_time):
        part = batch[first : first + at_a_time]
        share = sum(len(example.completion) for example in part) / tokens
        loss = torch.nn.functional.cross_entropy(*completion_logits(model, *_on(model, tensors(part, pad)))) * share
        loss.backward()
        yield loss.item()


def train(
    model: PreTrainedModel,
    examples: Sequence[Example],
    epochs: int,
    learning_rate: float,
    seed: int,
    pad: int,
    rows: int = ROWS_PER_STEP,
    at_a_time: int | None = None,
) -> float:
    """Train `model` in place; the mean loss of the last epoch, in nats a token.

    Args:
        rows: examples a step.
        at_a_time: examples a forward, whose gradients add up to the step's; all where it is None.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.0)
    stream = list(batches(examples, epochs, seed, rows))
    losses = []
    model.train()
    for step, batch in enumerate(stream):
        optimizer.param_groups[0]["lr"] = learning_rate * rate_at(step, len(stream))
        loss = sum(backwards(model, batch, pad, at_a_time or len(batch)))
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss)
    model.eval()
    last = losses[-(len(stream) // epochs) :]
    return sum(last) / len(last)


@torch.inference_mode()
def likeliest_temperature(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, worked: Sequence[task.Problem]
) -> float:
    """The temperature at which worked solutions are likeliest: temperature scaling (Guo et al. 2017)."""
    examples = [
        Example(
            measure.render(tokenizer, task.theta_messages(problem.problem)),
            [*tokenizer.encode(problem.solution, add_special_tokens=False), tokenizer.eos_token_id],
        )
        for problem in worked
    ]
    logits, labels = completion_logits(model, *tensors(examples, tokenizer.pad_token_id))

    @cache
    def loss(place: int) -> float:
        return torch.nn.functional.cross_entropy(logits.double() / TEMPERATURES[place], labels).item()

    low, high = 0, len(TEMPERATURES) - 1
    while low < high:  # the loss is convex in 1 / temperature, so it falls to its least value and rises from there
        middle = (low + high) // 2
        low, high = (low, middle) if loss(middle) <= loss(middle + 1) else (middle + 1, high)
    return TEMPERATURES[low]


def answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    problems: Sequence[dict[str, Any]],
    temperature: float | None = None,
    seed: int = 0,
) -> list[str]:
    """The model's text for each problem alone: greedy, or drawn at a temperature."""
    generator = torch.Generator().manual_seed(seed)

    def choose(_: torch.Tensor, logprobs: torch.Tensor) -> torch.Tensor:
        if temperature is None:
            return logprobs.argmax(-1)
        return torch.multinomial((logprobs / temperature).softmax(-1), 1, generator=generator)[:, 0]

    texts: list[str] = []
    for first in range(0, len(problems), BATCH):
        messages = [task.theta_messages(problem["problem"]) for problem in problems[first : first + BATCH]]
        drawn = complete([measure.Reader(model, tokenizer, messages)], choose, tokenizer.eos_token_id)
        texts += [tokenizer.decode(ids, skip_special_tokens=True) for ids in drawn]
    return texts


def judged(texts: Sequence[str], problems: Sequence[dict[str, Any]]) -> dict[str, int]:
    """How many texts are right, and sound."""
    pairs = list(zip(texts, problems, strict=True))
    return {
        "right": sum(task.is_right(text, problem["answer"]) for text, problem in pairs),
        "sound": sum(soundness.is_sound(text, problem) for text, problem in pairs),
    }


def evaluate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    sets: dict[str, list[dict[str, Any]]],
    worked: Sequence[task.Problem],
    seed: int,
) -> dict[str, Any]:
    """Counts of right and sound texts by set, greedy and sampled at the temperature at which `worked` is likeliest."""
    temperature = likeliest_temperature(model, tokenizer, worked)
    return {
        "temperature": temperature,
        "sets": {
            name: {
                "problems": len(problems),
                "greedy": judged(answers(model, tokenizer, problems), problems),
                "sampled": judged(answers(model, tokenizer, problems, temperature, seed), problems),
            }
            for name, problems in sets.items()
        },
    }
