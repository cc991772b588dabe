"""A teacher, a theta, and the configuration of an engine with both."""

import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from configurations import MAX_MODEL_LEN, VOCAB_SIZE, build, save_model


@pytest.fixture
def package_log(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """What the package logs, whether or not an engine of this process has let vLLM configure its logger, and so ours."""
    logger = logging.getLogger("vllm_optimal_sampling")
    logger.addHandler(caplog.handler)
    yield caplog
    logger.removeHandler(caplog.handler)


@pytest.fixture(scope="session")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_model(tmp_path_factory.mktemp("models") / "teacher")


@pytest.fixture(scope="session")
def theta(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_model(tmp_path_factory.mktemp("models") / "theta", hidden_size=128)


@pytest.fixture(scope="session")
def narrower_theta(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Of the teacher's tokenizer, with fewer padding ids."""
    return save_model(tmp_path_factory.mktemp("models") / "narrower", hidden_size=128, vocab_size=VOCAB_SIZE + 20)


@pytest.fixture(scope="session")
def engine_args(teacher: str, theta: str) -> Callable[..., Any]:
    """Makes the arguments of an engine with optimal sampling; keywords replace or add some."""

    def make(**arguments: Any) -> Any:
        from vllm.engine.arg_utils import EngineArgs

        return EngineArgs(
            **{
                "model": teacher,
                "dtype": "float32",
                "enforce_eager": True,
                "max_model_len": MAX_MODEL_LEN,
                "logits_processors": ["optimal_sampling"],
                "speculative_config": {"model": theta, "num_speculative_tokens": 3},
                **arguments,
            }
        )

    return make


@pytest.fixture(scope="session")
def build_config(engine_args: Callable[..., Any]) -> Callable[..., Any]:
    return lambda **arguments: build(engine_args(**arguments))
