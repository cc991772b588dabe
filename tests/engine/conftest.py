"""Engines that several tests share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from vllm import LLM
from vllm.model_executor.models import registry

from support.engines import ON_GPU, RUN_MODES, scoring_options, start_engine, stop_engine
from support.random_models import save_model
from support.reference_models import Reference

# vLLM looks at a model's class before it loads one, once on a machine. So that this process leaves CUDA untouched, another one
# imports vLLM for it, for 8 s. There are 40 classes in these tests.
if not ON_GPU:
    registry._run_in_subprocess = lambda look: look()


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


@pytest.fixture(scope="module", params=RUN_MODES)
def engines(pair: tuple[str, str], request: pytest.FixtureRequest) -> Iterator[Callable[..., LLM]]:
    """Engines of the random pair by their options; the last one stays up until another is asked for.

    Where there is a GPU a test runs twice, eagerly and with CUDA graphs.
    """
    mode = RUN_MODES[request.param]
    running: dict[str, LLM] = {}

    def engine(**options: Any) -> LLM:
        key = repr(sorted(options.items()))
        if key not in running:
            for other in running.values():
                stop_engine(other)
            running.clear()
            running[key] = start_engine(*pair, **{**mode, **options})
        return running[key]

    yield engine
    for llm in running.values():
        stop_engine(llm)


@pytest.fixture(scope="module", params=RUN_MODES)
def scoring_engines(request: pytest.FixtureRequest) -> Iterator[Callable[..., LLM]]:
    """Engines by their options, on a GPU with graphs too; the last one stays up until another is asked for."""
    running: dict[str, LLM] = {}

    def engine(*models: str, **options: Any) -> LLM:
        key = repr((models, sorted(options.items())))
        if key not in running:
            for other in running.values():
                stop_engine(other)
            running.clear()
            chunks = {"max_num_batched_tokens": 128, "enable_prefix_caching": True, **RUN_MODES[request.param]}
            running[key] = LLM(**scoring_options(*models, **{**chunks, **options}))
        return running[key]

    yield engine
    for llm in running.values():
        stop_engine(llm)


@pytest.fixture(scope="session")
def self_reference(pair: tuple[str, str]) -> Reference:
    return Reference(pair[0], pair[0])
