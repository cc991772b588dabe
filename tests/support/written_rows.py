"""Rows as `optimal-sampling generate` writes them, with figures that a test can predict."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from support.example_pair import PAIR
from vllm_optimal_sampling import cli

TOKENIZER = Tokenizer.from_file(str(PAIR / "teacher/tokenizer.json"))


def row(number: int, text: str = "So the answer is 42.", **columns: Any) -> dict[str, Any]:
    """A row with a record; what is given replaces what it has."""
    ids = TOKENIZER.encode(text, add_special_tokens=False).ids
    return {
        "custom_id": f"row-{number}",
        "sample": 0,
        "prompt": [{"role": "user", "content": f"What is 6 times 7 ({number})?"}],
        "privileged_context": "42",
        "completion": text,
        "finish_reason": "stop",
        "prompt_token_ids": [1, 2, 3],
        "completion_token_ids": ids,
        "optimal_sampling": record(len(ids), number),
        "error": None,
    } | columns


def record(num_tokens: int, seed: int) -> dict[str, list[Any]]:
    rng = random.Random(seed)
    return {
        "alpha": [rng.random() for _ in range(num_tokens)],
        "kl": [rng.expovariate(20) for _ in range(num_tokens)],
        "log_z": [-rng.expovariate(20) for _ in range(num_tokens)],
        "logprob": [-rng.expovariate(1) for _ in range(num_tokens)],
        "teacher_logprob": [-rng.expovariate(1) for _ in range(num_tokens)],
        "theta_logprob": [-rng.expovariate(1) for _ in range(num_tokens)],
        "fallback": [False] * num_tokens,
    }


def write(path: Path, rows: Iterable[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(one) + "\n" for one in rows))
    return path


def command(*arguments: object) -> int:
    """The exit code of `optimal-sampling` with these arguments."""
    return cli.main([str(argument) for argument in arguments])
