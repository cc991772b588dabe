"""What tests ask SmolLM2-135M-Instruct (`benchmarks/smollm2.py` has where it comes from)."""

from __future__ import annotations

from typing import Any

import pytest
import smollm2
import torch

PROBLEMS = (
    ("A train leaves at 9:40 and arrives at 13:05. How long does the journey take?", "3 hours and 25 minutes"),
    ("Who wrote the novel Frankenstein?", "Mary Shelley"),
    ("Mia has 47 apples. She buys 25 more and then sells 13. How many apples does Mia have now?", "59"),
    ("Name the capital of Australia.", "Canberra"),
)
"""What is asked, and what only the teacher is told."""


def load() -> tuple[Any, Any]:
    """Model in float32 and tokenizer; skips the test where the package or `gguf` is missing."""
    file = smollm2.packaged()
    if file is None:
        pytest.skip(smollm2.MISSING)
    return smollm2.load(file, torch.float32)


def sharpen(model: Any, factor: float) -> None:
    """Make every logit `factor` times as large: logits are linear in the last norm's weight."""
    with torch.no_grad():
        model.model.norm.weight.mul_(factor)


def prompts(tokenizer: Any, problem: str, answer: str) -> tuple[list[int], list[int]]:
    """The teacher's prompt, which has the answer, and theta's, which does not."""

    def chat(text: str) -> list[int]:
        messages = [{"role": "user", "content": text}]
        ids = tokenizer.apply_chat_template(messages, tokenize=True, add_generation_prompt=True, return_dict=False)
        return list(ids)

    return chat(f"{problem}\nThe answer is: {answer}. Explain how to get there."), chat(problem)
