"""One server for all tests of this folder, started from a YAML file; both models again with transformers."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import yaml

from support.example_pair import SETTINGS, TEACHER, THETA, with_hint
from support.servers import SMALL_SERVER, VLLM, Server, start_server


@pytest.fixture(scope="session")
def theta(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The server's theta: the pair's, whose template also reads a variable (`hint`)."""
    return with_hint(THETA, tmp_path_factory.mktemp("theta") / "theta")


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory, theta: str) -> Iterator[Server]:
    """`vllm serve --config server.yaml`, with everything in the file."""
    folder = tmp_path_factory.mktemp("server")
    config = {
        "model": TEACHER,
        "served-model-name": "teacher",
        "logits-processors": ["optimal_sampling"],
        "speculative-config": {"model": theta, "num_speculative_tokens": 3},
        "additional-config": {"optimal_sampling": SETTINGS},
        # The pair was not trained on JSON, and fills all tokens with blanks where it may.
        "structured-outputs-config": {"backend": "xgrammar", "disable_any_whitespace": True},
        "enable-auto-tool-choice": True,
        "tool-call-parser": "hermes",
        **SMALL_SERVER,
    }
    (folder / "server.yaml").write_text(yaml.safe_dump(config))
    server = start_server([*VLLM, "serve", "--config", str(folder / "server.yaml")], folder / "server.log")
    yield server
    server.stop()


@pytest.fixture(scope="session")
def reference() -> object:
    """Both models in float64."""
    from support.reference_models import Reference

    return Reference(TEACHER, THETA)
