"""Kernels run where Triton runs them: the tensors of these tests are the CPU's."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from support.device_copies import launches_where_kernels_run
from vllm_optimal_sampling.interpreter import gaps, shortcuts


@pytest.fixture(scope="session", autouse=True)
def launched_where_kernels_run() -> Iterator[None]:
    gaps.fill()  # first, as in an engine
    shortcuts.take()
    with launches_where_kernels_run():
        yield
