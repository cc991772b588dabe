"""Many texts at a time, token by token: each model reads all of them together, with its key-value cache."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import measure
import torch

SPARSE = 0.7
"""Finished texts leave the batch when the others are fewer than this share of it."""

Choose = Callable[..., torch.Tensor]
"""Of some texts' numbers [running] and each model's log-probabilities [running, vocabulary], the next tokens [running]."""


@torch.inference_mode()
def complete(
    readers: Sequence[measure.Reader], choose: Choose, end: int, max_tokens: int = measure.MAX_TOKENS
) -> list[list[int]]:
    """The tokens of each text, up to and with `end`, or `max_tokens` of them.

    Args:
        readers: one for each model, over prompts of the same number.
        choose: see `Choose`; it is called once for each token, with the texts that are not finished.
        end: the token that ends a text.
    """
    count = len(readers[0].tokens)
    texts: list[list[int]] = [[] for _ in range(count)]
    numbers = torch.arange(count)  # of the texts in the batch
    running = torch.ones(count, dtype=torch.bool)  # of those, which are not finished
    for _ in range(max_tokens):
        rows = [reader.logprobs()[running] for reader in readers]
        tokens = torch.full((len(numbers),), end)
        tokens[running] = choose(numbers[running], *rows)
        for number, token in zip(numbers[running].tolist(), tokens[running].tolist(), strict=True):
            texts[number].append(token)
        running &= tokens != end
        if not running.any():
            break
        for reader in readers:
            reader.read(tokens)
        if running.sum() < SPARSE * len(running):
            left = running.nonzero()[:, 0]
            for reader in readers:
                reader.keep(left)
            numbers, running = numbers[left], running[left]
    return texts
