"""What `vllm serve` says when it cannot start."""

from __future__ import annotations

import subprocess

import pytest

from support.example_pair import TEACHER
from support.servers import START_SECONDS, VLLM


@pytest.mark.full
def test_without_a_theta_the_command_that_works_is_printed() -> None:
    done = subprocess.run(
        [*VLLM, "serve", TEACHER, "--logits-processor", "optimal_sampling"],
        capture_output=True,
        text=True,
        timeout=START_SECONDS,
        check=False,
    )
    assert done.returncode != 0
    said = done.stderr.strip().splitlines()
    assert f"  vllm serve {TEACHER} --logits-processor optimal_sampling --speculative-config" in done.stderr
    assert said[-1].startswith("where THETA is the smaller model")
