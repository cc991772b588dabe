"""Engines that several tests share: an engine takes 10 to 25 s to start on a CPU."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from audit import Reference
from models import save_model
from vllm import LLM


@pytest.fixture(scope="session")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Paths of a random teacher and a smaller random theta."""
    folder: Path = tmp_path_factory.mktemp("pair")
    return (
        save_model(folder / "teacher", hidden_size=128, num_layers=3, seed=0),
        save_model(folder / "theta", hidden_size=64, num_layers=2, seed=1),
    )


@pytest.fixture(scope="session")
def reference(pair: tuple[str, str]) -> Reference:
    return Reference(*pair)


def engine_options(teacher: str, theta: str, num_speculative_tokens: int = 3, **options: Any) -> dict[str, Any]:
    """Arguments of a small engine with optimal sampling, as a user gives them."""
    speculative_config = {
        "model": theta,
        "num_speculative_tokens": num_speculative_tokens,
        **options.pop("speculative_config", {}),
    }
    return {
        "model": teacher,
        "logits_processors": ["optimal_sampling"],
        "speculative_config": speculative_config,
        "dtype": "float32",
        "enforce_eager": True,
        "max_model_len": 512,
        "max_num_seqs": 8,
        "max_num_batched_tokens": 512,
        "kv_cache_memory_bytes": 1 << 26,
        "block_size": 32,
        "disable_log_stats": False,
        **options,
    }


def start_engine(teacher: str, theta: str, num_speculative_tokens: int = 3, **options: Any) -> LLM:
    """The same engine started, in this process unless VLLM_ENABLE_V1_MULTIPROCESSING says otherwise."""
    return LLM(**engine_options(teacher, theta, num_speculative_tokens, **options))


def stop_engine(llm: LLM) -> None:
    llm.llm_engine.engine_core.shutdown()
    gc.collect()


@pytest.fixture(scope="module")
def engines(pair: tuple[str, str]) -> Iterator[Callable[..., LLM]]:
    """Engines of the random pair by their options; the last one stays up until another is asked for."""
    running: dict[str, LLM] = {}

    def engine(**options: Any) -> LLM:
        key = repr(sorted(options.items()))
        if key not in running:
            for other in running.values():
                stop_engine(other)
            running.clear()
            running[key] = start_engine(*pair, **options)
        return running[key]

    yield engine
    for llm in running.values():
        stop_engine(llm)
