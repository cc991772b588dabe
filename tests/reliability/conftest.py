"""One small server for the tests that leave it as they find it; its questions with their answers."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from questions import Question, make_questions
from small_server import small_server

from support.servers import Server


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """`vllm serve` at its default log level, with few slots and few cache blocks."""
    with small_server(tmp_path_factory.mktemp("reliability") / "server.log") as server:
        yield server


@pytest.fixture(scope="session")
def questions() -> list[Question]:
    return make_questions(12, max_tokens=12)
