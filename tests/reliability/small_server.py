"""The server that reliability is tried on: the example pair, few request slots, few cache blocks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from support.example_pair import TEACHER, THETA
from support.servers import GPU_SHARE, VLLM, Server, start_server

MAX_MODEL_LEN = 256
MAX_NUM_SEQS = 4
NUM_BLOCKS = 14
"""Of 32 tokens, one of them vLLM's own. A request of the model's length takes 8, so two of them preempt one another."""


def options(**changes: Any) -> dict[str, Any]:
    """What is in the server's YAML file."""
    return {
        "model": TEACHER,
        "served-model-name": "teacher",
        "logits-processors": ["optimal_sampling"],
        "speculative-config": {"model": THETA, "num_speculative_tokens": 3},
        "dtype": "float32",
        "enforce-eager": True,
        "max-model-len": MAX_MODEL_LEN,
        "max-num-seqs": MAX_NUM_SEQS,
        "num-gpu-blocks-override": NUM_BLOCKS,
        "kv-cache-memory-bytes": 1 << 26,
        "block-size": 32,
        **GPU_SHARE,
        **changes,
    }


def command(folder: Path, **changes: Any) -> list[str]:
    """`vllm serve --config ...`, its file written to `folder`."""
    config = folder / "server.yaml"
    config.write_text(yaml.safe_dump(options(**changes)))
    return [*VLLM, "serve", "--config", str(config)]


@contextmanager
def small_server(log: Path, **changes: Any) -> Iterator[Server]:
    """A server while it is entered."""
    server = start_server(command(log.parent, **changes), log)
    try:
        yield server
    finally:
        server.stop()
